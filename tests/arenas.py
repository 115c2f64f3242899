"""Runs operations of the CPU engine on planes whose every byte is accounted for, and tensors between guard pages."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence

import numpy as np
import torch

from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.planar.geometry import Geometry, Planes
from ticketry_engine.kernels.program import Op, Program
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


class Arena:
    """Gives planes their places, runs operations on them, and checks the memory around the pixels."""

    def __init__(self, name: str, threads: int = 1, split: str = "parts") -> None:
        self.target, self.threads, self.split = name, threads, split
        self.size = 0
        self.values: list[Planes] = []

    def planes(self, geometry: Geometry, channels: int, shuffled: bool = True) -> Planes:
        """A value with planes in any order."""
        order = np.random.default_rng(channels).permutation(channels) if shuffled else np.arange(channels)
        value = Planes(geometry, self.size + geometry.bytes * order.astype(np.int64))
        self.size += geometry.bytes * channels
        self.values.append(value)
        return value

    def run(self, ops: Sequence[Op], batch: int, tensors: Sequence[torch.Tensor]) -> None:
        """Run a program of these operations; pixels and slack hold NaN before, halos zero before and after."""
        images = self.values[0].geometry.images
        program = Program(ops, images, self.size, library(self.target), self.split)
        workspace = program._take_workspace(self.threads if self.split == "parts" else 1)
        for memory in workspace.arenas:
            floats = memory.bytes.view(np.float32)
            floats[:] = np.nan
            for halo in self._halos(floats):
                halo[:] = 0
        program._give_back(workspace)
        program.run(batch, [tensor.data_ptr() for tensor in tensors], len(workspace.states))
        for memory in workspace.arenas:
            for halo in self._halos(memory.bytes.view(np.float32)):
                assert not halo.view(np.uint32).any(), "a halo that is not zero"

    def _halos(self, floats: np.ndarray) -> list[np.ndarray]:
        """Return views of the memory before, between and behind the pixels of each plane."""
        found = []
        for value in self.values:
            g = value.geometry
            inner, end = g.position(0, 0), g.positions
            starts = [g.position(y, 0) for y in range(g.height)]
            bounds = [(0, inner)]
            bounds += [
                (start + g.width, following) for start, following in zip(starts, [*starts[1:], end], strict=True)
            ]
            for offset in value.offsets:
                plane = floats[offset // 4 :]
                found += [plane[low * g.images : high * g.images] for low, high in bounds]
        return found


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
