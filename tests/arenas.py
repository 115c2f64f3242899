"""Targets that this processor runs, and tensors between guard pages."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence

import numpy as np
import torch

from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.target import target

_LIBRARIES: dict[str, Library] = {}
_PAGE = mmap.PAGESIZE


def targets() -> list[str]:
    """Names of the targets whose kernels this processor can run: its own, and those with narrower vectors."""
    return {16: ["host", "avx2", "generic"], 8: ["host", "generic"]}.get(target().lanes, ["host"])


def library(name: str) -> Library:
    """Compiles kernels for a target."""
    if name not in _LIBRARIES:
        _LIBRARIES[name] = Library(target(name))
    return _LIBRARIES[name]


def guarded(values: torch.Tensor, order: Sequence[int], spread: Sequence[int], late: bool) -> torch.Tensor:
    """A copy of a tensor, its dimensions laid out in an order, in memory that ends (or begins) at a guard page.

    Args:
        values: what it holds.
        order: the dimensions, from the one with the largest stride to the one with the smallest.
        spread: for each dimension, by how much its stride is larger than needed (NaN in between).
        late: whether the memory ends at a page that may not be touched, rather than begins after one.
    """
    strides, extent = [0] * values.ndim, 1
    for dimension in reversed(order):
        strides[dimension] = extent * spread[dimension]
        extent = strides[dimension] * (values.shape[dimension] - 1) + extent
        extent = max(extent, strides[dimension] * values.shape[dimension] if dimension != order[0] else extent)
    floats = _between_guards(extent, late)
    floats[:] = np.nan
    # as_strided wants a tensor that owns enough: the guarded floats are exactly the extent
    tensor = torch.from_numpy(floats).as_strided(values.shape, strides)
    tensor.copy_(values)
    return tensor


def outside(tensor: torch.Tensor) -> torch.Tensor:
    """Return the memory of a guarded tensor between its elements."""
    storage = torch.tensor([], dtype=tensor.dtype).set_(tensor.untyped_storage())
    storage = storage[tensor.storage_offset() :]
    used = torch.zeros(len(storage), dtype=torch.bool)
    used.as_strided(tensor.shape, tensor.stride()).fill_(True)
    return storage[~used]


def _between_guards(count: int, late: bool) -> np.ndarray:
    size = -(-4 * count // _PAGE) * _PAGE
    memory = mmap.mmap(-1, size + 2 * _PAGE)
    raw = np.frombuffer(memory, dtype=np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    for page in (0, _PAGE + size):
        if libc.mprotect(ctypes.c_void_p(raw.ctypes.data + page), _PAGE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    start = _PAGE + size - 4 * count if late else _PAGE
    return raw[start : start + 4 * count].view(np.float32)
