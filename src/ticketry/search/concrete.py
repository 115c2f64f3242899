"""Concrete Ticket Search: masks trained over frozen early weights to an exact density.

Weights stay fixed at a step k early in dense training. Each is multiplied by a gate, drawn anew at each step from a
binary-concrete distribution, and the logits of the gates are trained so that the sparse network's outputs come close to
those of the dense one at the same weights. The ticket has the weights of step k and exactly the wanted number of
weights, those of the highest probabilities; it is then trained as after rewinding. Each density has a search of its
own. Arora & Teuscher, "Winning the Lottery by Preserving Network Training Dynamics with Concrete Ticket Search" (2025,
arXiv 2512.07142).

These parts are from the paper: the relaxation, the balance of gradients that steers the expected density (GradBalance),
the reverse KL divergence as objective (CTS-KL), and the task's loss as an alternative. Where the paper leaves it open,
these follow the authors' public code: both networks are in eval mode, but batch norms use batch statistics (here the
running statistics of step k stay unchanged; the code keeps none); no augmentation; all logits begin at that of the
density; Adam at 0.1, and a tenth of this after 88 % of the steps; temperature 2/3; the balance aims at 1.1 times the
density, and the mask takes the best gates; one draw per step for the whole batch; rewinding to epoch 9 of 160
(ResNet-20). These are our choices: masks are trained for 100 % of a training (the code has 12.5, 50 or 100 %), in a
separate data order; ties are broken by position; which layers have gates, and that none may become empty; of the other
objectives, only the KL divergence in the other direction. The dense network is trained to the end only for comparison:
the search needs, and counts, its first k steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ticketry.core.structure.pattern import count_retained
from ticketry.errors import LayerCollapseError, UsageError
from ticketry.lab.search_result import REWINDING, Found, Retrain, choose_retrain
from ticketry.search.common.method import About, Replicate, search_by_replicate
from ticketry.search.common.plan import Schedule, Training, ticket_training_span
from ticketry.search.common.pruning import compress_to_steps, prunable_scope, ticket_training_steps
from ticketry.search.common.settings import PruningSettings
from ticketry.search.gating import Objective
from ticketry.step import Step
from ticketry.tasks.recipe import Recipe

if TYPE_CHECKING:
    from ticketry.core.scope import Scope
    from ticketry.lab.training.segment import Segment
    from ticketry.search.gating.gating import Gating

_DROP = "88%"
"""Share of the mask training after which its learning rate is a tenth."""


ABOUT = About(paper="Arora & Teuscher 2025", prunes="early, by soft masks", costs="2 a density")


@dataclass(frozen=True, kw_only=True)
class Settings(PruningSettings):
    """Settings of Concrete Ticket Search.

    Examples:
        >>> run = tk.run("concrete", density=0.2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> [round(ticket.density, 2) for ticket in run.tickets]
        [0.2]
    """

    collapse: Literal["raise", "keep"] = "raise"
    """What to do if a layer would lose all weights: raise an error, or keep its best weight in exchange for the worst
    retained weight of the largest layer."""
    rewind: str = "6%"
    """The step whose weights tickets start from and masks are trained on, such as 9ep, 500it, 6%; 0 is the
    initialisation."""
    mask_length: str = "100%"
    """Length of the mask training: a step such as 20ep, 500it, or a share of the recipe's length."""
    objective: Objective = "reverse_kl"
    """Objective of the mask training: reverse_kl or forward_kl (a divergence from the dense network's outputs;
    reverse_kl is the paper's CTS-KL), or loss (the task's loss)."""
    temperature: float = 2 / 3
    """Temperature of the draws, above 0 and at most 1; the lower, the nearer gates are to 0 and 1."""
    gate_lr: float = 0.1
    """Learning rate of the gates (Adam); the last 12 % of mask training use a tenth of it."""
    retrain: Retrain = ""
    """How a ticket is trained: continue (from the rewind step k, steps k..T of the schedule; the default) or restart
    (the whole schedule again)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.effective_retrain not in REWINDING:
            raise UsageError(
                f"masks are found over the weights of the rewind step, and no others are trained: retrain is"
                f" {' or '.join(REWINDING)}, not {self.effective_retrain}"
            )
        if Step.parse(self.mask_length).value <= 0:
            raise UsageError(f"mask_length is how long masks are trained, above 0, not {self.mask_length}")
        if self.targets[0] == 1:
            raise UsageError(f"a ticket of {self.describe_target(1)} is the dense network: ask for less")

    @property
    def finds_ticket_in_one_training(self) -> bool:
        return False

    @property
    def effective_retrain(self) -> str:
        """How tickets are trained: the setting `retrain`, or its default if it is empty; see `lab.retrain`."""
        return choose_retrain(self.rewind, self.retrain)


def plan(settings: Settings) -> list[Training]:
    """Plan, for each density, one training of gates and one training of the ticket."""
    of_masks = [Training(last=settings.mask_length) for _ in settings.targets]
    return [*of_masks, *settings.plan_tickets(**ticket_training_span(settings.effective_retrain, settings.rewind))]


@search_by_replicate
def search(replicate: Replicate, settings: Settings) -> Iterator[Found]:
    """Search one replicate: yield the dense network, then the ticket of each density, the densest first."""
    from ticketry.search.gating.gating import mask_of_largest_gates, mask_within_budget, require_classification

    lab, scope = replicate.lab, prunable_scope(replicate, settings)
    full, retrain = replicate.dense_training, settings.effective_retrain
    kept = full.at(settings.rewind, "rewind")

    def steps_needed(whole: Segment, settings: Settings) -> int:
        step = whole.at(settings.rewind, "rewind")
        return step + mask_training_steps(settings, whole) + ticket_training_steps(retrain, step, whole.total)

    own, settings = compress_to_steps(replicate, settings, steps_needed, ("rewind", "mask_length"))
    whole = own.dense_training
    pieces = [(share, make_gating(replicate, scope, settings, share)) for share in settings.targets]
    recipe = _make_gate_recipe(own.recipe, settings, mask_training_steps(settings, whole))
    masks = replace(own, recipe=recipe).with_other_data_order("concrete")
    if settings.objective != "loss":
        require_classification(lab, replicate.task)
    dense = replicate.train_dense(kept, retrain=retrain)
    if own.recipe != replicate.recipe:
        early = lab.train(whole.shortened_to(whole.at(settings.rewind, "rewind")), label="dense", measure=False)
        dense = replace(dense, rewound=early)
    yield dense

    def find_ticket(level: int, piece: tuple[float, Gating]) -> Found:
        share, gating = piece
        early = dense.rewound
        trained = lab.train(
            masks.continue_from(early, 0, variants=[gating]), label=f"{settings.describe_target(share)} mask"
        )
        if settings.budget:
            mask = mask_within_budget(lab, trained, settings, share, settings.collapse)
        else:
            mask = mask_of_largest_gates(lab, trained, share, settings.collapse)
        segment = own.ticket_training(mask, retrain=retrain, rewound=early, trained=early)
        result = lab.train(segment, label=f"level {level} ticket")
        searched = (early, trained) if early.segment.steps else (trained,)
        return replace(dense, level=level, mask=mask, result=result, searched=searched, aim=settings.budget_cache_key)

    yield from replicate.find_each(find_ticket, pieces)


def make_gating(replicate: Replicate, scope: Scope, settings: Settings, share: float) -> Gating:
    """Describe the gates that choose the mask of one ticket; `share` is its density, or its share of the dense cost."""
    from ticketry.core.gates import BinaryConcrete
    from ticketry.search.gating.gating import Gating, gate_prices, gate_target_and_initial_density
    from ticketry_engine.support.seeds import mix_seeds

    target, density = gate_target_and_initial_density(replicate, settings, scope, share)
    kept = count_retained(density, scope.total)
    if kept < len(scope):
        raise LayerCollapseError(
            f"{settings.describe_target(share)} keeps {kept} of {scope.total} weights, too few for one in each of the"
            f" {len(scope)} layers: choose a higher density, or spare layers"
        )
    return Gating(
        scope=tuple(scope),
        kind=BinaryConcrete.name,
        init=round(math.log(density / (1 - density)), 9),
        penalty=0.0,
        optimizer="adam",
        lr=settings.gate_lr,
        seed=mix_seeds(replicate.seeds.mask, "concrete"),
        frozen=True,
        objective=settings.objective,
        density=target,
        temperature=settings.temperature,
        **gate_prices(replicate, settings, scope),
    )


def mask_training_steps(settings: Settings, whole: Schedule) -> int:
    """Return the number of steps for which gates are trained, given the schedule of the weights."""
    length = Step.parse(settings.mask_length)
    return max(length.iterations(total=whole.total, per_epoch=whole.per_epoch), 1)


def _make_gate_recipe(recipe: Recipe, settings: Settings, steps: int) -> Recipe:
    """Return the recipe that trains the gates, with the batch size and label smoothing of `recipe`."""
    return Recipe(
        length=f"{steps}it",
        batch=recipe.batch,
        optimizer="adam",
        lr=settings.gate_lr,
        schedule="multistep",
        milestones=(_DROP,),
        label_smoothing=recipe.label_smoothing if settings.objective == "loss" else 0.0,
    )
