"""Controls: networks as sparse as the ticket, trained for as long, that lack one thing it has.

A ticket is a claim about *these* connections with *these* early weights; each control takes one of the two away. They
are those of the papers: Frankle & Carbin (2019, figure 4), Frankle et al. (2019, 2020), Su et al. (2020). Two others
ask what the search's many trainings alone are worth, see `evidence.cyclic`.
"""

from __future__ import annotations

import torch

from ticketry.core.allocate import allocate
from ticketry.core.mask import Mask, shuffled
from ticketry.core.seeds import generator, mix
from ticketry.evidence.cyclic import train_cycles
from ticketry.evidence.names import LONGER, check_controls
from ticketry.lab.found import DYNAMIC, GRADUAL, REWINDING, Found, Seeds
from ticketry.lab.lab import Lab, Result
from ticketry.lab.retrain import retraining
from ticketry.tasks.base import Task
from ticketry.tasks.recipe import Recipe


def control_mask(control: str, mask: Mask, seeds: Seeds) -> Mask:
    """The mask that a control holds in place of the ticket's. Pure function of its arguments.

    Raises:
        UsageError: if the control is not known.
    """
    check_controls((control,))
    control = "shuffled" if control == "cyclic_random" else control
    seed = mix(seeds.mask, control, mask.digest)
    if control == "shuffled":
        return shuffled(mask, seed)
    if control == "random_prune":
        return random_mask(mask, seed)
    return mask


def random_mask(like: Mask, seed: int) -> Mask:
    """A random mask with as many weights over the whole scope as `like`; no layer is left empty."""
    scores = {
        name: torch.rand(shape, dtype=torch.float64, generator=generator(seed, "random_prune", index))
        for index, (name, shape) in enumerate(like.shapes.items())
    }
    return allocate(scores, like.density, collapse="keep")


def train_control(
    lab: Lab, task: Task, recipe: Recipe, control: str, found: Found, seeds: Seeds, label: str = ""
) -> Result:
    """Train a control beside a ticket, for exactly as many steps of the same schedule and data order.

    Where the ticket keeps final weights (rewind_lr, finetune), the control starts from the dense network's: those of
    the level before are 0 wherever that level's mask was. So are those of gradual pruning at its last cut: there the
    control goes on from the dense network at that step. Where the ticket's mask moved while it trained (dynamic), the
    control's stays: it is trained from step 0, for as many steps as the ticket in all.
    Those of `names.LONGER` are trained for longer, see `evidence.cyclic`.
    """
    return control_trainings(lab, task, recipe, control, found, seeds, label)[-1]


def control_trainings(
    lab: Lab, task: Task, recipe: Recipe, control: str, found: Found, seeds: Seeds, label: str = ""
) -> list[Result]:
    """The trainings of `train_control`, each from where the one before it ended."""
    assert found.mask is not None
    ticket = found.mask
    check_controls((control,))
    of = "shuffled" if control == "cyclic_random" else control
    mask = (
        ticket
        if control == "cyclic"
        else lab.remembered_mask(
            {"control": of, "of": ticket, "seed": seeds.mask},
            lambda: control_mask(of, lab.store.get_mask(ticket), seeds),
        )
    )
    if control in LONGER:
        return train_cycles(lab, task, recipe, mask, found, seeds, label)
    rewound, trained = found.rewound, found.dense
    if control == "random_reinit":
        step = rewound.segment.last
        fresh = lab.segment(
            task,
            start=mix(seeds.initialisation, "random_reinit"),
            last=step if found.retrain in (*REWINDING, GRADUAL, DYNAMIC) else trained.segment.last,
            order_seed=seeds.order,
            recipe=recipe,
        )
        trained = lab.train(fresh, keep=(step,), label=f"{label} (fresh start)")
        rewound = lab.at(trained, step)
    segment = retraining(
        lab,
        task,
        recipe,
        retrain=found.retrain,
        mask=mask,
        rewound=rewound,
        trained=trained,
        order_seed=seeds.order,
    )
    return [lab.train(segment, label=label)]
