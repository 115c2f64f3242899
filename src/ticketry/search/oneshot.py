"""One-shot pruning: train, cut once, train what is left.

The dense network is trained, all weights but the best by a score are removed at once, and what is left is trained
further: at the last learning rate (fine-tuning; Han et al. 2015), from the trained weights with the learning rates from
a step k on (learning-rate rewinding; Renda, Frankle & Carbin 2020), or from the weights of step k (rewinding; Frankle &
Carbin 2019). Several densities are cut from one dense network, each by itself: with a single one this is iterative
pruning (`iterative`) with a single level.

With --structured --score l1 --distribution uniform whole filters go, as many of each layer, and the smaller network is
fine-tuned: EfficientConvNets (Li, Kadav, Durdanovic, Samet & Graf 2017). With --when 0 the network is cut before it is
trained, in one cut by one score, and trained once: SNIP by --score snip (Lee, Ajanthan & Torr 2019), with --structured
SNAP (Verdenius, Stol & Forre 2020). Early pruning (`early`) does the same in several cuts and finds the step.

With --structure what is cut gets a structure before it is trained: whole channels, groups of rows, 2:4 (Chen et al.,
ICML 2022, with other masks than those of iterative pruning).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ticketry.errors import UsageError
from ticketry.lab.found import REWINDING, Found, Seeds, check_rates, retrain_after
from ticketry.search import _densities
from ticketry.search._about import About
from ticketry.search._budget import compared, compressed, own_steps
from ticketry.search._once import pruned_once
from ticketry.search._scope import check_score, prunable, pruned
from ticketry.search._structure import Restructuring, check_structure_score, given
from ticketry.step import Step
from ticketry.tasks.recipe import TO_ZERO

if TYPE_CHECKING:
    from ticketry.lab.lab import Lab
    from ticketry.tasks.base import Task
    from ticketry.tasks.recipe import Recipe


ABOUT = About(
    paper="Han et al. 2015; Renda et al. 2020",
    prunes="after training",
    costs="1 + 1 a density",
)


@dataclass(frozen=True, kw_only=True)
class Settings(Restructuring, _densities.DensitySettings):
    """Settings of one-shot pruning."""

    when: str = "end"
    """When it is cut: end (of the dense training), or a step such as 0, 500it, 5%: then training goes on from there,
    with the optimiser's state, to the end of the same schedule, and rewind and retrain have no meaning."""
    rewind: str = "0"
    """The step k: training after the cut has the length of steps k … T of the schedule (end: the whole length)."""
    retrain: str = ""
    """How what is left is trained: finetune (final weights, last learning rate), rewind_lr (final weights, learning
    rates of steps k..T), continue (the weights of step k, steps k..T) or restart (those, the whole schedule again). By
    default finetune, or rewind_lr where the schedule ends at a rate of 0, at which nothing would change."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_budget(trainings="many" if self.at_end else "one")
        self.check_structuring(structured=self.structured)
        self.check_pattern(structure=self.structuring is not None, densities=())
        retrain_after(self.rewind, self.retrain)
        if not self.at_end and (self.rewind != "0" or self.retrain not in ("", "finetune")):
            raise UsageError(
                f"cut at step {self.when}, training goes on as it was: leave rewind and retrain away, or cut at the end"
            )

    @property
    def at_end(self) -> bool:
        """Whether the dense network is trained to its end before it is cut."""
        return Step.parse(self.when) == Step.parse("end")

    def how_retrained(self, recipe: Recipe) -> str:
        """The word of `lab.retrain` that holds."""
        falls = recipe.schedule in TO_ZERO and Step.parse(self.rewind) != Step.parse("end")
        return retrain_after(self.rewind, self.retrain or ("rewind_lr" if falls else "finetune"))


levels = _densities.levels


def search(lab: Lab, task: Task, recipe: Recipe, settings: Settings, seeds: Seeds) -> Iterator[Found]:
    """One replicate: the dense network, then a pruned one for each density, the densest first."""
    from ticketry.lab.retrain import retraining

    check_score(settings)  # a wrong word is told before the dense network is trained
    check_structure_score(settings)
    full = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=recipe)
    scope = prunable(lab, task, settings)
    if not settings.at_end:
        steps = dict.fromkeys(settings.targets, full.at(settings.when))
        yield from pruned_once(lab, full, scope, steps, settings, seeds)
        return
    retrain = settings.how_retrained(recipe)
    check_rates(retrain, recipe.schedule)
    needed = full.total + own_steps(retrain, full.at(settings.rewind), full.total)
    own, settings = compressed(lab, task, recipe, settings, needed, ("rewind",))
    whole = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=own)
    step = whole.at(settings.rewind)
    dense = lab.train(whole, keep=(step,), label="dense")
    rewound, by = lab.at(dense, step), settings.structuring
    yield compared(lab, task, recipe, seeds, Found(0, None, rewound, dense, retrain, dense))

    def member(level: int, density: float) -> Found:
        mask, how = pruned(lab, task, dense, scope, None, density, settings, seeds), None
        if by is not None:
            mask, how = given(lab, task, dense, mask, by, seeds)
        segment = retraining(
            lab,
            task,
            own,
            retrain=retrain,
            mask=mask,
            rewound=rewound,
            trained=dense,
            order_seed=seeds.order,
            shrunk=settings.structured or (by is not None and by.whole_channels),
        )
        result = lab.train(segment, label=f"density {density:g}")
        behind = step if retrain in REWINDING else whole.total
        return Found(
            level,
            mask,
            rewound,
            dense,
            retrain,
            result,
            searched=(dense,),
            behind=behind,
            structured=how,
            pattern=settings.pattern,
        )

    yield from lab.gather([partial(member, level, each) for level, each in enumerate(settings.targets, start=1)])
