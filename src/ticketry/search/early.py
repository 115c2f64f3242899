"""Early pruning: once, before or early in training, by what pruning does to the gradient flow.

The dense network is trained until its weights have become slow, then pruned at once to the final density, and trained
on with what is left, momentum included, to the end of the same schedule. Rachwan, Zügner, Charpentier, Geisler, Ayle &
Günnemann, "Winning the Lottery Ahead of Time: Efficient Early Network Pruning" (ICML 2022): EarlyCroP. With --when 0 it
is pruning at initialisation: CroP (--iterations 1) and CroPit, or SNIP, GraSP, SynFlow by their scores. Costs one
training a density; up to the cut that is the dense network's own, which is not trained again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ticketry.errors import UsageError
from ticketry.lab.found import GRADUAL, Found, Seeds
from ticketry.search import _densities
from ticketry.search._scope import prunable, pruned
from ticketry.step import Step

if TYPE_CHECKING:
    from ticketry.core.scope import Scope
    from ticketry.lab.lab import Lab, Result
    from ticketry.lab.segment import Segment
    from ticketry.tasks.base import Task
    from ticketry.tasks.recipe import Recipe

DETECTORS = ("distance", "masks")
SLOWEST = 0.1
"""The least threshold that follows from a density: below it, weights hardly ever become so slow."""


@dataclass(frozen=True, kw_only=True)
class Settings(_densities.DensitySettings):
    """Settings of early pruning."""

    score: str = "crop"
    """What is kept: the highest by this score."""
    when: str = "detect"
    """When to prune: detect, or a step such as 0, 500it, 2ep, 5%."""
    detector: str = "distance"
    """What tells that moment: distance (from the initialisation: its change has become small; EarlyCroP) or masks (by
    magnitude at the density: five in a row are alike; Early-Bird)."""
    every: str = "1ep"
    """Steps between two looks of the detector. The state at each look is kept in the store."""
    threshold: float = 0.0
    """Of detector distance: the change between two looks at which weights are slow, as a share of the first change; 0
    stands for the density (as in the published code), and for 0.1 where it is lower."""
    latest: str = "25%"
    """The step at which it is pruned if nothing was detected before."""
    iterations: int = 7
    """Cuts on the way to the density, at one step, each by the scores of what is left."""
    schedule: str = "halving"
    """Densities of these cuts: halving (EarlyCroP) or exponential (SynFlow, Iter-SNIP)."""
    regrow: bool = False
    """Whether weights removed by an earlier cut may return (FORCE)."""
    batches: int = 5
    """Batches of training examples that the score sees."""
    batch: int = 128
    """Examples in each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for point in (self.every, self.latest, *([] if self.when == "detect" else [self.when])):
            Step.parse(point)
        if self.detector not in DETECTORS:
            raise UsageError(f"detector {self.detector!r} is not known: {', '.join(DETECTORS)}")
        if self.threshold < 0:
            raise UsageError(f"threshold is a share of the first change, at least 0, not {self.threshold:g}")
        if self.iterations < 1 or self.batches < 1 or self.batch < 1:
            raise UsageError("iterations, batches and batch are at least 1")


levels = _densities.levels


def search(lab: Lab, task: Task, recipe: Recipe, settings: Settings, seeds: Seeds) -> Iterator[Found]:
    """One replicate: the dense network, then a pruned one for each density, the densest first."""
    from ticketry.core.score import get
    from ticketry.lab.retrain import retraining
    from ticketry.lab.sample import Sample

    get(settings.score)  # a wrong word is told before anything is trained
    whole = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=recipe)
    scope = prunable(lab, task, settings)
    looks = _Looks(lab, task, whole, scope, settings, seeds)
    moments = {density: looks.moment(density) for density in settings.targets}
    dense = lab.train(whole, keep=tuple(sorted(set(moments.values()))), label="dense")
    yield Found(0, None, lab.at(dense, max(moments.values())), dense, GRADUAL, dense)
    sample = Sample(settings.batches, settings.batch, seeds.mask)

    def member(level: int, density: float) -> Found:
        state = lab.at(dense, moments[density])
        cuts = {"iterations": settings.iterations, "schedule": settings.schedule, "regrow": settings.regrow}
        mask = pruned(lab, task, state, scope, None, density, settings, seeds, sample=sample, **cuts)
        segment = retraining(
            lab, task, recipe, retrain=GRADUAL, mask=mask, rewound=state, trained=state, order_seed=seeds.order
        )
        result = lab.train(segment, label=f"density {density:g} from step {moments[density]}")
        return Found(level, mask, state, dense, GRADUAL, result, searched=(state,), behind=moments[density])

    yield from lab.gather([partial(member, level, each) for level, each in enumerate(settings.targets, start=1)])


class _Looks:
    """The dense network at the steps at which the detector looks, trained no further than is needed."""

    def __init__(self, lab: Lab, task: Task, whole: Segment, scope: Scope, settings: Settings, seeds: Seeds) -> None:
        self._lab, self._task, self._whole, self._scope = lab, task, whole, scope
        self._settings, self._seeds = settings, seeds

    def moment(self, density: float) -> int:
        """The step at which to prune to a density."""
        if self._settings.when != "detect":
            return self._whole.at(self._settings.when)
        every, latest = max(self._whole.at(self._settings.every), 1), self._whole.at(self._settings.latest)
        states: list[Result] = []
        for step in range(every, latest + 1, every):
            states.append(self._at(step))
            if self._found(states, density):
                return step
        return latest

    def _found(self, states: list[Result], density: float) -> bool:
        from ticketry.core.detect import alike, settled

        if self._settings.detector == "masks":
            masks = [self._lab.store.get_mask(self._magnitude(state, density)) for state in states]
            return alike(masks) is not None
        start = self._at(0)
        distances = [self._lab.distance(state, start, self._scope) for state in states]
        return settled(distances, self._settings.threshold or max(density, SLOWEST)) is not None

    def _at(self, step: int) -> Result:
        return self._lab.train(self._whole.until(step), label=f"dense to step {step}", measure=False)

    def _magnitude(self, state: Result, density: float) -> str:
        return self._lab.prune(self._task, state, self._scope, density=density, score="magnitude")
