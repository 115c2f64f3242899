"""Concrete Ticket Search: masks trained over frozen early weights to an exact density.

Weights stay fixed at a step k early in dense training. Each is multiplied by a gate, drawn anew at each step from a
binary-concrete distribution, and the logits of the gates are trained so that the sparse network's outputs come close
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
(ResNet-20); masks trained for 12.5, 50 or 100 % of a training. Ours: of these the longest; a separate data order;
ties by position; which layers have gates, and that none may come out empty; none of the paper's other objectives but
the KL divergence of the other direction. The dense network is trained to the end to compare with: the search needs its
first k steps only, and these are counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ticketry.core.structure.pattern import count_retained
from ticketry.errors import LayerCollapseError, UsageError
from ticketry.lab.search_result import REWINDING, Found, Retrain, retrain_after
from ticketry.search.common.equal_cost import compress_to_steps, own_steps
from ticketry.search.common.method import About, Replicate, on_replicate
from ticketry.search.common.plan import Schedule, Training, ticket_span
from ticketry.search.common.pruning import prunable
from ticketry.search.common.settings import PruningSettings
from ticketry.search.gating import Objective
from ticketry.step import Step

if TYPE_CHECKING:
    from ticketry.core.scope import Scope
    from ticketry.lab.training.segment import Segment
    from ticketry.search.gating.gating import Gating
    from ticketry.tasks.recipe import Recipe

_DROP = "88%"
"""Share of the mask training after which its learning rate is a tenth."""


ABOUT = About(
    paper="Arora & Teuscher 2025",
    prunes="early, by soft masks",
    costs="2 a density",
)


@dataclass(frozen=True, kw_only=True)
class Settings(PruningSettings):
    """Settings of Concrete Ticket Search.

    Examples:
        >>> run = tk.run("concrete", density=0.2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> [round(ticket.density, 2) for ticket in run.tickets]
        [0.2]
    """

    collapse: Literal["raise", "keep"] = "raise"
    """If none of a layer's gates is among the best: raise (an error), or keep its best weight instead of the worst
    one retained in the largest layer."""
    rewind: str = "6%"
    """Start of the tickets, whose weights the masks are trained over: a step such as 9ep, 500it, 6%; 0 is the
    initialisation."""
    mask_length: str = "100%"
    """Length of the mask training: a step such as 20ep, 500it, or a share of the recipe's length."""
    objective: Objective = "reverse_kl"
    """Objective of the mask training: reverse_kl (outputs as the dense network's, CTS-KL), forward_kl, or loss (of the
    task)."""
    temperature: float = 2 / 3
    """Temperature of the draws, above 0 and at most 1; the lower, the nearer gates are to 0 and 1."""
    gate_lr: float = 0.1
    """Learning rate of the gates, by Adam; a tenth of it in the last 12 % of mask training."""
    retrain: Retrain = ""
    """How a ticket is trained: continue (from the rewind step k, steps k..T of the schedule; the default) or restart
    (the whole schedule again)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.how_retrained not in REWINDING:
            raise UsageError(
                f"masks are found over the weights of the rewind step, and no others are trained: retrain is"
                f" {' or '.join(REWINDING)}, not {self.how_retrained}"
            )
        if Step.parse(self.mask_length).value <= 0:
            raise UsageError(f"mask_length is how long masks are trained, above 0, not {self.mask_length}")
        if self.targets[0] == 1:
            raise UsageError(f"a ticket of {self.goal(1)} is the dense network: ask for less")

    @property
    def one_training(self) -> bool:
        return False

    @property
    def how_retrained(self) -> str:
        """How tickets are trained, see `lab.retrain`."""
        return retrain_after(self.rewind, self.retrain)


def plan(settings: Settings) -> list[Training]:
    """Plan a training of gates and a ticket for each density."""
    of_masks = [Training(last=settings.mask_length) for _ in settings.targets]
    return [*of_masks, *settings.plan_tickets(**ticket_span(settings.how_retrained, settings.rewind))]


@on_replicate
def search(replicate: Replicate, settings: Settings) -> Iterator[Found]:
    """One replicate: the dense network, to compare with, then a ticket for each density, the densest first."""
    from ticketry.search.gating.gating import check_task
    from ticketry.search.gating.masks import allocated_mask, budget_mask

    lab, scope = replicate.lab, prunable(replicate, settings)
    full, retrain = replicate.whole, settings.how_retrained
    kept = full.at(settings.rewind, "rewind")

    def steps_needed(whole: Segment, settings: Settings) -> int:
        step = whole.at(settings.rewind, "rewind")
        return step + mask_steps(settings, whole) + own_steps(retrain, step, whole.total)

    own, settings = compress_to_steps(replicate, settings, steps_needed, ("rewind", "mask_length"))
    whole = own.whole
    pieces = [(share, gates_of(replicate, scope, settings, share)) for share in settings.targets]
    recipe = _mask_recipe(own.recipe, settings, mask_steps(settings, whole))
    masks = replace(own, recipe=recipe).reordered("concrete")
    if settings.objective != "loss":
        check_task(lab, replicate.task)
    dense = replicate.dense(kept, retrain=retrain)
    if own.recipe != replicate.recipe:
        early = lab.train(whole.until(whole.at(settings.rewind, "rewind")), label="dense", measure=False)
        dense = replace(dense, rewound=early)
    yield dense

    def member(level: int, piece: tuple[float, Gating]) -> Found:
        share, gating = piece
        early = dense.rewound
        trained = lab.train(masks.onward(early, 0, variants=[gating]), label=f"{settings.goal(share)} mask")
        if settings.budget:
            mask = budget_mask(lab, trained, settings, share, settings.collapse)
        else:
            mask = allocated_mask(lab, trained, share, settings.collapse)
        segment = own.retrained(mask, retrain=retrain, rewound=early, trained=early)
        result = lab.train(segment, label=f"level {level} ticket")
        searched = (early, trained) if early.segment.steps else (trained,)
        return replace(dense, level=level, mask=mask, result=result, searched=searched, aim=settings.budget_terms)

    yield from replicate.side_by_side(member, pieces)


def gates_of(replicate: Replicate, scope: Scope, settings: Settings, share: float) -> Gating:
    """Return the gates that a mask of a density, or share of a budget, is trained by."""
    from ticketry.core.gates import BinaryConcrete
    from ticketry.search.gating.gating import Gating
    from ticketry.search.gating.masks import gate_prices, gate_target
    from ticketry_engine.support.seeds import mix

    target, density = gate_target(replicate, settings, scope, share)
    kept = count_retained(density, scope.total)
    if kept < len(scope):
        raise LayerCollapseError(
            f"{settings.goal(share)} keeps {kept} of {scope.total} weights, too few for one in each of the"
            f" {len(scope)} layers: choose a higher density, or spare layers"
        )
    return Gating(
        scope=tuple(scope),
        kind=BinaryConcrete.name,
        init=round(math.log(density / (1 - density)), 9),
        penalty=0.0,
        optimizer="adam",
        lr=settings.gate_lr,
        seed=mix(replicate.seeds.mask, "concrete"),
        frozen=True,
        objective=settings.objective,
        density=target,
        temperature=settings.temperature,
        **gate_prices(replicate, settings, scope),
    )


def mask_steps(settings: Settings, whole: Schedule) -> int:
    """Return the length of the mask training, beside a schedule."""
    length = Step.parse(settings.mask_length)
    return max(length.iterations(total=whole.total, per_epoch=whole.per_epoch), 1)


def _mask_recipe(recipe: Recipe, settings: Settings, steps: int) -> Recipe:
    """Return the recipe of the gates; batch and label smoothing are those of the weights."""
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
