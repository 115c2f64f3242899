"""Iterative magnitude pruning with rewinding.

Train the network, remove the weights of smallest magnitude, set the rest back to what they were early in training (or
at the start), train again, and so on, level by level. Frankle & Carbin, "The Lottery Ticket Hypothesis" (ICLR 2019):
rewinding to step 0. Frankle, Dziugaite, Roy & Carbin, "Stabilizing the Lottery Ticket Hypothesis" (2019): rewinding to
a step within the first 0.1-7 % of training. Renda, Frankle & Carbin (ICLR 2020): learning-rate rewinding, fine-tuning.
One level is one-shot pruning.

With --structure each level's mask is turned into one that hardware can use (whole channels, groups of rows, 2:4), which
is that level's ticket, while the next level goes on from the mask as it was: Chen et al., "Coarsening the Granularity:
Towards Structurally Sparse Lottery Tickets" (ICML 2022). It costs the trainings of both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ticketry.core.density import check_at_least, check_density, check_distribution
from ticketry.errors import UsageError
from ticketry.lab.found import REWINDING, Found, Seeds, check_rates, check_retrain, retrain_after
from ticketry.search._about import About
from ticketry.search._budget import Budgeted, compared, compressed, own_steps
from ticketry.search._densities import check_multiple, check_structured
from ticketry.search._pattern import Patterned
from ticketry.search._scope import check_score, prunable, pruned
from ticketry.search._structure import Restructuring, check_structure_score, given
from ticketry.step import Step

if TYPE_CHECKING:
    from ticketry.lab.lab import Lab, Result
    from ticketry.lab.segment import Segment
    from ticketry.tasks.base import Task
    from ticketry.tasks.recipe import Recipe

_MOST_LEVELS = 200


ABOUT = About(
    paper="Frankle & Carbin 2019; Frankle et al. 2019; Renda et al. 2020",
    prunes="after training",
    costs="1 + 1 a level",
)


@dataclass(frozen=True, kw_only=True)
class Settings(Patterned, Restructuring, Budgeted):
    """Settings of iterative magnitude pruning."""

    rewind: str = "0"
    """Where tickets start: a step such as 500it, 1ep, 3%; 0 is the original hypothesis, end keeps the final weights."""
    rate: float = 0.2
    """Share of the remaining weights that each level removes."""
    levels: int = 10
    """How many times; 0.8^10 leaves 10.7 % of the weights."""
    density: float | None = None
    """Share kept at the last level, instead of levels."""
    sparsity: float | None = None
    """Share removed at the last level, instead of density."""
    densities: tuple[float, ...] = ()
    """The share kept at every level, instead of rate and levels; a single one is one-shot pruning."""
    retrain: str = ""
    """How a ticket is trained: continue (from the rewind step k, steps k..T of the schedule; the default), restart (the
    whole schedule again), rewind_lr (final weights, steps k..T: for a compressed model rather than a ticket) or
    finetune (final weights, last learning rate; the default with rewind end), none (final weights as they are)."""
    score: str = "magnitude"
    """What is kept: the highest by this score."""
    distribution: str = "global"
    """global, layerwise, uniform or erk: how the weights kept are spread over the layers."""
    spare: tuple[str, ...] = ()
    """Names or patterns of layers that are not pruned (and not counted in the density), such as fc3 or conv1."""
    spare_output: bool = False
    """Do not prune the last layer."""
    spare_first_conv: bool = False
    """Do not prune the first convolution."""
    embeddings: bool = False
    """Prune embeddings too. One whose matrix is also the last layer's (tied weights) is pruned in any case, once."""
    half_rate: tuple[str, ...] = ()
    """Names of parameters pruned at half the rate, such as fc3.weight (the output layer in Frankle & Carbin)."""
    keep_at_least: int = 0
    """Weights that each layer keeps at least; with 0 a density that would empty a layer is an error that names it."""
    structured: bool = False
    """Remove whole coupled channels, and train each ticket as a physically smaller network. The rate is of all weights,
    biases and norm parameters that can go. snip, crop are then those of gates on channels (SNAP; structured CroP);
    l1, l2, slimming rank channels too; keep_at_least counts channels, at least 1."""
    multiple: int = 1
    """With structured: channels go in blocks, so that each group that loses any keeps a multiple of this."""

    def __post_init__(self) -> None:
        self.check_budget(trainings="many")
        Step.parse(self.rewind)
        if not 0 < self.rate < 1:
            raise UsageError(f"rate is a share of the remaining weights, 0 < rate < 1, not {self.rate}")
        if not 0 < self.levels <= _MOST_LEVELS:
            raise UsageError(f"levels must lie in 1 … {_MOST_LEVELS}, not {self.levels}")
        if self.retrain:
            check_retrain(self.retrain)
        check_distribution(self.distribution)
        check_at_least(self.keep_at_least)
        if self.structured:
            check_structured(self.distribution, self.half_rate)
        check_multiple(self.multiple, structured=self.structured)
        self.check_structuring(structured=self.structured)
        self.check_pattern(
            structured=self.structured,
            structure=self.structuring is not None,
            half_rate=bool(self.half_rate),
            densities=level_densities(self),
        )

    @property
    def how_retrained(self) -> str:
        """The word of `lab.retrain` that holds."""
        return retrain_after(self.rewind, self.retrain)


