"""What trainings keep on models, and what those that broke off have left there.

Some trainers tell nobody that a training broke off (Ctrl-C, an exception). A mask, or gates, that it leaves on a model
would go on to change what is computed with it, and nobody would see why.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from ticketry.errors import HoldError
from ticketry_engine.support.listeners import Listeners
from ticketry_engine.support.optimizer_steps import Stepping


class Kept:
    """What a training keeps on a model, until `remove`: said where the trainer does not tell that it broke off.

    Args:
        what: in a word, for a message.
        runs: whether that training still runs.
        acts: whether a step of the model is another than without it, as things are now.
        release: takes it off the model, and calls `remove`.
    """

    def __init__(
        self,
        model: nn.Module,
        what: str,
        *,
        runs: Callable[[], bool],
        acts: Callable[[], bool],
        release: Callable[[], None],
    ) -> None:
        self.model, self.what = model, what
        self.runs, self.acts, self.release = runs, acts, release
        _kept.add(self)

    def remove(self) -> None:
        """It is off the model; more than once is no error."""
        _kept.remove(self)


def release_left(model: nn.Module) -> None:
    """Take off `model`, and off what shares parameters with it, what trainings that broke off have left.

    What a training that still runs keeps there stays.
    """
    for one in _left_on({id(parameter) for parameter in model.parameters()}):
        one.release()


def _left_on(parameters: set[int]) -> list[Kept]:
    left = [one for one in _kept.present if not one.runs()]
    return [one for one in left if any(id(parameter) in parameters for parameter in one.model.parameters())]


def _before_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    """A loop that does not say what it wants on its model is told what acts on it: its gradients are others."""
    if all(one.runs() for one in _kept.present):
        return
    left = _left_on({id(parameter) for group in optimizer.param_groups for parameter in group["params"]})
    acting = [one.what for one in left if one.acts()]
    for one in left:
        one.release()
    if acting:
        raise HoldError(
            f"a training of this model broke off, and what its callback put on it ({', '.join(acting)}) still acted in"
            " this step: it is taken off now, so load the weights that you start from and begin anew;"
            " callback.release() takes it off before that"
        )


def _hook() -> None:
    Stepping(before=torch.compiler.disable(_before_step))  # type: ignore[no-untyped-call]


_kept = Listeners[Kept](_hook)
