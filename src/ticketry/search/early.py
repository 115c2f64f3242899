"""Early pruning: once, before or early in training, by the effect of pruning on the gradient flow.

The dense network is trained until its weights change slowly, then pruned at once to the final density. The remaining
weights are trained to the end of the same schedule, momentum included. Rachwan, Zügner, Charpentier, Geisler, Ayle &
Günnemann, "Winning the Lottery Ahead of Time: Efficient Early Network Pruning" (ICML 2022): EarlyCroP. With --when 0
the network is pruned at initialisation: by CroP (--iterations 1) and CroPit, or, with their scores, by SNIP, GraSP and
SynFlow. Costs one training per density; the part before pruning is shared with the dense network.

With --structure channels whole channels are removed, and training continues in a physically smaller network with the
matching part of the optimiser's state: EarlyCroP-S; with --when 0 CroP-S, or SNAP with --score snip (Verdenius, Stol &
Forre 2020). With --detector masks --score slimming these are Early-Bird tickets (You et al., ICLR 2020).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ticketry.errors import UsageError
from ticketry.lab.search_result import Found
from ticketry.records.network import Moment
from ticketry.search.common.method import About, Replicate, search_by_replicate
from ticketry.search.common.plan import Training
from ticketry.search.common.pruning import check_score_setting, prunable_scope, prune, prune_once
from ticketry.search.common.settings import Family, ScoreSettings
from ticketry.step import Step

if TYPE_CHECKING:
    from ticketry.core.mask import Mask
    from ticketry.core.scope import Scope
    from ticketry.lab.training.segment import Result

SLOWEST = 0.1
"""Lower bound of the default threshold: weights hardly ever change more slowly."""


ABOUT = About(
    paper="Rachwan et al. 2022 (EarlyCroP); pruning at initialisation by any score",
    prunes="before or early in",
    costs="1 a density",
)


@dataclass(frozen=True, kw_only=True)
class Settings(ScoreSettings):
    """Settings of early pruning.

    Examples:
        >>> run = tk.run("early", density=0.2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> [round(ticket.density, 2) for ticket in run.tickets]
        [0.2]
    """

    points: ClassVar[tuple[str, ...]] = ("every", "latest")
    structures: ClassVar[tuple[Family, ...]] = ("blocks", "n:m", "channels")
    structure: str = "none"
    """Weights that are removed together, by their mean score: none (single weights), rows:4, rows:16 (so many
    neighbouring rows, at one column), filters (whole rows of one layer), 2:4 (at most 2 of every 4 inputs), channels
    (whole coupled channels; the network becomes physically smaller), channels:16 (each group that loses any keeps a
    multiple of 16)."""
    score: str = "crop"
    """Score by which the highest weights are retained. With structure channels, snip and crop are those of gates on
    channels (SNAP, structured CroP), and l1, l2 and slimming rank channels too."""
    when: str = "detect"
    """When to prune: detect (the step is chosen by `detector`), or a fixed step such as 0, 500it, 2ep, 5%."""
    detector: Literal["distance", "masks"] = "distance"
    """How the pruning step is detected: distance (the distance of weights from the initialisation changes little;
    EarlyCroP) or masks (five masks in a row are alike; Early-Bird). The compared masks are chosen like the ticket's,
    but by magnitude, or with structure channels by scales of norms."""
    every: str = "1ep"
    """Steps between two measurements of the detector. The network's state at each measurement is stored."""
    threshold: float = 0.0
    """With detector distance: prune once the change between two measurements is below this share of the first change; 0
    stands for the density (as in the published code), but at least 0.1. For channels the published code subtracts 0.1
    from the density, and never detects a step at densities up to 0.1; here channels use the same rule as weights."""
    latest: str = "25%"
    """The step at which the network is pruned if the detector found no earlier step."""
    iterations: int = 0
    """Number of pruning rounds, all at the same training step; each scores the weights that remain. 0 stands for 7, or
    for 1 with structure channels, as in the published code."""
    schedule: Literal["halving", "exponential"] = "halving"
    """How the density falls over the pruning rounds: halving (EarlyCroP) or exponential (SynFlow, Iter-SNIP)."""
    regrow: bool = False
    """Whether weights removed in an earlier round may return (FORCE)."""
    batches: int = 5
    """Batches of training examples that the score uses."""
    batch: int = 128
    """Number of examples in each batch that the score uses."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.when != "detect":
            Step.parse(self.when)
        if self.threshold < 0:
            raise UsageError(f"threshold is a share of the first change, at least 0, not {self.threshold:g}")
        if self.iterations < 0 or self.batches < 1 or self.batch < 1:
            raise UsageError("iterations is at least 0, batches and batch are at least 1")
        if self.parsed_structure.channels and self.regrow:
            raise UsageError("channels that were removed do not return: leave regrow out with structure channels")

    @property
    def pruning_rounds(self) -> int:
        """Number of rounds in which a mask is pruned to its density: `iterations`, or its default."""
        return self.iterations or (1 if self.parsed_structure.channels else 7)

    @property
    def mask_densities(self) -> tuple[float, ...]:
        from ticketry.core.prune import densities  # it imports torch

        return tuple(each for last in self.targets for each in densities(last, self.pruning_rounds, self.schedule))


def plan(settings: Settings) -> list[Training]:
    """Plan one training per density, from the pruning step to the end; a step to be detected counts as the earliest."""
    return settings.plan_tickets(first=settings.every if settings.when == "detect" else settings.when)


@search_by_replicate
def search(replicate: Replicate, settings: Settings) -> Iterator[Found]:
    """Search one replicate: yield the dense network, then the ticket of each density, the densest first."""
    from ticketry.lab.costs.ledger import Sample

    check_score_setting(settings)
    whole = replicate.dense_training
    scope = prunable_scope(replicate, settings)
    moments: dict[float, Moment] = {}
    if settings.when == "detect":
        for name in settings.points:
            whole.at(getattr(settings, name), name)  # an error names the point
        moments = {density: _detect_pruning_step(replicate, scope, settings, density) for density in settings.targets}
        steps = {density: moments[density].step for density in settings.targets}
    else:
        steps = dict.fromkeys(settings.targets, whole.at(settings.when, "when"))
    cuts: dict[str, Any] = {"iterations": settings.pruning_rounds, "schedule": settings.schedule}
    if not settings.parsed_structure.channels:
        cuts["regrow"] = settings.regrow
    sample = Sample(settings.batches, settings.batch, replicate.seeds.mask)
    yield from prune_once(replicate, scope, steps, settings, moments=moments, sample=sample, **cuts)


def _detect_pruning_step(replicate: Replicate, scope: Scope, settings: Settings, density: float) -> Moment:
    """Return the step at which to prune to `density`, with the measurements by which this step was detected.

    The dense network is trained only as far as the detector needs.
    """
    from ticketry.core.sparse_training.mask_dynamics import (
        COMPARED_MASKS,
        LARGEST_MASK_DISTANCE,
        first_slow_checkpoint,
        first_stable_checkpoint,
        hamming_distance,
    )

    lab, whole, by_masks = replicate.lab, replicate.dense_training, settings.detector == "masks"

    def train_dense_to(step: int) -> Result:
        return lab.train(whole.shortened_to(step), label=f"dense to step {step}", measure=False)

    every, latest = max(whole.at(settings.every), 1), whole.at(settings.latest)
    threshold = LARGEST_MASK_DISTANCE if by_masks else settings.threshold or max(density, SLOWEST)
    start = None if by_masks else train_dense_to(0)
    masks: list[Mask] = []
    measured: list[tuple[int, float]] = []
    spent, chosen, found = 0.0, latest, False
    for step in range(every, latest + 1, every):
        state = train_dense_to(step)
        if start is None:
            mask, seconds = _choose_mask_to_compare(replicate, state, scope, settings, density)
            masks = [*masks[1 - COMPARED_MASKS :], mask]
            if len(masks) > 1:
                measured.append((step, hamming_distance(masks[-2], masks[-1])))
            found = first_stable_checkpoint(masks) is not None
        else:
            distance, seconds = lab.distance(state, start, scope)
            measured.append((step, distance))
            found = first_slow_checkpoint([value for _, value in measured], threshold) is not None
        spent += seconds
        if found:
            chosen = step
            break
    return Moment(chosen, found, settings.detector, threshold, tuple(measured), round(spent, 3))


def _choose_mask_to_compare(
    replicate: Replicate, state: Result, scope: Scope, settings: Settings, density: float
) -> tuple[Mask, float]:
    """Return the mask by magnitude for a state and a density, and the seconds that choosing the mask took.

    If channels are pruned, the mask covers only norm scales, which have one element per channel.
    """
    from ticketry.core.mask import Mask
    from ticketry.core.structure.layout import find_roles

    lab, structured = replicate.lab, settings.parsed_structure.channels
    # Latencies are estimated: a moment that depended on timings would not be reproducible.
    settings = replace(settings, score="slimming" if structured else "magnitude", measured=False)
    try:
        digest = prune(replicate, state, scope, density, settings)
    except UsageError as error:
        raise UsageError(f"detector masks: {error}; or use detector distance") from None
    mask, seconds = lab.store.get_mask(digest), lab.mask_costs[digest].seconds
    if structured:
        scales = find_roles(lab.model(replicate.task)).scales
        mask = Mask({name: mask[name] for name in mask if name in scales})
    return mask, seconds
