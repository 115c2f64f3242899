"""Random numbers of a batch of which each of several processes has a part: drawn for the whole batch in each.

Dropout, stochastic depth, noise and augmentation draw numbers for the examples at hand. Here they are drawn for all
examples of the batch, from the same state of the generator in every process, and each process takes those of its own:
they are functions of the step and of an example's place in the whole batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ticketry.core.structure.dependencies.model_copies import EagerMode
from ticketry.errors import TrainingError
from ticketry.tasks.ranks import PartOfBatch

_aten = torch.ops.aten
_LIKE = {"rand_like", "randn_like", "randint_like"}
_OF_SIZE = {"rand", "randn", "randint"}
_DRAWN_FROM = {"bernoulli", "normal", "poisson"}
"""Of a tensor of probabilities, means or rates."""
_IN_PLACE = {
    "bernoulli_",
    "uniform_",
    "normal_",
    "random_",
    "exponential_",
    "geometric_",
    "cauchy_",
    "log_normal_",
}


class Draws(EagerMode):  # type: ignore[no-untyped-call]
    """In this block, what is drawn for each example of a part is what it would be in the whole batch.

    Drawn for each example is what has a first axis of as many entries as there are examples in the part, or of a
    multiple of them (patches or tokens of examples one after the other). Anything else is drawn once for the batch, the
    same in all processes. Shapes do not tell that for certain: `ranks.check` looks whether it
    holds, before a training.

    Raises:
        TrainingError: for numbers of a kind that cannot be cut so (a random order of the batch).
    """

    def __init__(self, part: PartOfBatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._part = part

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if not is_drawn(func, args, given):
            return func(*args, **given)
        name = func.overloadpacket.__name__
        if name in _IN_PLACE:
            return self._in_place(func, args, given)
        if name in _LIKE or (name in _DRAWN_FROM and args and isinstance(args[0], Tensor)):
            return self._of_tensor(func, args, given, filled=name in _DRAWN_FROM)
        if name in _OF_SIZE:
            return self._of_size(func, args, given)
        if name == "native_dropout":
            return self._dropout(func, *args)
        raise TrainingError(
            f"the network or its augmentation draws random numbers by torch's {name}, which cannot be cut among several"
            " devices: train it on one (--devices 1)"
        )

    # -- one kind each -------------------------------------------------------------------------------------------------

    def _in_place(self, func: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        own = args[0]
        if (whole := self._whole(own.shape)) is None:
            return func(*args, **given)
        drawn = func(_like(own, whole), *(self._spread(one) for one in args[1:]), **given)
        return own.copy_(drawn[self._rows(own.shape)])

    def _of_tensor(self, func: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any], filled: bool) -> Any:
        own = args[0]
        if (whole := self._whole(own.shape)) is None:
            return func(*args, **given)
        like = self._spread(own) if filled else _like(own, whole)
        return func(like, *(self._spread(one) for one in args[1:]), **given)[self._rows(own.shape)]

    def _of_size(self, func: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        place = next(number for number, one in enumerate(args) if isinstance(one, (list, tuple)))
        if (whole := self._whole(args[place])) is None:
            return func(*args, **given)
        return func(*args[:place], whole, *args[place + 1 :], **given)[self._rows(args[place])]

    def _dropout(self, func: Callable[..., Any], own: Tensor, p: float, train: bool | None) -> Any:
        if (whole := self._whole(own.shape)) is None or not train:
            return func(own, p, train)
        kept = func(torch.ones_like(_like(own, whole)), p, train)[1][self._rows(own.shape)]
        return own * kept * (1 / (1 - p) if p < 1 else 0.0), kept

    # -- places --------------------------------------------------------------------------------------------------------

    def _whole(self, shape: Sequence[int]) -> list[int] | None:
        """The shape with the examples of the whole batch; None for what is not of examples."""
        if not shape or not shape[0] or shape[0] % self._part.own:
            return None
        return [shape[0] // self._part.own * self._part.whole, *shape[1:]]

    def _rows(self, shape: Sequence[int]) -> slice:
        each = shape[0] // self._part.own
        return slice(self._part.first * each, (self._part.first + self._part.own) * each)

    def _spread(self, value: Any) -> Any:
        """A tensor of examples in its place in a batch of zeros; anything else as it is."""
        if not isinstance(value, Tensor) or (whole := self._whole(value.shape)) is None:
            return value
        found = _like(value, whole).zero_()
        found[self._rows(value.shape)] = value
        return found


def is_drawn(func: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> bool:
    """Whether an operation of torch draws random numbers, called with these arguments."""
    return _is_random(func) and ("attention" not in func.overloadpacket.__name__ or _dropped(func, args, given) > 0)


@functools.lru_cache(maxsize=1024)
def _is_random(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def _like(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory laid out as that of a tensor, on which the order of draws depends."""
    found = tensor.new_empty(shape)
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return found.to(memory_format=torch.channels_last)
    # As of recurrent layers, whose memory has the examples of each word side by side. Where there is one example, its
    # axis has the stride of the words'.
    stride, size = tensor.stride(), tensor.shape
    axes = sorted(range(tensor.dim()), key=lambda axis: (-stride[axis], size[axis] == 1))
    if axes == list(range(tensor.dim())) or not tensor.permute(axes).is_contiguous():
        return found
    laid = tensor.new_empty([shape[axis] for axis in axes])
    return laid.permute([axes.index(axis) for axis in range(tensor.dim())])


def _dropped(func: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> float:
    """The share that fused attention drops."""
    names = [argument.name for argument in func._schema.arguments]
    defaults = {argument.name: argument.default_value for argument in func._schema.arguments}
    called = {**defaults, **dict(zip(names, args)), **given}  # noqa: B905 - later arguments have their defaults
    return float(called.get("dropout_p") or 0.0)