def level_densities(settings: Settings) -> tuple[float, ...]:
    """The density of each level from 1 on, falling.

    Raises:
        UsageError: if more than one of densities, density and sparsity is given, or they do not fall.
    """
    if settings.densities:
        if settings.density is not None or settings.sparsity is not None:
            raise UsageError("densities names every level: leave density and sparsity away")
        asked = [check_density(density) for density in settings.densities]
        if asked != sorted(set(asked), reverse=True):
            raise UsageError(f"densities must fall from level to level: {', '.join(map(str, asked))}")
        return tuple(asked)
    by_rate = (_clean((1 - settings.rate) ** level) for level in range(1, _MOST_LEVELS + 1))
    if settings.density is None and settings.sparsity is None:
        return tuple(next(by_rate) for _ in range(settings.levels))
    last = _clean(check_density(settings.density, settings.sparsity))
    found: list[float] = []
    for density in by_rate:
        if density <= last * (1 + 1e-9):
            return (*found, last)
        found.append(density)
    raise UsageError(f"density {last:g} is not reached in {_MOST_LEVELS} levels of rate {settings.rate:g}: raise rate")


def levels(settings: Settings) -> int:
    """How many tickets a replicate will find."""
    return len(level_densities(settings))


def search(lab: Lab, task: Task, recipe: Recipe, settings: Settings, seeds: Seeds) -> Iterator[Found]:
    """One replicate: the dense network, then a ticket for each level."""
    check_score(settings)  # a wrong word is told before the dense network is trained
    check_structure_score(settings)
    retrain = settings.how_retrained
    check_rates(retrain, recipe.schedule)
    full = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=recipe)
    needed = full.total + levels(settings) * own_steps(retrain, full.at(settings.rewind), full.total)
    own, settings = compressed(lab, task, recipe, settings, needed, ("rewind",))
    whole = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=own)
    step = whole.at(settings.rewind)
    dense = lab.train(whole, keep=(step,), label="dense")
    rewound = lab.at(dense, step)
    yield compared(lab, task, recipe, seeds, Found(0, None, rewound, dense, retrain, dense))
    tickets = _Tickets(lab, task, own, settings, seeds, rewound, dense)
    yield from tickets.structured() if settings.structuring else tickets.plain()


class _Tickets:
    """The levels of a replicate, behind its dense network."""

    def __init__(
        self, lab: Lab, task: Task, recipe: Recipe, settings: Settings, seeds: Seeds, rewound: Result, dense: Result
    ) -> None:
        self._lab, self._task, self._recipe, self._settings, self._seeds = lab, task, recipe, settings, seeds
        self._rewound, self._dense, self._retrain = rewound, dense, settings.how_retrained
        self._scope = prunable(lab, task, settings)

    def plain(self) -> Iterator[Found]:
        """Each level's ticket has the mask that the next level goes on from."""
        mask, trained = None, self._dense
        for level, density in enumerate(level_densities(self._settings), start=1):
            mask = self._pruned(trained, mask, density)
            segment = self._segment(mask, trained, shrunk=self._settings.structured)
            trained = self._lab.train(segment, label=f"level {level} ticket")
            yield Found(level, mask, self._rewound, self._dense, self._retrain, trained, pattern=self._settings.pattern)

    def structured(self) -> Iterator[Found]:
        """Each level's ticket has a mask made of the one that the next level goes on from; both are trained."""
        by, last, mask, chain = self._settings.structuring, levels(self._settings), None, [self._dense]
        assert by is not None
        for level, density in enumerate(level_densities(self._settings), start=1):
            trained = chain[-1]
            mask = self._pruned(trained, mask, density)
            own, how = given(self._lab, self._task, trained, mask, by, self._seeds)
            segments = [self._segment(own, trained, shrunk=by.whole_channels)]
            if level < last:
                segments.append(self._segment(mask, trained, shrunk=False))
            labels = [f"level {level} {by.kind} ticket", f"level {level} without structure"]
            found, *more = self._lab.train_many(segments, labels=labels[: len(segments)])
            behind = self._rewound.segment.last
            if self._retrain not in REWINDING:
                behind = sum(each.segment.steps for each in chain)
            yield Found(
                level,
                own,
                self._rewound,
                self._dense,
                self._retrain,
                found,
                searched=tuple(chain),
                behind=behind,
                structured=how,
            )
            chain += more

    def _pruned(self, trained: Result, within: str | None, density: float) -> str:
        return pruned(self._lab, self._task, trained, self._scope, within, density, self._settings, self._seeds)

    def _segment(self, mask: str, trained: Result, *, shrunk: bool) -> Segment:
        from ticketry.lab.retrain import retraining

        return retraining(
            self._lab,
            self._task,
            self._recipe,
            retrain=self._retrain,
            mask=mask,
            rewound=self._rewound,
            trained=trained,
            order_seed=self._seeds.order,
            shrunk=shrunk,
        )


def _clean(density: float) -> float:
    """Without the last bits of a floating-point power: 0.8 ** 5 is 0.32768."""
    return float(f"{density:.12g}")
