"""Remove masks and gates that an interrupted training left on a model.

Some trainers do not report that a training was interrupted (by Ctrl-C or an exception). Without this module, a mask or
gates would then stay on the model and silently change later computations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from ticketry.errors import HoldError
from ticketry_engine.support.training_hooks import Listeners, Stepping


class Attachment:
    """A mask or gates that a training has attached to a model, in a register of all such attachments.

    Args:
        model: the model.
        what: what is attached, as one word for messages, such as "hold".
        is_running: function that returns whether the training still runs.
        is_active: function that returns whether the attachment would now change a training step.
        release: function that takes the attachment off the model, and calls `remove`.
    """

    def __init__(
        self,
        model: nn.Module,
        what: str,
        *,
        is_running: Callable[[], bool],
        is_active: Callable[[], bool],
        release: Callable[[], None],
    ) -> None:
        self.model, self.what = model, what
        self.is_running, self.is_active, self.release = is_running, is_active, release
        _attachments.add(self)

    def remove(self) -> None:
        """Delete the attachment from the register, after it was taken off the model; may be called repeatedly."""
        _attachments.remove(self)


def release_leftovers(model: nn.Module) -> None:
    """Take the masks and gates of interrupted trainings off `model`, and off models that share parameters with it.

    Masks and gates of trainings that still run are left in place.
    """
    for one in _find_leftovers({id(parameter) for parameter in model.parameters()}):
        one.release()


def _find_leftovers(parameters: set[int]) -> list[Attachment]:
    left = [one for one in _attachments.present if not one.is_running()]
    return [one for one in left if any(id(parameter) in parameters for parameter in one.model.parameters())]


def _release_before_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    """Before an optimiser steps, take the masks and gates of interrupted trainings off its parameters.

    Raises `HoldError` if these have already changed the gradients of the step.
    """
    if all(one.is_running() for one in _attachments.present):
        return
    left = _find_leftovers({id(parameter) for group in optimizer.param_groups for parameter in group["params"]})
    acting = [one.what for one in left if one.is_active()]
    for one in left:
        one.release()
    if acting:
        raise HoldError(
            f"a training of this model broke off, and what its callback put on it ({', '.join(acting)}) still acted in"
            " this step: it is taken off now, so load the weights that you start from and begin anew;"
            " callback.release() takes it off before that"
        )


def _register_step_hook() -> None:
    Stepping(before=torch.compiler.disable(_release_before_step))  # type: ignore[no-untyped-call]


_attachments = Listeners[Attachment](_register_step_hook)
