"""Convolutions over planes against torch in float64: any shape, mask, layout, processor and split of the work."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arenas import targets
from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.planar import Geometry, Planes, conv, cost, scratch_bytes
from ticketry_engine.kernels.planar.conv import row_kinds
from ticketry_engine.kernels.planar.dots import Collect, Dots
from ticketry_engine.kernels.planar.taps import Taps
from ticketry_engine.kernels.planar.unfold import Turn, Unfolding
from ticketry_engine.kernels.program import BlockSpec, Program
from ticketry_engine.kernels.target import target
from ticketry_engine.kernels.window import Convolution

ACTS: dict[Any, Callable[[torch.Tensor], torch.Tensor]] = {
    None: lambda x: x,
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "hardswish": torch.nn.functional.hardswish,
    "tanh": torch.tanh,
    ("leaky_relu", 0.2): lambda x: torch.nn.functional.leaky_relu(x, 0.2),
}


@functools.cache
def _library(where: str) -> Library:
    return Library(target(where))


@dataclass(frozen=True)
class Layer:
    """A layer and its data, drawn at random."""

    inputs: int
    outputs: int
    groups: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    images: int
    where: str
    density: float
    together: int
    act: Any
    residual: bool
    halo: int
    seed: int

    @property
    def output(self) -> tuple[int, int]:
        sizes = zip((self.height, self.width), self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        return height, width


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 1, 2, 5]))
    where = draw(st.sampled_from(["host", "avx2", "generic"]))
    kernel, dilation = draw(pairs), draw(st.one_of(st.just((1, 1)), pairs))
    return Layer(
        inputs=groups * draw(st.integers(1, 9)),
        outputs=groups * draw(st.integers(1, 13)),
        groups=groups,
        height=draw(st.integers(1, 9)),
        width=draw(st.integers(1, 17)),
        kernel=kernel,
        stride=draw(st.one_of(st.just((1, 1)), pairs)),
        padding=draw(st.tuples(st.integers(0, 3), st.integers(0, 3))),
        dilation=dilation,
        images=draw(st.sampled_from([1, 2, 4, 8, 16])),
        where=where,
        density=draw(st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0])),
        together=draw(st.sampled_from([1, 1, 3, 5, 12])),
        act=draw(st.sampled_from(list(ACTS))),
        residual=draw(st.booleans()),
        halo=draw(st.integers(0, 4)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


class Case:
    """A layer as planes in an arena, run and compared with torch."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        rng = np.random.default_rng(layer.seed)
        shape = (layer.outputs, layer.inputs // layer.groups, *layer.kernel)
        sets = -(-layer.outputs // layer.together)
        kept = np.repeat(rng.random((sets, *shape[1:])) < layer.density, layer.together, axis=0)[: layer.outputs]
        self.weight = (kept[rng.permutation(layer.outputs)] * rng.standard_normal(shape)).astype(np.float32)
        self.bias = rng.standard_normal(layer.outputs).astype(np.float32) if rng.random() < 0.7 else None
        lanes = target(layer.where).lanes
        around = max(layer.halo, *layer.padding) if layer.images > lanes else layer.halo
        self.x = Planes.at(Geometry.of(layer.height, layer.width, around, layer.images), layer.inputs, 128)
        row = None
        if layer.output[1] == layer.width and rng.random() < 0.7:
            row = max(self.x.geometry.row, layer.output[1] + layer.halo)
            self.x = Planes.at(Geometry(layer.height, layer.width, around, layer.images, row), layer.inputs, 128)
        geometry = Geometry.of(*layer.output, layer.halo, layer.images, row)
        end = 128 + layer.inputs * self.x.geometry.bytes
        order = rng.permutation(layer.outputs)  # planes of a value may lie anywhere
        self.y = Planes(geometry, end + geometry.bytes * order)
        end += layer.outputs * geometry.bytes
        self.residual = Planes.at(geometry, layer.outputs, end) if layer.residual else None
        self.scratch = end + layer.outputs * geometry.bytes
        where = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
        self.convolution = Convolution(self.weight, self.bias, **where, act=layer.act)
        self.spec = BlockSpec(target(layer.where), layer.images, lambda size: self.scratch)
        self.rng = rng

    def program(self, split: str = "batch") -> Program:
        ops = conv(self.x, self.y, self.convolution, self.residual, self.spec)
        size = self.scratch + scratch_bytes(self.x, self.y, self.convolution, self.spec)
        return Program(ops, self.layer.images, size, _library(self.layer.where), split)

    def run(self, program: Program, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """What comes out and what should. Where nothing may be written, nothing was."""
        layer = self.layer
        workspace = program._take_workspace(threads)
        program._give_back(workspace)
        arena = workspace.arenas[0].bytes
        arena[self.scratch :] = 255  # NaN: what is there is not to be relied on
        value = self.rng.standard_normal((layer.images, layer.inputs, layer.height, layer.width))
        value = value.astype(np.float32)
        beside = self.rng.standard_normal((layer.images, layer.outputs, *layer.output)).astype(np.float32)
        _put(arena, self.x, value)
        if self.residual is not None:
            _put(arena, self.residual, beside)
        before = {name: arena[p.offsets.min() : p.offsets.max() + p.geometry.bytes].copy() for name, p in self.read()}
        program.run(layer.images, [], threads)
        for name, planes in self.read():
            now = arena[planes.offsets.min() : planes.offsets.max() + planes.geometry.bytes]
            np.testing.assert_array_equal(now, before[name])
        _halo_is_zero(arena, self.y)
        options = (layer.stride, layer.padding, layer.dilation, layer.groups)
        weight, bias = (None if v is None else torch.from_numpy(v).double() for v in (self.weight, self.bias))
        expected = torch.nn.functional.conv2d(torch.from_numpy(value).double(), weight, bias, *options)
        if self.residual is not None:
            expected = expected + torch.from_numpy(beside).double()
        return _get(arena, self.y), ACTS[layer.act](expected).numpy()

    def read(self) -> list[tuple[str, Planes]]:
        return [("x", self.x)] + ([] if self.residual is None else [("residual", self.residual)])


def _pixels(arena: np.ndarray, planes: Planes, channel: int) -> np.ndarray:
    """Height x width x images, a view."""
    g = planes.geometry
    begin = int(planes.offsets[channel]) + g.position(0, 0) * g.step
    flat = arena[begin:][: ((g.height - 1) * g.row + g.width) * g.step].view(np.float32)
    strides = (g.row * g.step, g.step, 4)
    return np.lib.stride_tricks.as_strided(flat, (g.height, g.width, g.images), strides)


def _put(arena: np.ndarray, planes: Planes, value: np.ndarray) -> None:
    for channel in range(planes.channels):
        _pixels(arena, planes, channel)[:] = value[:, channel].transpose(1, 2, 0)


def _get(arena: np.ndarray, planes: Planes) -> np.ndarray:
    return np.stack([_pixels(arena, planes, channel) for channel in range(planes.channels)]).transpose(3, 0, 1, 2)


def _halo_is_zero(arena: np.ndarray, planes: Planes) -> None:
    for channel, offset in enumerate(planes.offsets):
        plane = arena[offset : offset + planes.geometry.positions * planes.geometry.step].copy()
        alone = Planes(planes.geometry, np.zeros(1, dtype=np.int64))
        _pixels(plane, alone, 0)[:] = 0
        assert not plane.any(), f"the halo of channel {channel} was written to"


def _close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max(initial=0) <= 1e-5 * max(1.0, np.abs(expected).max(initial=0))


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(layers())
def test_equals_torch(layer: Layer) -> None:
    if min(layer.output) < 1:
        return
    case = Case(layer)
    _close(*case.run(case.program()))


def _layer(**changes: Any) -> Layer:
    usual: dict[str, Any] = {
        "inputs": 40,
        "outputs": 28,
        "groups": 1,
        "height": 8,
        "width": 8,
        "kernel": (3, 3),
        "stride": (1, 1),
        "padding": (1, 1),
        "dilation": (1, 1),
        "images": 16,
        "where": "host",
        "density": 0.25,
        "together": 1,
        "act": "relu",
        "residual": True,
        "halo": 1,
        "seed": 0,
    }
    return Layer(**{**usual, **changes})


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("images", [1, 8, 16])
@pytest.mark.parametrize("together", [1, 4])
def test_threads_that_share_a_layer_give_the_same_bits(images: int, together: int, threads: int) -> None:
    case = Case(_layer(images=images, together=together, height=4, width=4))
    state = case.rng.bit_generator.state
    alone, expected = case.run(case.program())
    case.rng.bit_generator.state = state
    together_, _ = case.run(case.program("parts"), threads)
    _close(alone, expected)
    np.testing.assert_array_equal(together_, alone)


@pytest.mark.parametrize("images", [1, 4, 16])
@pytest.mark.parametrize("where", ["host", "avx2"])
def test_many_inputs_go_block_by_block(images: int, where: str) -> None:
    case = Case(_layer(inputs=90, images=images, where=where, act="gelu"))
    _close(*case.run(case.program()))


def test_the_residual_may_be_what_is_written() -> None:
    layer = _layer(inputs=70)
    case = Case(layer)
    case.residual = case.y
    program = case.program()
    arena = program._take_workspace(1)
    program._give_back(arena)
    value = case.rng.standard_normal((16, 70, 8, 8)).astype(np.float32)
    beside = case.rng.standard_normal((16, 28, 8, 8)).astype(np.float32)
    _put(arena.arenas[0].bytes, case.x, value)
    _put(arena.arenas[0].bytes, case.y, beside)
    program.run(16, [])
    tensors = [torch.from_numpy(v).double() for v in (value, case.weight)]
    bias = None if case.bias is None else torch.from_numpy(case.bias).double()
    expected = torch.nn.functional.conv2d(tensors[0], tensors[1], bias, padding=1) + torch.from_numpy(beside)
    _close(_get(arena.arenas[0].bytes, case.y), torch.relu(expected).numpy())


def test_a_linear_layer_over_tokens() -> None:
    case = Case(_layer(height=1, width=37, kernel=(1, 1), padding=(0, 0), halo=0, images=1, together=4))
    assert scratch_bytes(case.x, case.y, case.convolution, case.spec) == 0
    _close(*case.run(case.program()))


def test_rows_that_keep_the_same_columns_are_summed_together() -> None:
    kept = np.zeros((20, 30), dtype=bool)
    kept[:12, ::2] = True  # two sets of six
    kept[12:17, ::3] = True  # five
    kept[17, 1] = kept[18, 2] = True  # each alone; the last row keeps nothing
    found = row_kinds(kept, 1)
    assert {size: sorted(len(sets) for sets in groups) for size, groups in found.items()} == {
        6: [2],
        5: [1],
        1: [1] * 3,
    }
    rows = np.concatenate([rows for groups in found.values() for sets in groups for rows in sets])
    assert sorted(rows) == list(range(20))


def test_weights_take_little_more_memory_than_those_that_are_kept() -> None:
    for together, most in ((1, 2.1), (32, 1.05)):
        layer = _layer(inputs=256, outputs=256, density=0.1, together=together, residual=False)
        case = Case(layer)
        sizes = [op.args[index].nbytes for op in case.program().ops for index in (0, 1, 2)]  # type: ignore[union-attr]
        assert sum(sizes) <= most * 4 * np.count_nonzero(case.weight)


def test_costs_grow_with_what_is_kept() -> None:
    sparse, dense = (Case(_layer(density=density)) for density in (0.1, 0.9))
    costs = [cost(case.x, case.y, case.convolution, case.spec) for case in (sparse, dense)]
    assert 0 < costs[0] < costs[1] / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"halo": 0}, "beyond the halo"),
        ({"images": 4, "halo": 0, "stride": (3, 3)}, "scratch"),
    ],
)
def test_what_cannot_be_done_is_said(change: dict[str, Any], message: str) -> None:
    layer = _layer(**change, residual=False)
    if layer.images == 16:
        layer = _layer(**change, where="avx2", residual=False)
    geometry = Geometry.of(8, 8, 0, layer.images)
    weight = np.ones((4, 4, 3, 3), dtype=np.float32)
    x, y = Planes.at(geometry, 4, 0), Planes.at(Geometry.of(*layer.output, 0, layer.images), 4, 4 * geometry.bytes)
    with pytest.raises(ValueError, match=message):
        conv(x, y, Convolution(weight, stride=layer.stride, padding=(1, 1)), None, BlockSpec(target(layer.where)))


