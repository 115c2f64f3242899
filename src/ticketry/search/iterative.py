"""Iterative magnitude pruning with rewinding.

Train the network, remove the weights of smallest magnitude, set the rest back to what they were early in training (or
at the start), train again, and so on, level by level. Frankle & Carbin, "The Lottery Ticket Hypothesis" (ICLR 2019):
rewinding to step 0. Frankle, Dziugaite, Roy & Carbin, "Stabilizing the Lottery Ticket Hypothesis" (2019): rewinding to
a step within the first 0.1-7 % of training. Renda, Frankle & Carbin (ICLR 2020): learning-rate rewinding, fine-tuning.
One level is one-shot pruning.

With --structure each level's mask is turned into one that hardware can use (whole channels, groups of rows, 2:4), which
is that level's ticket, while the next level goes on from the mask as it was: Chen et al., "Coarsening the Granularity:
Towards Structurally Sparse Lottery Tickets" (ICML 2022). It costs the trainings of both; with --structured-levels 1
only the last level has such a ticket, which costs no training more than the search without a structure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ticketry.choices import format_value
from ticketry.core.structure.pattern import check_density
from ticketry.errors import UsageError
from ticketry.lab.search_result import REWINDING, Found, Retrain, Structured, check_rates, retrain_after
from ticketry.search.common.aims import Aimed, goal
from ticketry.search.common.budget import Budgeted, compared, compressed, own_steps
from ticketry.search.common.densities import Shares, requested_densities
from ticketry.search.common.method import About, Replicate, on_replicate
from ticketry.search.common.plan import Training, ticket_span
from ticketry.search.common.scope import ScoredParts, check_score, prunable, pruned, shrinks
from ticketry.search.common.structure import Restructuring, check_structure_score, given
from ticketry.step import Step

if TYPE_CHECKING:
    from ticketry.lab.training.segment import Result, Segment

_MOST_LEVELS = 200


ABOUT = About(
    paper="Frankle & Carbin 2019; Frankle et al. 2019; Renda et al. 2020",
    prunes="after training",
    costs="1 + 1 a level",
)


@dataclass(frozen=True, kw_only=True)
class Settings(Aimed, Restructuring, ScoredParts, Budgeted):
    """Settings of iterative magnitude pruning.

    Examples:
        >>> run = tk.run("iterative", levels=2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> [round(ticket.density, 2) for ticket in run.tickets]
        [0.8, 0.64]
    """

    rewind: str = "0"
    """Where tickets start: a step such as 500it, 1ep, 3%; 0 is the original hypothesis, end keeps the final weights."""
    rate: float = 0.2
    """Share of the remaining weights that each level removes."""
    levels: int = 10
    """How many times; 0.8^10 leaves 10.7 % of the weights."""
    density: Shares = None
    """Fraction of weights kept at the last level, instead of levels; of several (0.2,0.1) each is that of a level, and
    rate leads from one to the next."""
    flops: tuple[float, ...] = ()
    """Share of the dense network's multiplications (of the layers that are pruned) that the last level's ticket takes,
    such as 0.25 or 25%, in place of density: the budget shrinks by rate from level to level. Several are the budgets of
    all levels. Each weight is charged as many as there are places it is applied at, and the most score is kept."""
    sparsity: Shares = None
    """Fraction removed, instead of density."""
    densities: tuple[float, ...] = ()
    """The fraction of weights kept at every level, instead of rate and levels; a single one is one-shot pruning."""
    structured_levels: int = 0
    """Of structure: how many of the last levels get a ticket with it; those before are trained once, as they are, to go
    on from, and have no ticket. 0: all levels."""
    retrain: Retrain = ""
    """How a ticket is trained: continue (from the rewind step k, steps k..T of the schedule; the default), restart (the
    whole schedule again), rewind_lr (final weights, steps k..T: for a compressed model rather than a ticket) or
    finetune (final weights, last learning rate; the default with rewind end), none (final weights as they are)."""

    instead_of: ClassVar[dict[str, tuple[str, ...]]] = {
        **dict.fromkeys(("density", "sparsity", "flops", "time", "bytes"), ("levels",)),
        "densities": ("rate", "levels"),
    }
    """Settings, and those of which no notice is taken beside them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_budget()
        Step.parse(self.rewind)
        if not 0 < self.rate < 1:
            raise UsageError(f"rate is a share of the remaining weights, 0 < rate < 1, not {self.rate}")
        if not 0 < self.levels <= _MOST_LEVELS:
            raise UsageError(f"levels must lie in 1 … {_MOST_LEVELS}, not {format_value(self.levels)}")
        self.check_aim()
        densities = level_densities(self)
        self.check_masks(densities)
        if self.structured_levels and self.structuring is None:
            raise UsageError("structured_levels needs a structure that tickets are given: refill, regroup, 2:4")
        if not 0 <= self.structured_levels <= len(densities):
            raise UsageError(
                f"structured_levels must lie in 0 … {len(densities)}, the levels, not {self.structured_levels}"
            )

    @property
    def sparsest(self) -> float:
        return level_densities(self)[-1]

    @property
    def how_retrained(self) -> str:
        """The word of `lab.retrain` that holds."""
        return retrain_after(self.rewind, self.retrain)

    def tickets(self) -> int:
        """How many tickets a replicate will find."""
        return self.structured_levels or len(level_densities(self))

    def ticket_levels(self) -> dict[int, float]:
        """The levels that have a ticket, counted from 1, with their densities."""
        return dict([*enumerate(level_densities(self), start=1)][-self.tickets() :])


def level_densities(settings: Settings) -> tuple[float, ...]:
    """The density of each level from 1 on, falling; of settings with a budget the share of that, see `Aimed`.

    Raises:
        UsageError: if more than one of densities, density and sparsity is given, or densities do not fall.
    """
    if len(settings.shares) > 1:
        return settings.shares
    if settings.densities:
        if settings.density is not None or settings.sparsity is not None:
            raise UsageError("densities names every level: leave density and sparsity away")
        asked = [check_density(density) for density in settings.densities]
        if asked != sorted(set(asked), reverse=True):
            raise UsageError(f"densities must fall from level to level: {', '.join(map(str, asked))}")
        return tuple(asked)
    requested = settings.shares or tuple(map(_clean, requested_densities(settings.density, settings.sparsity)))
    if not requested:
        return tuple(_clean((1 - settings.rate) ** level) for level in range(1, settings.levels + 1))
    found: list[float] = []
    reached = 1.0
    for wanted in requested:
        steps = 1
        while (density := _clean(reached * (1 - settings.rate) ** steps)) > wanted * (1 + 1e-9):
            found.append(density)
            steps += 1
            if len(found) >= _MOST_LEVELS:
                raise UsageError(
                    f"{goal(settings, wanted)} is not reached in {_MOST_LEVELS} levels of rate {settings.rate:g}:"
                    " raise rate"
                )
        found.append(wanted)
        reached = wanted
    return tuple(found)


def plan(settings: Settings) -> list[Training]:
    """Plan a ticket for each level; with a structure also the network without it that the next level goes on from."""
    structured, tickets, plain = settings.structuring is not None, settings.ticket_levels(), settings
    if structured:
        without: dict[str, Any] = {one.name: one.default for one in fields(Restructuring)}
        plain = replace(settings, **without, structured_levels=0)
    how: dict[str, Any] = {
        **ticket_span(settings.how_retrained, settings.rewind),
        "line": repr(replace(plain, levels=1)),  # the first levels are the same, however many follow
    }
    planned: list[Training] = []
    for level, target in enumerate(densities := level_densities(settings), start=1):
        density = None if settings.aim else target
        if level in tickets:
            planned.append(Training(level=level, density=density, shared=None if structured else plain, **how))
        if structured and level < len(densities):
            planned.append(Training(density=density, shared=plain, **how))
    return planned


@on_replicate
def search(replicate: Replicate, settings: Settings) -> Iterator[Found]:
    """One replicate: the dense network, then a ticket for each level."""
    check_score(settings)  # a wrong word is told before the dense network is trained
    check_structure_score(settings)
    retrain = settings.how_retrained
    check_rates(retrain, replicate.recipe.schedule)
    prunable(replicate, settings)  # so is a budget that cannot be met

    def needed(whole: Segment, settings: Settings) -> int:
        tickets = len(level_densities(settings)) * own_steps(retrain, whole.at(settings.rewind, "rewind"), whole.total)
        return whole.total + tickets

    own, settings = compressed(replicate, settings, needed, ("rewind",))
    whole = own.whole
    dense = own.dense(whole.at(settings.rewind, "rewind"), retrain=retrain)
    yield compared(replicate, dense)
    tickets = _Tickets(own, settings, dense)
    yield from tickets.structured() if settings.structuring else tickets.plain()


class _Tickets:
    """The levels of a replicate, behind its dense network."""

    def __init__(self, replicate: Replicate, settings: Settings, dense: Found) -> None:
        self._replicate, self._settings, self._dense = replicate, settings, dense
        self._scope = prunable(replicate, settings)

    def plain(self) -> Iterator[Found]:
        """Each level's ticket has the mask that the next level goes on from."""
        mask, trained = None, self._dense.result
        for level, density in enumerate(level_densities(self._settings), start=1):
            mask = self._pruned(trained, mask, density)
            segment = self._segment(mask, trained, shrunk=shrinks(self._settings))
            trained = self._replicate.lab.train(segment, label=f"level {level} ticket")
            yield replace(
                self._dense,
                level=level,
                mask=mask,
                result=trained,
                pattern=self._settings.pattern,
                aim=self._settings.terms,
            )

    def structured(self) -> Iterator[Found]:
        """Tickets have masks made of those that the next level goes on from; both are trained."""
        densities, with_ticket = level_densities(self._settings), self._settings.ticket_levels()
        last, mask, chain = len(densities), None, [self._dense.result]
        for level, density in enumerate(densities, start=1):
            trained = chain[-1]
            mask = self._pruned(trained, mask, density)
            segments = {}
            if level in with_ticket:
                own, how = given(self._replicate, trained, mask, self._settings)
                label = f"level {level} {self._settings.structure} ticket"
                segments[label] = self._segment(own, trained, shrunk=shrinks(self._settings))
            if level < last:
                segments[f"level {level} without structure"] = self._segment(mask, trained, shrunk=False)
            found = self._replicate.lab.train_many([*segments.values()], labels=[*segments])
            if level in with_ticket:
                yield self._ticket(level, own, found[0], how, chain)
            if level < last:
                chain.append(found[-1])

    def _ticket(self, level: int, mask: str, found: Result, how: Structured | None, chain: list[Result]) -> Found:
        """A ticket with a structure, and all that was trained to find it."""
        behind = self._dense.rewound.segment.last
        if self._dense.retrain not in REWINDING:
            behind = sum(each.segment.steps for each in chain)
        return replace(
            self._dense,
            level=level,
            mask=mask,
            result=found,
            searched=tuple(chain),
            behind=behind,
            structured=how,
        )

    def _pruned(self, trained: Result, within: str | None, density: float) -> str:
        return pruned(self._replicate, trained, self._scope, density, self._settings, within=within)

    def _segment(self, mask: str, trained: Result, *, shrunk: bool) -> Segment:
        begun = self._dense
        return self._replicate.retrained(
            mask, retrain=begun.retrain, rewound=begun.rewound, trained=trained, shrunk=shrunk
        )


def _clean(density: float) -> float:
    """Without the last bits of a floating-point power: 0.8 ** 5 is 0.32768."""
    return float(f"{density:.12g}")
