"""Concrete Ticket Search: masks trained over frozen early weights to an exact density.

Weights stay as they are at a step k early in dense training; each is multiplied by a gate, drawn anew at each step from
a binary-concrete distribution, and the logits of the gates are trained so that the sparse network's outputs come close
to those of the dense one at the same weights. The ticket has the weights of step k and exactly the wanted number of
weights, those of the highest probabilities; it is then trained as after rewinding. One search a density, side by side.
Arora & Teuscher, "Winning the Lottery by Preserving Network Training Dynamics with Concrete Ticket Search" (2025, arXiv
2512.07142).

From the paper: the relaxation, the balance of gradients that steers the expected density (GradBalance), the reverse KL
divergence as objective (CTS-KL), the task's loss as an alternative. From the authors' public code, where the text that
we could read leaves it open: both networks in eval mode, but with batch norms that normalise by the batch at hand (here
they leave the running statistics of step k alone; in the code they keep none); no augmentation; logits that all begin
at that of the density; Adam at 0.1, a tenth of it after 88 % of the steps; temperature 2/3; a target of 1.1 times the
density in the balance, the mask taking the best; one draw a step for the whole batch; rewinding to epoch 9 of 160
(ResNet-20); masks trained for 12.5, 50 or 100 % of a training. Ours: of these the longest; a data order of its own;
ties by position; which layers have gates, and that none may come out empty; none of the paper's other objectives but
the KL divergence of the other direction. The dense network is trained to the end to compare with: the search needs its
first k steps only, and these are counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ticketry.core.density import check_density, kept_elements
from ticketry.errors import LayerCollapseError, UsageError
from ticketry.lab.found import REWINDING, Found, Seeds, retrain_after
from ticketry.search._about import About
from ticketry.search._budget import Budgeted, compressed, own_steps
from ticketry.search._scope import prunable
from ticketry.step import Step

if TYPE_CHECKING:
    from ticketry.core.scope import Scope
    from ticketry.lab.gating import Gating
    from ticketry.lab.lab import Lab, Result
    from ticketry.lab.segment import Segment
    from ticketry.tasks.base import Task
    from ticketry.tasks.recipe import Recipe

_DENSITY = 0.1
_DROP = "88%"
"""Of the mask training, after which its learning rate is a tenth."""


ABOUT = About(
    paper="Arora & Teuscher 2025",
    prunes="early, by soft masks",
    costs="2 a density",
)


@dataclass(frozen=True, kw_only=True)
class Settings(Budgeted):
    """Settings of Concrete Ticket Search."""

    rewind: str = "6%"
    """Where tickets start, and whose weights the masks are trained over: a step such as 9ep, 500it, 6%; 0 is the
    initialisation."""
    density: tuple[float, ...] = ()
    """Share kept by the ticket; several are searched side by side (0.1 0.02). 0.1 if neither this nor sparsity is
    given."""
    sparsity: tuple[float, ...] = ()
    """Share removed, instead of density."""
    mask_length: str = "100%"
    """How long masks are trained: a step such as 20ep, 500it, or a share of the recipe's length."""
    objective: str = "reverse_kl"
    """What masks are trained for: reverse_kl (outputs as the dense network's, CTS-KL), forward_kl, or loss (of the
    task)."""
    temperature: float = 2 / 3
    """Of the draws, above 0 and at most 1; the lower, the nearer gates are to 0 and 1."""
    gate_lr: float = 0.1
    """Learning rate of the gates, by Adam; a tenth of it in the last 12 % of mask training."""
    collapse: str = "raise"
    """What to do where no gate of a layer is among the best: raise (an error), or keep its best weight in place of the
    worst one kept of the largest layer."""
    retrain: str = ""
    """How a ticket is trained: continue (from the rewind step k, steps k..T of the schedule; the default) or restart
    (the whole schedule again)."""
    spare: tuple[str, ...] = ()
    """Names or patterns of layers that have no gates (and do not count in the density), such as fc3 or conv1."""
    spare_output: bool = False
    """No gates on the last layer."""
    spare_first_conv: bool = False
    """No gates on the first convolution."""
    embeddings: bool = False
    """Prune embeddings too. One whose matrix is also the last layer's (tied weights) is pruned in any case, once."""

    def __post_init__(self) -> None:
        self.check_budget(trainings="many")
        if self.how_retrained not in REWINDING:
            raise UsageError(
                f"masks are found over the weights of the rewind step, and no others are trained: retrain is"
                f" {' or '.join(REWINDING)}, not {self.how_retrained}"
            )
        if self.collapse not in ("raise", "keep"):
            raise UsageError(f"collapse is raise or keep, not {self.collapse!r}")
        if Step.parse(self.mask_length).value <= 0:
            raise UsageError(f"mask_length is how long masks are trained, above 0, not {self.mask_length}")
        if len(set(self.densities)) < len(self.densities):
            raise UsageError("density names each share once")
        if self.densities[0] == 1:
            raise UsageError("a ticket of density 1 is the dense network: ask for less")

    @property
    def densities(self) -> tuple[float, ...]:
        """Those asked for, falling; `UsageError` for what is none."""
        if self.density and self.sparsity:
            raise UsageError("give either density (share kept) or sparsity (share removed)")
        kept = [check_density(one) for one in self.density] + [check_density(sparsity=one) for one in self.sparsity]
        return tuple(sorted(kept or [_DENSITY], reverse=True))

    @property
    def how_retrained(self) -> str:
        """The word of `lab.retrain` that holds."""
        return retrain_after(self.rewind, self.retrain)


