"""Choose the initial weights and the steps with which a ticket (a masked network) is trained after the search."""

from __future__ import annotations

from collections.abc import Sequence

from ticketry.choices import check_choice
from ticketry.core.mask import Mask
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import DYNAMIC, FROM_REWOUND, GRADUAL, RETRAINS
from ticketry.lab.training.segment import Result, Segment, Start
from ticketry.lab.training.variant import Variant
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task


def retraining(
    lab: Lab,
    task: Task,
    recipe: Recipe,
    *,
    retrain: str,
    mask: Mask | str | None,
    rewound: Result,
    trained: Result,
    order_seed: int,
    shrunk: bool = False,
    entered: int | None = None,
    variants: Sequence[Variant] = (),
) -> Segment:
    """Return the description of the training of a ticket, from the initial weights and steps that `retrain` selects.

    Let k be the last step of `rewound` (or `entered`, if given), and T the length of the schedule. `retrain` is one of

    - ``continue``: the weights of step k, steps k..T of the schedule (Frankle et al. 2019, rewinding);
    - ``restart``: the weights of step k, the whole schedule again (the code of Savarese et al. 2020, Chen et al. 2022);
    - ``rewind_lr``: the final weights, steps k..T of the schedule (Renda et al. 2020, learning-rate rewinding);
    - ``finetune``: the final weights at the schedule's last learning rate, for T - k steps (T steps if k = T);
    - ``none``: the final weights, measured without further training;
    - ``gradual``: the weights and the optimiser's state of step k, steps k..T, so that only the mask changes
      (Zhu & Gupta 2017). Only gradual pruning uses this value;
    - ``dynamic``: the weights of step k = 0, steps 0..T, with a constant mask, for comparison with a network whose
      mask changes during training (Evci et al. 2020, static). Only searches with changing masks use this value.

    Args:
        mask: the ticket's mask; None if one of `variants` enforces the mask.
        rewound: the state at step k.
        trained: the state with the final weights.
        entered: the step k, if it is not the last step of `rewound`.
    """
    step = rewound.segment.last if entered is None else entered
    end = recipe.steps(lab.per_epoch(task, recipe))
    if retrain not in (GRADUAL, DYNAMIC):
        check_choice("retrain", retrain, RETRAINS)
    first, last = {
        "continue": (step, end),
        "restart": (0, end),
        "rewind_lr": (step, end),
        "finetune": (end, end + (end - step or end)),
        "none": (end, end),
        GRADUAL: (step, end),
        DYNAMIC: (step, end),
    }[retrain]
    weights = rewound if retrain in FROM_REWOUND else trained
    start = Start(state=weights.model, optimizer=weights.training if retrain == GRADUAL else None)
    return lab.segment(
        task,
        start=start,
        mask=mask,
        first=first,
        last=last,
        order_seed=order_seed,
        recipe=recipe,
        shrunk=shrunk,
        variants=variants,
    )
