"""One-shot pruning: train, prune once, train what is left.

The dense network is trained, all weights but those of the highest score are removed at once, and the remaining weights
are trained further: at the last learning rate (fine-tuning; Han et al. 2015), from the trained weights with the
learning rates from a step k on (learning-rate rewinding; Renda, Frankle & Carbin 2020), or from the weights of step k
(rewinding; Frankle & Carbin 2019). Several densities are pruned from one dense network, each alone; with a single
density this is iterative pruning (`iterative`) with a single level.

With --structure channels --score l1 --distribution uniform whole filters are removed, the same share of each layer, and
the smaller network is fine-tuned: EfficientConvNets (Li, Kadav, Durdanovic, Samet & Graf 2017). With --when 0 the
network is pruned before it is trained, once, by one score: SNIP with --score snip (Lee, Ajanthan & Torr 2019), with
--structure channels SNAP (Verdenius, Stol & Forre 2020). Early pruning (`early`) does the same in several rounds and
detects the step.

With --structure refill, regroup or 2:4 the mask is turned into whole channels, groups of rows or 2:4 before the ticket
is trained (Chen et al., ICML 2022, with other masks than those of iterative pruning).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

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
    prune_once,
    ticket_training_steps,
)
from ticketry.search.common.settings import ALL_STRUCTURES, AnyStructure, Family, ScoreSettings
from ticketry.step import Step
from ticketry.tasks.recipe import TO_ZERO, Recipe

if TYPE_CHECKING:
    from ticketry.lab.training.segment import Segment

ABOUT = About(paper="Han et al. 2015; Renda et al. 2020", prunes="after training", costs="1 + 1 a density")


@dataclass(frozen=True, kw_only=True)
class Settings(ScoreSettings):
    """Settings of one-shot pruning.

    Examples:
        >>> run = tk.run("oneshot", density=0.2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> [round(ticket.density, 2) for ticket in run.tickets]
        [0.2]
    """

    structures: ClassVar[tuple[Family, ...]] = ALL_STRUCTURES
    structure: AnyStructure = "none"
    """Which weights are removed together; `AnyStructure` has the list."""
    when: str = "end"
    """When to prune: end (of the dense training), or a step such as 0, 500it, 5%. After a step, training continues with
    the optimiser's state to the end of the same schedule, and rewind and retrain cannot be given."""
    rewind: str = "0"
    """The step k to rewind to: after pruning, steps k … T of the schedule are trained (end: as many as all steps)."""
    retrain: Retrain = ""
    """How the remaining weights are trained after pruning: finetune (final weights, last learning rate), rewind_lr
    (final weights, learning rates of steps k..T), continue (weights of step k, steps k..T) or restart (weights of step
    k, the whole schedule again). By default finetune; rewind_lr if the schedule's last learning rate is 0, with which
    nothing would change."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choose_retrain(self.rewind, self.retrain)
        if not self.prunes_at_end and (self.rewind != "0" or self.retrain not in ("", "finetune")):
            raise UsageError(
                f"cut at step {self.when}, training continues unchanged: leave rewind and retrain out, or cut at end"
            )

    @property
    def finds_ticket_in_one_training(self) -> bool:
        return not self.prunes_at_end

    @property
    def prunes_at_end(self) -> bool:
        """Whether the dense network is trained to the end of the schedule before it is pruned."""
        return Step.parse(self.when) == Step.parse("end")

    def effective_retrain(self, recipe: Recipe) -> str:
        """Return how tickets are trained: the setting `retrain`, or its default for `recipe` if it is empty."""
        falls = recipe.schedule in TO_ZERO and Step.parse(self.rewind) != Step.parse("end")
        return choose_retrain(self.rewind, self.retrain or ("rewind_lr" if falls else "finetune"))


def plan(settings: Settings) -> list[Training]:
    """Plan one ticket for each density."""
    if not settings.prunes_at_end:
        return settings.plan_tickets(first=settings.when)
    return settings.plan_tickets(**ticket_training_span(settings.retrain or "finetune", settings.rewind))


@search_by_replicate
def search(replicate: Replicate, settings: Settings) -> Iterator[Found]:
    """Search one replicate: yield the dense network, then the ticket of each density, the densest first."""
    check_score_setting(settings)
    full, recipe = replicate.dense_training, replicate.recipe
    scope = prunable_scope(replicate, settings)
    if not settings.prunes_at_end:
        steps = dict.fromkeys(settings.targets, full.at(settings.when, "when"))
        yield from prune_once(replicate, scope, steps, settings)
        return
    retrain = settings.effective_retrain(recipe)
    check_schedule_suits_retrain(retrain, recipe.schedule)

    def steps_needed(whole: Segment, settings: Settings) -> int:
        return whole.total + ticket_training_steps(retrain, whole.at(settings.rewind, "rewind"), whole.total)

    own, settings = compress_to_steps(replicate, settings, steps_needed, ("rewind",))
    step = own.dense_training.at(settings.rewind, "rewind")
    begun = own.train_dense(step, retrain=retrain)
    rewound, dense = begun.rewound, begun.dense
    yield dense_trained_by_full_recipe(replicate, begun)

    def find_ticket(level: int, density: float) -> Found:
        mask, derived = apply_ticket_structure(own, dense, prune(own, dense, scope, density, settings), settings)
        segment = own.ticket_training(
            mask,
            retrain=retrain,
            rewound=rewound,
            trained=dense,
            shrunk=settings.parsed_structure.trains_smaller_network,
        )
        result = own.lab.train(segment, label=settings.describe_target(density))
        return replace(
            begun,
            level=level,
            mask=mask,
            result=result,
            searched=(dense,),
            behind=step if retrain in REWINDING else own.dense_training.total,
            structured=derived,
            pattern=settings.parsed_structure.pattern,
            aim=settings.budget_cache_key,
        )

    yield from replicate.find_each(find_ticket, settings.targets)
