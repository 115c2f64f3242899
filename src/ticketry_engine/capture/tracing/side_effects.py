"""Side effects of a call that a compiled model would not have: writes to inputs and weights, changed containers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ticketry_engine.capture.tracing.torch_export import Arguments
from ticketry_engine.errors import CaptureError


def writes_to_weight(name: str) -> CaptureError:
    """Return the error for a model that writes to a parameter or buffer."""
    return CaptureError(
        f"the model writes to {name!r} in evaluation mode, and so has a memory of earlier calls: the engine takes"
        " networks whose outputs depend on their inputs alone. Make that state an argument and an output of its forward"
    )


def writes_to_input(name: str) -> CaptureError:
    """Return the error for a model that changes what it is called with."""
    return CaptureError(
        f"the model changes its input {name!r} in place, and a compiled model leaves its inputs as they are: copy the"
        f" input first (`{name} = {name}.clone()`), and return the new value if the caller needs it"
    )


class Containers:
    """The arguments of one call by name, and the entries of their lists and dicts before the call."""

    def __init__(self, model: nn.Module, arguments: Arguments) -> None:
        bound = inspect.signature(model.forward).bind(*arguments.args, **arguments.kwargs)
        self._given = dict(bound.arguments)
        self._before = {name: tree_flatten(value) for name, value in self._given.items()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that the call was given, each with the name of its argument."""
        for name, (leaves, _) in self._before.items():
            yield from ((name, leaf) for leaf in leaves if isinstance(leaf, Tensor))

    def check(self) -> None:
        """Raise `CaptureError` if the call has put something else into a container, or taken something out."""
        for name, value in self._given.items():
            (before, structure), (after, found) = self._before[name], tree_flatten(value)
            if structure != found or any(one is not other for one, other in zip(before, after, strict=True)):
                raise writes_to_input(name)
