"""How a ticket is trained after its mask was found. Papers differ here, and the choice affects results strongly."""

from __future__ import annotations

from collections.abc import Sequence

from ticketry.core.mask import Mask
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import DYNAMIC, FROM_REWOUND, GRADUAL, check_retrain
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
    """Return the segment that trains a ticket; if `shrunk`, without the channels that its mask removes.

    `variants` are further changes to the training, which controls have too. If one of them enforces the mask, `mask`
    is None.

    With k the step of `rewound` and T the length of the schedule, `retrain` is one of

    - ``continue``: the weights of step k, steps k..T of the schedule (Frankle et al. 2019, rewinding);
    - ``restart``: the weights of step k, the whole schedule again (the code of Savarese et al. 2020, Chen et al. 2022);
    - ``rewind_lr``: the final weights, steps k..T of the schedule (Renda et al. 2020, learning-rate rewinding);
    - ``finetune``: the final weights at the schedule's last learning rate, for T - k steps (T where k = T);
    - ``none``: the final weights, measured without further training;
    - ``gradual``: the weights and the optimiser's state of step k, steps k..T: training continues unchanged except for
      the mask (Zhu & Gupta 2017). Not for users to choose: gradual pruning has no other way;
    - ``dynamic``: the weights of step k, here 0, steps k..T, with a constant mask: the comparison for a network whose
      mask changed during training (Evci et al. 2020, static). Not for users to choose either.

    `entered` is the step k at which the schedule is entered, if it is not the last step of `rewound`.
    """
    step = rewound.segment.last if entered is None else entered
    end = recipe.steps(lab.per_epoch(task, recipe))
    first, last = {
        "continue": (step, end),
        "restart": (0, end),
        "rewind_lr": (step, end),
        "finetune": (end, end + (end - step or end)),
        "none": (end, end),
        GRADUAL: (step, end),
        DYNAMIC: (step, end),
    }[retrain if retrain in (GRADUAL, DYNAMIC) else check_retrain(retrain)]
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
