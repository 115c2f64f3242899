"""What is known of a tensor while a model runs: the label of every index of its dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ticketry.core.structure.labels import Ids


@dataclass
class Axes:
    """One entry a dimension.

    labels: the label of each index; None where all of them always stay (batch, space, time).
    zero: whether the slices of a removed channel are exactly 0 in the masked model, whatever the inputs.
    """

    labels: list[Ids | None]
    zero: list[bool]

    @classmethod
    def plain(cls, dimensions: int) -> Axes:
        return cls([None] * dimensions, [False] * dimensions)

    def copy(self) -> Axes:
        return Axes(list(self.labels), list(self.zero))

    def take(self, order: list[int]) -> Axes:
        """The axes in another order; -1 is an axis that stays."""
        return Axes(
            [None if axis < 0 else self.labels[axis] for axis in order],
            [False if axis < 0 else self.zero[axis] for axis in order],
        )


View = tuple[int, tuple[int, ...], tuple[int, ...]]


class Book:
    """The axes of every tensor seen.

    Tensors are known by the piece of memory that they look at (storage, offset, sizes, strides) and not by object: the
    autograd engine gives views new objects, and in-place operations write to the same piece.
    """

    def __init__(self) -> None:
        self._axes: dict[int, dict[View, Axes]] = {}

    def get(self, tensor: Tensor) -> Axes:
        """The tensor's axes; of a tensor never seen all stay."""
        found = self._views(tensor).get(_view(tensor))
        return found.copy() if found else Axes.plain(tensor.dim())

    def set(self, tensor: Tensor, axes: Axes) -> None:
        self._views(tensor)[_view(tensor)] = axes.copy()

    def forget_zeros(self, tensor: Tensor) -> None:
        """Nothing in the tensor's memory is known to be 0 any more: it was written to."""
        for axes in self._views(tensor).values():
            axes.zero = [False] * len(axes.zero)

    def _views(self, tensor: Tensor) -> dict[View, Axes]:
        if tensor.layout != torch.strided:
            return {}
        return self._axes.setdefault(tensor.untyped_storage().data_ptr(), {})


def _view(tensor: Tensor) -> View:
    if tensor.layout != torch.strided:
        return 0, tuple(tensor.shape), ()
    return int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride())
