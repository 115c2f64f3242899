"""Controls: networks as sparse as the ticket, trained for as long, that lack one thing it has.

A ticket is a claim about *these* connections with *these* early weights; each control takes one of the two away. They
are those of the papers: Frankle & Carbin (2019, figure 4), Frankle et al. (2019, 2020), Su et al. (2020). Two others
ask what the search's many trainings alone are worth, see `evidence.cyclic`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ticketry.core.allocate import allocate
from ticketry.core.mask import Mask, shuffled
from ticketry.core.seeds import generator, mix
from ticketry.core.structure import shuffled_structure
from ticketry.core.structure.redraw import random_channels, shuffled_channels
from ticketry.core.structure.redraw_blocks import random_blocks, shuffled_blocks
from ticketry.core.structure.redraw_rows import random_structure, shuffled_n_m
from ticketry.evidence.cyclic import train_cycles
from ticketry.evidence.form import WEIGHTS, Form
from ticketry.evidence.names import LONGER, check_controls
from ticketry.lab.found import DYNAMIC, GRADUAL, REWINDING, Found, Seeds
from ticketry.lab.lab import Lab, Result
from ticketry.lab.retrain import retraining
from ticketry.tasks.base import Task
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.registry import untrained


def stored_control_mask(lab: Lab, task: Task, control: str, ticket: str, seeds: Seeds, form: Form = WEIGHTS) -> str:
    """Digest of the stored mask that a control holds in place of a ticket's stored mask. Remembered.

    Args:
        form: of the ticket's mask, and so of the control's: else it would lack the structure too. Of channels,
            `shuffled` takes as many of each group, in random places, and `random_prune` random ones of all groups, to
            the ticket's density as closely as whole channels permit; of rows, `shuffled` has as many groups of as many
            rows and columns in each layer, drawn at random, and `random_prune` draws the columns from all layers
            together; of N:M both have as many weights of every M inputs, other ones; of a pattern `shuffled` has as
            many blocks of each layer, in random places, and `random_prune` random ones of all layers together.
    """
    described: dict[str, Any] = {"control": control, "of": ticket, "seed": seeds.mask}
    if form == WEIGHTS:
        return lab.remembered_mask(described, lambda: control_mask(control, lab.store.get_mask(ticket), seeds))

    def made() -> Mask:
        mask = lab.store.get_mask(ticket)
        draws = {
            "channels": {
                "shuffled": lambda seed: shuffled_channels(lab.model(task), lab.structure(task), mask, seed),
                "random_prune": lambda seed: random_channels(lab.model(task), lab.structure(task), mask, seed),
            },
            "rows": {
                "shuffled": lambda seed: shuffled_structure(mask, seed, model=lab.model(task)),
                "random_prune": lambda seed: random_structure(lab.model(task), mask, seed),
            },
            "n:m": dict.fromkeys(
                ("shuffled", "random_prune"), lambda seed: shuffled_n_m(lab.model(task), mask, form.m, seed)
            ),
            "pattern": {
                "shuffled": lambda seed: shuffled_blocks(lab.model(task), mask, form.pattern, seed),
                "random_prune": lambda seed: random_blocks(lab.model(task), mask, form.pattern, seed),
            },
        }[form.kind]
        return draws[control](mix(seeds.mask, control, mask.digest)) if control in draws else mask

    check_controls((control,))
    return lab.remembered_mask({**described, **form.key(), "task": dict(task.key())}, made)


def control_mask(control: str, mask: Mask, seeds: Seeds) -> Mask:
    """The mask of single weights that a control holds in place of the ticket's. Pure function of its arguments.

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
    control's stays: it is trained from step 0, for as many steps as the ticket in all. Where the ticket is trained
    without the channels that its mask removes, so is the control, with a mask of whole channels of its own; where the
    rows of the ticket's mask are in groups, or its weights in blocks, so are those of the control's, see
    `stored_control_mask`.
    Those of `names.LONGER` are trained for longer, see `evidence.cyclic`.
    """
    return control_trainings(lab, task, recipe, control, found, seeds, label)[-1]


@dataclass(frozen=True)
class Trained:
    """A control, and what was trained for it alone."""

    trainings: list[Result]
    """Each from where the one before it ended."""
    fresh: Result | None = None
    """The dense training from another initialisation that its first weights come from."""


def control_trainings(
    lab: Lab, task: Task, recipe: Recipe, control: str, found: Found, seeds: Seeds, label: str = ""
) -> list[Result]:
    """The trainings of `train_control`, each from where the one before it ended."""
    return trained_control(lab, task, recipe, control, found, seeds, label).trainings


def trained_control(
    lab: Lab, task: Task, recipe: Recipe, control: str, found: Found, seeds: Seeds, label: str = ""
) -> Trained:
    """`train_control` with all its trainings."""
    assert found.mask is not None
    ticket = found.mask
    check_controls((control,))
    of = "shuffled" if control == "cyclic_random" else control
    shrunk = found.result.segment.shrunk
    form = Form.of(found.structured.by.kind if found.structured else "", shrunk=shrunk, pattern=found.pattern)
    mask = ticket if control == "cyclic" else stored_control_mask(lab, task, of, ticket, seeds, form)
    if control in LONGER:
        return Trained(train_cycles(lab, task, recipe, mask, found, seeds, label))
    rewound, trained, begun = found.rewound, found.dense, None
    if control == "random_reinit":
        step = rewound.segment.last
        source = rewound if found.retrain in (*REWINDING, GRADUAL, DYNAMIC) else trained
        fresh = lab.segment(
            untrained(task),
            start=mix(seeds.initialisation, "random_reinit"),
            last=source.segment.last,
            order_seed=seeds.order,
            recipe=source.segment.recipe,
        )
        begun = trained = lab.train(fresh, keep=(step,), label=f"{label} (fresh start)")
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
        shrunk=shrunk,
        entered=found.result.segment.first if found.retrain == GRADUAL else None,
    )
    return Trained([lab.train(segment, label=label)], begun)
