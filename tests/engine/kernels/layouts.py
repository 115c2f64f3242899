"""Values in an arena, in either layout, filled and read by numpy, so that each kernel is tested alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from arenas import library, targets
from ticketry_engine.kernels import channels_last, planar
from ticketry_engine.kernels.bfloat import round_to_bfloat16
from ticketry_engine.kernels.channels_last import ChannelsLastGeometry, ChannelsLastValue
from ticketry_engine.kernels.channels_last.geometry import FLOAT, HALF
from ticketry_engine.kernels.planar import Geometry, Planes
from ticketry_engine.kernels.program import BlockSpec, Op, Program
from ticketry_engine.kernels.target import target

Array = np.ndarray[Any, Any]
Value = Any
"""`Planes` or `ChannelsLastValue`."""

KERNELS: dict[str, Any] = {"planar": planar, "channels_last": channels_last}
GUARD = 4096
"""Bytes between values, which no kernel may write to."""

F = torch.nn.functional
ACTS: dict[Any, Callable[[torch.Tensor], torch.Tensor]] = {
    None: lambda x: x,
    "relu": torch.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    ("leaky_relu", 0.2): lambda x: F.leaky_relu(x, 0.2),
}


class Block:
    """Memory for values of one layout, and what it holds before and after operations ran on them."""

    def __init__(self, layout: str, where: str = "host", images: int = 1) -> None:
        self.planar, self.kernels, self.where, self.images = layout == "planar", KERNELS[layout], where, images
        self.size = GUARD
        self.data: list[tuple[Value, Array]] = []
        self.scratch = (0, 0)
        """First byte and size of what may be left in any state."""
        self.spec = BlockSpec(target(where), images, self._reserve)

    def place(
        self, shape: Sequence[int], halo: int = 0, gap: int = 0, beside: int = 0, item: int = FLOAT, data: Any = None
    ) -> Value:
        """Return room for a value of [channels, height, width], with other channels before and behind it."""
        channels, height, width = shape
        whole = channels + 2 * beside
        if self.planar:
            geometry = Geometry.build(height, width, halo, self.images, width + halo + gap)
            order = np.random.default_rng(whole).permutation(whole)  # planes may be in any order
            value, size = Planes(geometry, self.size + geometry.bytes * order), geometry.bytes * whole
        else:
            pixels = ChannelsLastGeometry.build(height, width, whole, halo, item)
            value, size = ChannelsLastValue(pixels, self.size), -(-pixels.bytes(self.images) // 64) * 64
        self.size += size + GUARD
        if beside:  # must not be taken for part of the value
            self.data.append((value, np.full((self.images, whole, height, width), 1e6, np.float32)))
        found = value.channel_range(beside, channels)
        if data is not None:
            self.set_input(found, data)
        return found

    def _reserve(self, size: int) -> int:
        self.scratch = (-(-self.size // 64) * 64, size)
        self.size = sum(self.scratch) + 64
        return self.scratch[0]

    def set_input(self, value: Value, data: Array) -> None:
        self.data.append((value, np.asarray(data)))

    def run(
        self,
        ops: Sequence[Op],
        output: Value,
        *,
        threads: int = 1,
        external: Sequence[torch.Tensor] = (),
        images: int | None = None,
    ) -> Array:
        """Run, check that nothing but the output changed, and return it as [images, channels, height, width].

        With several blocks, the output is what the last one left; images that it lacks are from the one before.
        """
        images = self.images if images is None else images
        program = Program(ops, self.images, self.size, library(self.where), split="parts")
        workspace = program._take_workspace(threads)
        program._return_workspace(workspace)
        memory = workspace.arenas[0].bytes
        touched = self.images if self.planar else min(images, self.images)
        _write(memory, output, np.full_like(_read_values(memory, output), np.nan), self.images)
        for value, data in self.data:
            _write(memory, value, data, len(data))
        first, size = self.scratch
        memory[first : first + size] = 255  # NaN
        before = memory.copy()
        program.run(images, [tensor.data_ptr() for tensor in external], threads)
        result = _read_values(memory, output, touched)
        _write(memory, output, _read_values(before, output, touched), touched)
        free = [(first, first + size)]
        if self.planar:  # behind a plane, kernels may write zeros
            g = output.geometry
            free += [(int(offset) + g.positions * g.position_bytes, int(offset) + g.bytes) for offset in output.offsets]
        for low, high in free:
            memory[low:high] = before[low:high]
        assert np.array_equal(memory, before), "something beside the output changed"
        return result


def _pixels(memory: Array, value: Value, images: int) -> list[Array]:
    """Views of [images, channels, height, width]: one of all channels, or one per channel; bfloat16 as its bits."""
    g = value.geometry
    if isinstance(value, Planes):
        start, strides = g.pixel_position(0, 0) * g.position_bytes, (4, 4, g.row * g.position_bytes, g.position_bytes)
        shape = (g.images, 1, g.height, g.width)
        return [np.ndarray(shape, np.float32, memory, int(o) + start, strides) for o in value.offsets]
    strides = (g.image, g.channel_stride or g.item, g.row_bytes, g.pixel)
    kind = np.float32 if g.item == FLOAT else np.uint16
    shape = (images, value.channels, g.height, g.width)
    return [np.ndarray(shape, kind, memory, value.first_channel_offset + g.pixel_offset(0, 0), strides)]


def _read_values(memory: Array, value: Value, images: int = 1) -> Array:
    found = np.concatenate(_pixels(memory, value, images), axis=1)
    return found if found.dtype == np.float32 else (found.astype(np.uint32) << 16).view(np.float32)


def _write(memory: Array, value: Value, data: Array, images: int) -> None:
    for channel, view in enumerate(_pixels(memory, value, images)):
        numbers = data[:, channel : channel + 1] if isinstance(value, Planes) else data
        view[:] = numbers if view.dtype == np.float32 else round_to_bfloat16(np.ascontiguousarray(numbers, np.float32))


def as_stored(data: Array, item: int) -> Array:
    """Return the numbers that a value in memory holds of these."""
    data = np.asarray(data, np.float32)
    return data if item == FLOAT else (round_to_bfloat16(data).astype(np.uint32) << 16).view(np.float32)


def assert_close(result: Array, expected: Any, tolerance: float = 1e-5, item: int = FLOAT) -> None:
    """Differences are within the tolerance of the largest expected value, and within a rounding of bfloat16."""
    expected = np.asarray(expected)
    assert result.shape == expected.shape
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(result[~finite], expected[~finite])
    scale = max(float(np.abs(expected[finite]).max(initial=0)), 1e-30)
    slack = (0 if item == FLOAT else 2**-8) * np.abs(expected[finite]) + tolerance * scale
    assert (np.abs(result[finite] - expected[finite]) <= slack).all()


@dataclass(frozen=True)
class Setting:
    """Memory of an operation's values, and the target that it runs on."""

    layout: str
    where: str
    images: int
    threads: int
    items: tuple[int, int, int]
    halos: tuple[int, int, int]
    gaps: tuple[int, int, int]
    beside: int
    in_place: bool
    seed: int

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def check(
        self,
        inputs: Sequence[Array],
        build: Callable[..., list[Op]],
        truth: Callable[..., torch.Tensor],
        *,
        tolerance: float = 1e-5,
        in_place: bool = False,
        one_format: bool = False,
        halos: bool = True,
    ) -> None:
        """Compare ``build(block, *values, y)`` with ``truth`` of the same numbers in float64.

        Args:
            in_place: whether the result may replace the first input.
            one_format: whether all values have to have numbers of one size.
            halos: whether values may have halos, and other channels beside them.
        """
        block = Block(self.layout, self.where, self.images)
        places = [
            (self.halos[k % 3] * halos, self.gaps[k % 3], self.beside * halos, self.items[0 if one_format else k % 3])
            for k in range(len(inputs) + 1)
        ]
        inputs = [as_stored(one, place[3]) for one, place in zip(inputs, places, strict=False)]
        expected = truth(*(torch.from_numpy(one).double() for one in inputs))
        values = [block.place(one.shape[1:], *place, one) for one, place in zip(inputs, places, strict=False)]
        replaced = self.in_place and in_place and expected.shape == inputs[0].shape
        y = values[0] if replaced else block.place(expected.shape[1:], *places[-1])
        result = block.run(build(block, *values, y), y, threads=self.threads)
        assert_close(result, expected, tolerance, places[0 if replaced else -1][3])


@st.composite
def settings_of(draw: st.DrawFn, layout: str) -> Setting:
    where = draw(st.sampled_from(targets()))
    half = layout == "channels_last" and target(where).bf16
    sizes, small = st.sampled_from([FLOAT, HALF] if half else [FLOAT]), st.integers(0, 2)
    return Setting(
        layout=layout,
        where=where,
        images=draw(st.sampled_from([1, 2, 4, 8, 16] if layout == "planar" else [1, 2, 3])),
        threads=draw(st.integers(1, 3)),
        items=draw(st.tuples(sizes, sizes, sizes)),
        halos=draw(st.one_of(small.map(lambda one: (one,) * 3), st.tuples(small, small, small))),
        gaps=draw(st.one_of(small.map(lambda one: (one,) * 3), st.tuples(small, small, small))),
        beside=draw(st.sampled_from([0, 0, 3, 20])),
        in_place=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )
