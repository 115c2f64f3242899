"""Memory for the gradients of large weights that is used again at the next step.

The system zeroes new pages one by one as they are first written: for the gradients of large layers that takes longer
than all products with what is kept of them.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch
from torch import Tensor

from ticketry_engine.kernels.planar.geometry import FLOAT
from ticketry_engine.kernels.program import Memory
from ticketry_engine.kernels.window import Array

_LARGE = 4 << 20
"""Bytes from which on memory is kept: less than that, what a step frees is there at the next one."""


class GradientMemory:
    """One memory for each key. Where somebody still has the tensor that lies in it, others get new memory."""

    def __init__(self) -> None:
        self._memories: dict[object, Memory] = {}
        self._lent: dict[object, weakref.ref[Array]] = {}

    def empty(self, key: object, shape: torch.Size) -> Tensor:
        """A tensor of float32; what is in it means nothing."""
        size = shape.numel() * FLOAT
        lent = self._lent.get(key)
        if size < _LARGE or (lent is not None and lent() is not None):
            return torch.empty(shape, dtype=torch.float32, device="cpu")
        memory = self._memories.get(key)
        if memory is None:
            memory = self._memories[key] = Memory(size)
        # The tensor, and every other one in its storage, keeps this very array.
        array = memory.bytes[:size].view(np.float32).reshape(shape)
        self._lent[key] = weakref.ref(array)
        return torch.from_numpy(array)
