"""One-shot pruning: train, cut once, train what is left.

The dense network is trained, all weights but the best by a score are removed at once, and what is left is trained
further: at the last learning rate (fine-tuning; Han et al. 2015), from the trained weights with the learning rates from
a step k on (learning-rate rewinding; Renda, Frankle & Carbin 2020), or from the weights of step k (rewinding; Frankle &
Carbin 2019). Several densities are cut from one dense network, each by itself: with a single one this is iterative
pruning (`iterative`) with a single level.

With --structured --score l1 --distribution uniform whole filters are removed, the same share of each layer, and the
smaller network is fine-tuned: EfficientConvNets (Li, Kadav, Durdanovic, Samet & Graf 2017). With --when 0 the network
is cut before it is trained, in one cut by one score, and trained once: SNIP by --score snip (Lee, Ajanthan & Torr
2019), with --structured SNAP (Verdenius, Stol & Forre 2020). Early pruning (`early`) does the same in several
cuts and finds the step.

With --structure what is cut gets a structure before it is trained: whole channels, groups of rows, 2:4 (Chen et al.,
ICML 2022, with other masks than those of iterative pruning).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ticketry.errors import UsageError
from ticketry.lab.search_result import REWINDING, Found, Retrain, check_rates, retrain_after
from ticketry.search.common import densities
from ticketry.search.common.aims import goal
from ticketry.search.common.budget import compared, compressed, own_steps
from ticketry.search.common.method import About, Replicate, on_replicate
from ticketry.search.common.plan import Training, ticket_span
from ticketry.search.common.pruned_once import pruned_once
from ticketry.search.common.scope import check_score, prunable, pruned, shrinks
from ticketry.search.common.structure import Restructuring, check_structure_score, given
from ticketry.step import Step
from ticketry.tasks.recipe import TO_ZERO, Recipe

if TYPE_CHECKING:
    from ticketry.lab.training.segment import Segment

ABOUT = About(
    paper="Han et al. 2015; Renda et al. 2020",
    prunes="after training",
    costs="1 + 1 a density",
)


@dataclass(frozen=True, kw_only=True)
class Settings(Restructuring, densities.DensitySettings):
    """Settings of one-shot pruning.

    Examples:
        >>> run = tk.run("oneshot", density=0.2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> [round(ticket.density, 2) for ticket in run.tickets]
        [0.2]
    """

    when: str = "end"
    """When it is cut: end (of the dense training), or a step such as 0, 500it, 5%: then training goes on from there,
    with the optimiser's state, to the end of the same schedule, and rewind and retrain have no meaning."""
    rewind: str = "0"
    """The step k: training after the cut has the length of steps k … T of the schedule (end: the whole length)."""
    retrain: Retrain = ""
    """How what is left is trained: finetune (final weights, last learning rate), rewind_lr (final weights, learning
    rates of steps k..T), continue (the weights of step k, steps k..T) or restart (those, the whole schedule again). By
    default finetune, or rewind_lr where the schedule ends at a rate of 0, at which nothing would change."""

    def __post_init__(self) -> None:
        super().__post_init__()
        retrain_after(self.rewind, self.retrain)
        if not self.at_end and (self.rewind != "0" or self.retrain not in ("", "finetune")):
            raise UsageError(
                f"cut at step {self.when}, training goes on as it was: leave rewind and retrain away, or cut at the end"
            )

    @property
    def one_training(self) -> bool:
        return not self.at_end

    @property
    def at_end(self) -> bool:
        """Whether the dense network is trained to its end before it is cut."""
        return Step.parse(self.when) == Step.parse("end")

    def how_retrained(self, recipe: Recipe) -> str:
        """The word of `lab.retrain` that holds."""
        falls = recipe.schedule in TO_ZERO and Step.parse(self.rewind) != Step.parse("end")
        return retrain_after(self.rewind, self.retrain or ("rewind_lr" if falls else "finetune"))


def plan(settings: Settings) -> list[Training]:
    """Plan a training for each density."""
    if not settings.at_end:
        return settings.plan_tickets(first=settings.when)
    return settings.plan_tickets(**ticket_span(settings.retrain or "finetune", settings.rewind))


@on_replicate
def search(replicate: Replicate, settings: Settings) -> Iterator[Found]:
    """One replicate: the dense network, then a pruned one for each density, the densest first."""
    check_score(settings)  # a wrong word is told before the dense network is trained
    check_structure_score(settings)
    full, recipe = replicate.whole, replicate.recipe
    scope = prunable(replicate, settings)
    if not settings.at_end:
        steps = dict.fromkeys(settings.targets, full.at(settings.when, "when"))
        yield from pruned_once(replicate, scope, steps, settings)
        return
    retrain = settings.how_retrained(recipe)
    check_rates(retrain, recipe.schedule)

    def needed(whole: Segment, settings: Settings) -> int:
        return whole.total + own_steps(retrain, whole.at(settings.rewind, "rewind"), whole.total)

    own, settings = compressed(replicate, settings, needed, ("rewind",))
    step = own.whole.at(settings.rewind, "rewind")
    begun = own.dense(step, retrain=retrain)
    rewound, dense = begun.rewound, begun.dense
    yield compared(replicate, begun)

    def member(level: int, density: float) -> Found:
        mask, how = given(own, dense, pruned(own, dense, scope, density, settings), settings)
        segment = own.retrained(mask, retrain=retrain, rewound=rewound, trained=dense, shrunk=shrinks(settings))
        result = own.lab.train(segment, label=goal(settings, density))
        return replace(
            begun,
            level=level,
            mask=mask,
            result=result,
            searched=(dense,),
            behind=step if retrain in REWINDING else own.whole.total,
            structured=how,
            pattern=settings.pattern,
            aim=settings.terms,
        )

    yield from replicate.side_by_side(member, settings.targets)
