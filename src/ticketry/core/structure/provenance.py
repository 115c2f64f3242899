"""Where the numbers in a tensor come from while a model runs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ticketry.core.structure.twin import Arguments


class Provenance:
    """Which tensors have been computed from the model's inputs, and which of these are, or come from, floats."""

    def __init__(self) -> None:
        self._inputs: set[int] = set()
        self._activations: set[int] = set()

    @classmethod
    def of(cls, arguments: Arguments) -> Provenance:
        found = cls()
        found._add([value for value in tree_flatten(arguments)[0] if isinstance(value, Tensor)], True, False)
        return found

    def activation(self, tensors: Iterable[Tensor]) -> bool:
        """Whether one of these is computed from floats that depend on the inputs."""
        return any(_storage(tensor) in self._activations for tensor in tensors)

    def computed(self, operands: Iterable[Tensor], results: Iterable[Tensor]) -> None:
        """An operation has made `results` from `operands`."""
        storages = {_storage(tensor) for tensor in operands}
        self._add(results, bool(storages & self._inputs), bool(storages & self._activations))

    def _add(self, tensors: Iterable[Tensor], inputs: bool, activations: bool) -> None:
        for tensor in tensors:
            storage = _storage(tensor)  # the memory may have been another tensor's before
            (set.add if inputs else set.discard)(self._inputs, storage)
            floats = activations or (inputs and tensor.is_floating_point())
            (set.add if floats else set.discard)(self._activations, storage)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0