@pytest.mark.parametrize("stride", [1, 2])
def test_rows_with_few_inputs_need_no_scratch_memory(stride: int) -> None:
    case = Case(_layer(inputs=12, outputs=12, groups=12, images=1, halo=0, density=0.4, stride=(stride, stride)))
    case.spec = BlockSpec(target("host"), 1)
    program = case.program()
    assert [type(op.kernel) for op in program.ops] == [Taps]
    _close(*case.run(program))


def test_values_of_one_position_take_inner_products() -> None:
    one = {"height": 1, "width": 1, "kernel": (1, 1), "padding": (0, 0), "images": 1}
    case = Case(_layer(inputs=300, outputs=70, density=0.2, act="silu", **one))
    program = case.program()
    assert [type(op.kernel) for op in program.ops] == [Collect, Dots]
    _close(*case.run(program))


def test_shapes_that_do_not_fit() -> None:
    geometry = Geometry.of(8, 8, 1, 16)
    x = Planes.at(geometry, 4, 0)
    weight = np.ones((4, 4, 3, 3), dtype=np.float32)
    with pytest.raises(ValueError, match="channels"):
        conv(x, Planes.at(geometry, 5, 0), Convolution(weight, padding=(1, 1)), None, BlockSpec(target()))
    with pytest.raises(ValueError, match="gives 6 rows"):
        conv(x, x, Convolution(weight), None, BlockSpec(target()))