def levels(settings: Settings) -> int:
    """How many tickets a replicate will find."""
    return len(settings.densities)


def search(lab: Lab, task: Task, recipe: Recipe, settings: Settings, seeds: Seeds) -> Iterator[Found]:
    """One replicate: the dense network, to compare with, then a ticket for each density, the densest first."""
    from ticketry.lab.objective import check_task

    scope = prunable(lab, task, settings)
    full = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=recipe)
    kept = full.at(settings.rewind)
    needed = kept + mask_steps(settings, full) + own_steps(settings.how_retrained, kept, full.total)
    own, settings = compressed(lab, task, recipe, settings, needed, ("rewind", "mask_length"))
    whole = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=own)
    step = whole.at(settings.rewind)
    plan = [(_gating(scope, settings, density, seeds), density) for density in settings.densities]
    masks = _mask_recipe(own, settings, mask_steps(settings, whole))
    if settings.objective != "loss":
        check_task(lab, task)
    dense = lab.train(full, keep=(kept,), label="dense")
    early = lab.at(dense, kept) if own == recipe else lab.train(whole.until(step), label="dense", measure=False)
    yield Found(0, None, early, dense, settings.how_retrained, dense)

    def one(level: int, gating: Gating, density: float) -> Found:
        trained = _trained_gates(lab, task, masks, gating, early, seeds, f"density {density:g} mask")
        return _ticket(lab, task, own, settings, seeds, level, density, early, trained, dense)

    pieces = [partial(one, level, gating, density) for level, (gating, density) in enumerate(plan, start=1)]
    yield from lab.gather(pieces)


def _gating(scope: Scope, settings: Settings, density: float, seeds: Seeds) -> Gating:
    from ticketry.core.gates import BinaryConcrete
    from ticketry.core.seeds import mix
    from ticketry.lab.gating import Gating

    kept = kept_elements(density, scope.total)
    if kept < len(scope):
        raise LayerCollapseError(
            f"density {density:g} keeps {kept} of {scope.total} weights, too few for one in each of the"
            f" {len(scope)} layers: choose a higher density, or spare layers"
        )
    return Gating(
        scope=tuple(scope),
        kind=BinaryConcrete.name,
        init=round(math.log(density / (1 - density)), 9),
        penalty=0.0,
        optimizer="adam",
        lr=settings.gate_lr,
        seed=mix(seeds.mask, "concrete"),
        frozen=True,
        objective=settings.objective,
        density=density,
        temperature=settings.temperature,
    )


def mask_steps(settings: Settings, whole: Segment) -> int:
    """How long masks are trained beside a schedule."""
    length = Step.parse(settings.mask_length)
    return max(length.iterations(total=whole.total, per_epoch=whole.per_epoch), 1)


def _mask_recipe(recipe: Recipe, settings: Settings, steps: int) -> Recipe:
    """How the gates are trained: of the weights' recipe it has what their data and loss need."""
    from ticketry.tasks.recipe import Recipe as Made

    return Made(
        length=f"{steps}it",
        batch=recipe.batch,
        optimizer="adam",
        lr=settings.gate_lr,
        schedule="multistep",
        milestones=(_DROP,),
        label_smoothing=recipe.label_smoothing if settings.objective == "loss" else 0.0,
    )


def _trained_gates(
    lab: Lab, task: Task, recipe: Recipe, gating: Gating, early: Result, seeds: Seeds, label: str
) -> Result:
    from ticketry.core.seeds import mix
    from ticketry.lab.segment import Start

    segment = lab.segment(
        task, start=Start(state=early.model), order_seed=mix(seeds.order, "concrete"), recipe=recipe, gates=gating
    )
    return lab.train(segment, label=label)


def _ticket(
    lab: Lab,
    task: Task,
    recipe: Recipe,
    settings: Settings,
    seeds: Seeds,
    level: int,
    density: float,
    early: Result,
    trained: Result,
    dense: Result,
) -> Found:
    from ticketry.lab.harden import allocated_mask
    from ticketry.lab.retrain import retraining

    mask = allocated_mask(lab, trained, density, settings.collapse)
    segment = retraining(
        lab,
        task,
        recipe,
        retrain=settings.how_retrained,
        mask=mask,
        rewound=early,
        trained=early,
        order_seed=seeds.order,
    )
    result = lab.train(segment, label=f"level {level} ticket")
    searched = (early, trained) if early.segment.steps else (trained,)
    return Found(level, mask, early, dense, settings.how_retrained, result, searched)
