"""A block of images in an arena, filled and read by numpy, so that each kernel is tested alone."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ticketry_engine.kernels.channels_last import ChannelsLastGeometry, ChannelsLastValue
from ticketry_engine.kernels.channels_last.geometry import FLOAT, HALF
from ticketry_engine.kernels.channels_last.number_formats import rounded
from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.program import Op, Program
from ticketry_engine.kernels.target import target

Array = np.ndarray[Any, Any]

GUARD = 4096
"""Bytes between values, which no kernel may write to."""


def targets() -> list[str]:
    """The host, and targets of narrower vectors that it runs too."""
    return {16: ["host", "avx2", "generic"], 8: ["host", "generic"]}.get(target().lanes, ["host"])


@functools.cache
def library(name: str) -> Library:
    """One for all tests, so that no kernel is compiled twice."""
    return Library(target(name))


class Block:
    """Places for values, and what the arena holds before and after operations ran on them."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.size = GUARD
        self.values: dict[ChannelsLastValue, Array] = {}
        self.scratch = (0, 0)
        """First byte and size of what may be left in any state."""

    def place(self, geometry: ChannelsLastGeometry, first: int = 0, channels: int = -1) -> ChannelsLastValue:
        """Room for a new value."""
        found = ChannelsLastValue(geometry, self.size, first, channels)
        self.size += -(-geometry.bytes(self.images) // 64) * 64 + GUARD
        return found

    def reserve(self, size: int) -> int:
        """Scratch memory behind all values."""
        self.scratch = (-(-self.size // 64) * 64, size)
        self.size = sum(self.scratch) + 64
        return self.scratch[0]

    def put(self, value: ChannelsLastValue, data: Array) -> None:
        """Set a value to data [images, channels, height, width]."""
        self.values[value] = data

    def run(
        self,
        ops: Sequence[Op],
        outputs: Sequence[ChannelsLastValue],
        name: str,
        *,
        threads: int = 1,
        external: Sequence[torch.Tensor] = (),
        images: int | None = None,
    ) -> list[Array]:
        """Run, check that nothing but the outputs changed, and give them as [images, channels, height, width].

        Of several blocks, the outputs are what the last one left, behind its images those of the one before.
        """
        images = self.images if images is None else images
        touched = min(images, self.images)
        program = Program(ops, self.images, self.size, library(name), split="parts")
        workspace = program._take_workspace(threads)
        program._give_back(workspace)
        memory = workspace.arenas[0].bytes
        for value, data in self.values.items():
            view(memory, value, len(data))[:] = data if value.geometry.item == FLOAT else rounded(data)
        before = memory.copy()
        program.run(images, [tensor.data_ptr() for tensor in external], threads)
        results = [_floats(view(memory, output, touched)) for output in outputs]
        for output in outputs:
            view(memory, output, touched)[:] = view(before, output, touched)
        first, size = self.scratch
        memory[first : first + size] = before[first : first + size]
        assert np.array_equal(memory, before), "something beside the outputs changed"
        return results


def _floats(data: Array) -> Array:
    """A copy in float32, of bfloat16's bits as well."""
    return data.copy() if data.dtype == np.float32 else (data.astype(np.uint32) << 16).view(np.float32)


def view(memory: Array, value: ChannelsLastValue, images: int) -> Array:
    """A value's numbers in the arena as [images, channels, height, width]: its pixels, without halo and padding.

    bfloat16 as its bits.
    """
    geometry = value.geometry
    at = value.start + geometry.pixel_offset(0, 0)
    shape = (images, value.channels, geometry.height, geometry.width)
    strides = (geometry.image, geometry.channel_stride or geometry.item, geometry.row, geometry.pixel)
    return np.ndarray(shape, np.float32 if geometry.item == FLOAT else np.uint16, memory, at, strides)


def kinds() -> list[tuple[str, int]]:
    """Targets, each with the bytes of values that its kernels take."""
    return [(name, item) for name in targets() for item in ([FLOAT, HALF] if target(name).bf16 else [FLOAT])]


def as_stored(data: Array, item: int) -> Array:
    """The numbers that a value in memory holds of these."""
    return np.asarray(data, np.float32) if item == FLOAT else _floats(rounded(data))


def close_in(item: int, result: Array, expected: torch.Tensor | Array, tolerance: float = 1e-5) -> bool:
    """`close`, but for the rounding of each value to what is stored."""
    expected = np.asarray(expected)
    if item == FLOAT:
        return close(result, expected, tolerance)
    if result.shape != expected.shape:
        return False
    slack = tolerance * max(float(np.abs(expected).max(initial=0)), 1e-30)
    return bool((np.abs(result - expected) <= 2**-8 * np.abs(expected) + slack).all())


def close(result: Array, expected: torch.Tensor | Array, tolerance: float = 1e-5) -> bool:
    """Whether all differences are within the tolerance of the largest expected value."""
    expected = np.asarray(expected)
    finite = np.isfinite(expected)
    scale = max(float(np.abs(expected[finite]).max(initial=0)), 1e-30)
    if result.shape != expected.shape or not np.array_equal(result[~finite], expected[~finite]):
        return False
    return bool((np.abs(result[finite] - expected[finite]) <= tolerance * scale).all())


def activated(x: torch.Tensor, act: Any) -> torch.Tensor:
    """The activation by torch."""
    functional = torch.nn.functional
    known: Mapping[Any, Any] = {
        None: lambda v: v,
        "relu": functional.relu,
        "relu6": functional.relu6,
        "silu": functional.silu,
        "gelu": functional.gelu,
        "hardswish": functional.hardswish,
        "sigmoid": torch.sigmoid,
    }
    if isinstance(act, tuple):
        return functional.leaky_relu(x, act[1])
    result: torch.Tensor = known[act](x)
    return result