@pytest.mark.parametrize("where", targets())
@pytest.mark.parametrize("images", [1, 2, 4])
@pytest.mark.parametrize(
    ("vectors", "height", "kernel", "padding"),
    [
        (1, 5, (3, 3), (1, 1)),
        (2, 4, (3, 3), (1, 1)),
        (2, 1, (3, 3), (1, 1)),
        (3, 6, (1, 3), (0, 1)),
        (4, 6, (5, 3), (3, 1)),
        (1, 4, (5, 5), (2, 2)),
    ],
)
def test_rows_that_are_moved_sideways(
    where: str,
    images: int,
    vectors: int,
    height: int,
    kernel: tuple[int, int],
    padding: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same copies, to the bit, as those that are put together piece by piece."""
    each = target(where).lanes // images
    layer = _layer(
        where=where,
        images=images,
        width=vectors * each,
        height=height,
        kernel=kernel,
        padding=padding,
        halo=0,
        inputs=9,
        outputs=40,
        density=0.2,
    )
    results = []
    for turned in (True, False):
        if not turned:
            monkeypatch.setattr(Unfolding, "turned", False)
        case = Case(layer)
        program = case.program()
        assert any(isinstance(op.kernel, Turn) for op in program.ops) == turned
        found, expected = case.run(program)
        _close(found, expected)
        results.append(found)
    np.testing.assert_array_equal(*results)
