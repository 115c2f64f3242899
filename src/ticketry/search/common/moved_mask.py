"""What masks are grown by while a network trains: gradients of removed weights, or chance."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from ticketry.choices import check_choice
from ticketry.core.mask import Mask
from ticketry.core.sparse_training.mask_dynamics import drop_and_grow
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Growth
from ticketry.lab.training.job import start_state
from ticketry.lab.training.loop import Loop
from ticketry.lab.training.segment import Segment
from ticketry_engine.support.seeds import generator


def moved_mask(lab: Lab, segment: Segment, share: float, *, grow: Growth, seed: int = 0, regrow: bool = False) -> str:
    """Digest of the stored mask that a segment's mask becomes, had it to move before the first step. Remembered.

    Args:
        segment: how training would go on; it starts from a stored state and has a mask.
        share, regrow: see `core.sparse_training.mask_dynamics`.
        grow: ``gradient`` (|gradient| of the segment's first batch) or ``random``.
        seed: of what is random.
    """
    check_choice("grow", grow, get_args(Growth))
    state, digest = segment.start.state, segment.mask
    assert state is not None
    assert digest is not None

    def made() -> Mask:
        mask = lab.store.get_mask(digest)
        if grow == "gradient":
            growth = {name: gradient.abs() for name, gradient in first_gradient(lab, segment).items()}
        else:
            growth = {
                name: torch.rand(shape, dtype=torch.float64, generator=generator(seed, "grow", segment.first, index))
                for index, (name, shape) in enumerate(mask.shapes.items())
            }
        return drop_and_grow(mask, lab.store.get_tensors(state), growth, share, regrow=regrow)

    described = {"moved": segment.until(segment.first + 1).key, "grow": grow, "share": share, "regrow": regrow}
    return lab.remembered_mask(
        described | ({"seed": seed} if grow == "random" else {}),
        made,
        ready=lambda: segment.course(lab.data) if grow == "gradient" else None,
    )


def first_gradient(lab: Lab, segment: Segment) -> dict[str, Tensor]:
    """The gradient of the loss of a segment's first batch, by parameter, before anything is trained.

    It is dense: of weights that the mask removes too. As the segment's training itself it is a pure function of its
    start, mask, order seed and first step, augmentation and dropout included, so that what is made of it can be
    remembered by the segment's key. It is not stored itself, being as large as the network. It is computed in this
    process, whatever trains the lab's segments: it takes one forward and one backward pass.

    Raises:
        TrainingError: if it is not finite.
    """
    assert all(one.masked_by() for one in segment.variants), "gradients are taken of plain networks, masked or not"
    course, state = segment.course(lab.data), start_state(lab.store, segment)
    with segment.arithmetic.active():
        return Loop(lab.store, course, segment.until(segment.first + 1), state).gradient()
