"""Iterative magnitude pruning with rewinding.

Train the network, remove the weights of smallest magnitude, set the rest back to what they were early in training (or
at the start), train again, and so on, level by level. Frankle & Carbin, "The Lottery Ticket Hypothesis" (ICLR 2019):
rewinding to step 0. Frankle, Dziugaite, Roy & Carbin, "Stabilizing the Lottery Ticket Hypothesis" (2019): rewinding to
a step within the first 0.1-7 % of training. Renda, Frankle & Carbin (ICLR 2020): learning-rate rewinding, fine-tuning.
One level is one-shot pruning.

With --structure refill, regroup or 2:4 each level's mask is turned into one that hardware can use (whole channels,
groups of rows, 2:4), which is that level's ticket, while the next level continues from the original mask: Chen et al.,
"Coarsening the Granularity: Towards Structurally Sparse Lottery Tickets" (ICML 2022). Both are trained; with
--structured-levels 1 only the last level has such a ticket, which costs no training more than the search without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import Self

from ticketry.choices import format_value
from ticketry.core.structure.pattern import check_density
from ticketry.errors import UsageError
from ticketry.lab.search_result import REWINDING, Found, Retrain, check_schedule_suits_retrain, choose_retrain
from ticketry.search.common.method import About, Replicate, search_by_replicate
from ticketry.search.common.plan import Training, ticket_training_span
from ticketry.search.common.pruning import (
    apply_ticket_structure,
    check_score_setting,
    compress_to_steps,
    dense_trained_by_full_recipe,
    prunable_scope,
    prune,
    ticket_training_steps,
)
from ticketry.search.common.settings import (
    ALL_STRUCTURES,
    AnyStructure,
    Family,
    ScoreSettings,
    Shares,
    requested_densities,
)
from ticketry.step import Step

if TYPE_CHECKING:
    from ticketry.lab.training.segment import Segment

_MOST_LEVELS = 200


ABOUT = About(
    paper="Frankle & Carbin 2019; Frankle et al. 2019; Renda et al. 2020",
    prunes="after training",
    costs="1 + 1 a level",
)


@dataclass(frozen=True, kw_only=True)
class Settings(ScoreSettings):
    """Settings of iterative magnitude pruning.

    Examples:
        >>> run = tk.run("iterative", levels=2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> [round(ticket.density, 2) for ticket in run.tickets]
        [0.8, 0.64]
    """

    structures: ClassVar[tuple[Family, ...]] = ALL_STRUCTURES
    structure: AnyStructure = "none"
    """Which weights are removed together; `AnyStructure` has the list."""
    rewind: str = "0"
    """The step whose weights tickets start from, such as 500it, 1ep, 3%; 0 is the original hypothesis, end keeps final
    weights."""
    rate: float = 0.2
    """Share of the remaining weights that each level removes."""
    levels: int = 10
    """Number of pruning rounds, each with a ticket; 0.8^10 leaves 10.7 % of the weights."""
    density: Shares = None
    """Fraction of weights retained at the last level, instead of levels. With several (0.2,0.1), the search passes
    each, and lowers the density by rate in between."""
    flops: tuple[float, ...] = ()
    """Share of the dense network's MACs (of the layers that are pruned) that the last level's ticket takes, such as
    0.25 or 25%, in place of density: the budget shrinks by rate from level to level. Several are the budgets of all
    levels. A weight costs one MAC for each position where it is applied."""
    sparsity: Shares = None
    """Fraction removed, instead of density."""
    densities: tuple[float, ...] = ()
    """Fraction of weights retained at every level, instead of rate and levels; a single one is one-shot pruning."""
    structured_levels: int = 0
    """With structure refill, regroup or 2:4: number of last levels that get a ticket with it. Earlier levels are
    trained once, without a structure, and have no ticket. 0: all levels."""
    retrain: Retrain = ""
    """How a ticket is trained: continue (from the rewind step k, steps k..T of the schedule; the default), restart (the
    whole schedule again), rewind_lr (final weights, steps k..T: for a compressed model rather than a ticket) or
    finetune (final weights, last learning rate; the default with rewind end), none (final weights, no training)."""

    instead_of: ClassVar[dict[str, tuple[str, ...]]] = {
        **dict.fromkeys(("density", "sparsity", "flops", "time", "bytes"), ("levels",)),
        "densities": ("rate", "levels"),
    }
    """Setting -> the settings that it replaces, which must not be given together with it."""

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise UsageError(f"rate is a share of the remaining weights, 0 < rate < 1, not {self.rate}")
        if not 0 < self.levels <= _MOST_LEVELS:
            raise UsageError(f"levels must lie in 1 … {_MOST_LEVELS}, not {format_value(self.levels)}")
        super().__post_init__()
        Step.parse(self.rewind)
        if self.structured_levels and self.parsed_structure.tickets is None:
            raise UsageError("structured_levels needs a structure that tickets get: refill, regroup, 2:4")
        if not 0 <= self.structured_levels <= len(self.targets):
            raise UsageError(
                f"structured_levels must lie in 0 … {len(self.targets)}, the levels, not {self.structured_levels}"
            )

    @property
    def finds_ticket_in_one_training(self) -> bool:
        return False

    @cached_property
    def targets(self) -> tuple[float, ...]:
        """Density of each level from 1 on, or its share of the dense cost under a budget, in falling order.

        Raise `UsageError` if the settings contradict each other, or need too many levels.
        """
        shares = self.budget.shares if self.budget else ()
        if len(shares) > 1:
            return shares
        if self.densities:
            if self.density is not None or self.sparsity is not None:
                raise UsageError("densities names every level: leave density and sparsity out")
            named = [check_density(density) for density in self.densities]
            if named != sorted(set(named), reverse=True):
                raise UsageError(f"densities must fall from level to level: {', '.join(map(str, named))}")
            return tuple(named)
        requested = shares or tuple(map(_round_to_12_digits, requested_densities(self.density, self.sparsity)))
        if not requested:
            return tuple(_round_to_12_digits((1 - self.rate) ** level) for level in range(1, self.levels + 1))
        found: list[float] = []
        reached = 1.0
        for wanted in requested:
            steps = 1
            while (density := _round_to_12_digits(reached * (1 - self.rate) ** steps)) > wanted * (1 + 1e-9):
                found.append(density)
                steps += 1
                if len(found) >= _MOST_LEVELS:
                    raise UsageError(
                        f"{self.describe_target(wanted)} is not reached in {_MOST_LEVELS} levels of rate"
                        f" {self.rate:g}: raise rate"
                    )
            found.append(wanted)
            reached = wanted
        return tuple(found)

    @property
    def effective_retrain(self) -> str:
        """How tickets are trained: the setting `retrain`, or its default if it is empty; see `lab.retrain`."""
        return choose_retrain(self.rewind, self.retrain)

    @property
    def ticket_levels(self) -> range:
        """Levels that yield a ticket: all, or the last `structured_levels` ones if this setting is given."""
        last = len(self.targets)
        return range(1 + (last - self.structured_levels if self.structured_levels else 0), last + 1)

    def for_level(self, level: int) -> tuple[Self, int | None]:
        return self, level  # each level needs those before it


def plan(settings: Settings) -> list[Training]:
    """Plan each level's ticket and, if tickets get a structure, the unstructured network that the next level prunes."""
    structured = settings.parsed_structure.tickets is not None
    span = ticket_training_span(settings.effective_retrain, settings.rewind)
    planned: list[Training] = []
    for level, target in enumerate(settings.targets, start=1):
        density = None if settings.budget else target
        if level in settings.ticket_levels:
            planned.append(Training(level=level, density=density, **span))
        if structured and level < len(settings.targets):
            planned.append(Training(density=density, **span))
    return planned


@search_by_replicate
def search(replicate: Replicate, settings: Settings) -> Iterator[Found]:
    """Search one replicate: yield the dense network, then the ticket of each level."""
    check_score_setting(settings)
    retrain = settings.effective_retrain
    check_schedule_suits_retrain(retrain, replicate.recipe.schedule)
    prunable_scope(replicate, settings)  # an error for a budget that cannot be met

    def steps_needed(whole: Segment, settings: Settings) -> int:
        tickets = len(settings.targets) * ticket_training_steps(
            retrain, whole.at(settings.rewind, "rewind"), whole.total
        )
        return whole.total + tickets

    own, settings = compress_to_steps(replicate, settings, steps_needed, ("rewind",))
    whole = own.dense_training
    dense = own.train_dense(whole.at(settings.rewind, "rewind"), retrain=retrain)
    yield dense_trained_by_full_recipe(replicate, dense)
    yield from _train_levels(own, settings, dense)


def _train_levels(replicate: Replicate, settings: Settings, dense: Found) -> Iterator[Found]:
    """Prune and train level by level; yield the ticket of each level.

    If tickets get a structure, a level trains two networks: its ticket, and the unstructured network that the next
    level prunes.
    """
    scope, with_ticket, structured = (
        prunable_scope(replicate, settings),
        settings.ticket_levels,
        settings.parsed_structure.tickets,
    )
    name = f"{settings.structure} ticket" if structured else "ticket"
    mask, chain = None, [dense.result]

    def make_segment(mask: str, shrunk: bool) -> Segment:
        rewound, trained = dense.rewound, chain[-1]
        return replicate.ticket_training(mask, retrain=dense.retrain, rewound=rewound, trained=trained, shrunk=shrunk)

    for level, density in enumerate(settings.targets, start=1):
        mask = prune(replicate, chain[-1], scope, density, settings, within=mask)
        segments = {}
        if level in with_ticket:
            own, derived = apply_ticket_structure(replicate, chain[-1], mask, settings)
            segments[f"level {level} {name}"] = make_segment(own, settings.parsed_structure.trains_smaller_network)
        if structured and level < len(settings.targets):
            segments[f"level {level} without structure"] = make_segment(mask, False)
        found = replicate.lab.train_many([*segments.values()], labels=[*segments])
        if level in with_ticket:
            ticket = replace(dense, level=level, mask=own, result=found[0], structured=derived)
            if structured:
                behind = dense.rewound.segment.last
                if dense.retrain not in REWINDING:
                    behind = sum(each.segment.steps for each in chain)
                yield replace(ticket, searched=tuple(chain), behind=behind)
            else:
                yield replace(ticket, pattern=settings.parsed_structure.pattern, aim=settings.budget_cache_key)
        chain.append(found[-1])


def _round_to_12_digits(density: float) -> float:
    """Round to 12 digits to remove the floating-point error of a power, so that 0.8 ** 5 is 0.32768."""
    return float(f"{density:.12g}")
