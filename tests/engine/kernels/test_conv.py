"""Convolutions of both layouts against torch in float64: any shape, mask, processor and split of the work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arenas import library, targets
from engine.kernels.layouts import ACTS, KERNELS, Array, Block, Value, as_stored, assert_close
from ticketry.errors import EngineError
from ticketry_engine.kernels.channels_last import ChannelsLastGeometry, ChannelsLastValue
from ticketry_engine.kernels.channels_last.geometry import FLOAT, HALF
from ticketry_engine.kernels.planar import Geometry, Planes, scratch_bytes
from ticketry_engine.kernels.planar.conv import find_equal_rows
from ticketry_engine.kernels.planar.dots import Collect, Dots
from ticketry_engine.kernels.planar.taps import Taps
from ticketry_engine.kernels.planar.unfold import Turn, Unfolding
from ticketry_engine.kernels.program import BlockSpec, Op, Program
from ticketry_engine.kernels.target import target
from ticketry_engine.kernels.window import Convolution

Pair = tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """A convolution, what it is run on, and how. The defaults are a common layer on planes."""

    layout: str = "planar"
    where: str = "host"
    images: int = 16
    run: int = 0
    """Images of the batch; 0: those of a block."""
    threads: int = 1
    inputs: int = 40
    outputs: int = 28
    groups: int = 1
    size: Pair = (8, 8)
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (1, 1)
    dilation: Pair = (1, 1)
    density: float = 0.25
    rows: int = 1
    """Rows that retain the same columns."""
    shuffled: bool = True
    """Whether these rows lie apart."""
    act: Any = "relu"
    residual: bool = True
    bias: bool = True
    halo: int = 1
    one_row: bool = True
    """Whether rows of the input and the output have one length, where they may (planar)."""
    beside: int = 0
    items: tuple[int, int, int] = (FLOAT, FLOAT, FLOAT)
    """Bytes of a number of the input, the output and the residual."""
    apart: bool = False
    """Whether the input's channels lie apart, where they may (channels last)."""
    seed: int = 0

    @property
    def output(self) -> Pair:
        sizes = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        return height, width

    @property
    def depthwise(self) -> bool:
        return self.groups == self.inputs == self.outputs > 1


@st.composite
def layers(draw: st.DrawFn, layout: str) -> Layer:
    pairs, planar = st.tuples(st.integers(1, 3), st.integers(1, 3)), layout == "planar"
    kernel, dilation = draw(pairs), draw(st.one_of(st.just((1, 1)), pairs))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    groups = draw(st.sampled_from([1, 1, 1, 2, 5, 40]))
    alone = groups == 40 and draw(st.booleans())
    most = 2 if groups == 40 else 13 if planar else 40
    images = draw(st.sampled_from([1, 2, 4, 8, 16]) if planar else st.integers(1, 9))
    where = draw(st.sampled_from(["host", "avx2", "generic"] if planar else targets()))
    item = draw(st.sampled_from([FLOAT, HALF] if not planar and target(where).bf16 else [FLOAT]))
    return Layer(
        layout=layout,
        where=where,
        images=images,
        run=draw(st.integers(1, images)),
        threads=draw(st.sampled_from([1, 1, 2, 3])),
        inputs=groups * (1 if alone else draw(st.integers(1, min(most, 20)))),
        outputs=groups * (1 if alone else draw(st.integers(1, most))),
        groups=groups,
        size=(draw(st.integers(least[0], least[0] + 8)), draw(st.integers(least[1], least[1] + 16))),
        kernel=kernel,
        stride=draw(st.one_of(st.just((1, 1)), pairs)),
        padding=padding,
        dilation=dilation,
        density=draw(st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0])),
        rows=draw(st.sampled_from([1, 1, 3, 4, 5, 12] if planar else [1, 4, 8, 16, 32, 48, 64])),
        shuffled=draw(st.booleans()),
        act=draw(st.sampled_from(list(ACTS))),
        residual=draw(st.booleans()),
        bias=draw(st.booleans()),
        halo=draw(st.integers(0, 4)),
        one_row=draw(st.booleans()),
        beside=draw(st.sampled_from([0, 0, 3, 16])),
        items=(item, draw(st.sampled_from([FLOAT, item])), draw(st.sampled_from([FLOAT, item]))),
        apart=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


class Case:
    """A layer with random weights and values, run and compared with torch."""

    def __init__(self, layer: Layer) -> None:
        self.layer, rng = layer, np.random.default_rng(layer.seed)
        shape = (layer.outputs, layer.inputs // layer.groups, *layer.kernel)
        kept = rng.random((-(-layer.outputs // layer.rows), *shape[1:])) < layer.density
        kept[3::4] = 0  # some rows retain nothing
        order = rng.permutation(layer.outputs)
        kept = np.repeat(kept, layer.rows, axis=0)[order if layer.shuffled else np.sort(order)]
        self.weight = (kept * rng.standard_normal(shape)).astype(np.float32)
        bias = rng.standard_normal(layer.outputs).astype(np.float32) if layer.bias else None
        window = (layer.stride, layer.padding, layer.dilation, layer.groups)
        self.convolution = Convolution(self.weight, bias, *window, act=layer.act)
        item, y_item, residual_item = layer.items
        x = as_stored(rng.standard_normal((layer.images, layer.inputs, *layer.size)), item)
        rounded = self.weight if layer.depthwise else as_stored(self.weight, item)
        parts = (torch.from_numpy(one).double() for one in (x, rounded))
        expected = torch.nn.functional.conv2d(
            *parts, None if bias is None else torch.from_numpy(bias).double(), *window
        )

        self.block = block = Block(layer.layout, layer.where, layer.images)
        halo, gaps, out = layer.halo, [0, 0], (layer.outputs, *layer.output)
        if block.planar:
            around = max(halo, *layer.padding) if layer.images > target(layer.where).lanes else halo
            if layer.output[1] == layer.size[1] and layer.one_row:
                row = max(layer.size[1] + around, layer.output[1] + halo)
                gaps = [row - layer.size[1] - around, row - layer.output[1] - halo]
        else:
            around = max(layer.padding)
        if layer.apart and not block.planar and item == FLOAT and not layer.depthwise:
            geometry = ChannelsLastGeometry.build_channel_planes(*layer.size, layer.inputs, around)
            self.x = ChannelsLastValue(geometry, block.size)
            block.size += -(-geometry.bytes(layer.images) // 64) * 64
            block.set_input(self.x, x)
        else:
            self.x = block.place(x.shape[1:], around, gaps[0], layer.beside, item, x)
        self.y = block.place(out, halo, gaps[1], layer.beside, y_item)
        self.residual: Value | None = None
        if layer.residual:
            added = as_stored(rng.standard_normal(expected.shape), residual_item)
            own = (halo, gaps[1]) if block.planar else (1, 0)
            self.residual = block.place(out, *own, 5, residual_item, added)
            expected = expected + torch.from_numpy(added).double()
        self.expected = ACTS[layer.act](expected)

    def ops(self) -> list[Op]:
        return self.block.kernels.conv(self.x, self.y, self.convolution, self.residual, self.block.spec)

    def check(self, *, threads: int | None = None) -> Array:
        layer = self.layer
        run = layer.images if self.block.planar else layer.run or layer.images
        found = self.block.run(self.ops(), self.y, threads=threads or layer.threads, images=run)
        assert_close(found, self.expected[:run], item=layer.items[1])
        return found


@pytest.mark.parametrize("layout", KERNELS)
@given(data=st.data())
def test_any_convolution(layout: str, data: st.DataObject) -> None:
    Case(data.draw(layers(layout))).check()


@pytest.mark.parametrize("where", targets())
@pytest.mark.parametrize(("images", "tokens"), [(1, 13), (7, 1)])
def test_a_linear_layer_over_pixels(where: str, images: int, tokens: int) -> None:
    """Vectors alone (images of one pixel) and tokens (images of one row): few pixels, many columns."""
    plain = {"kernel": (1, 1), "padding": (0, 0), "size": (1, tokens), "residual": False, "act": None}
    Case(Layer("channels_last", where, images, inputs=333, outputs=70, density=0.6, rows=70, **plain)).check()


def test_inputs_that_are_far_apart() -> None:
    """Taps whose distance does not fit in 16 bits."""
    Case(Layer("channels_last", images=1, inputs=130, outputs=16, size=(3, 300), rows=16, density=1.0)).check()


def test_rows_without_columns_are_their_bias() -> None:
    case = Case(Layer("channels_last", images=2, outputs=20, density=0.0, residual=False))
    bias = case.convolution.bias[:, None, None]
    assert np.array_equal(case.check(), np.broadcast_to(np.maximum(bias, 0), (2, 20, 8, 8)))


# -- planar ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "rows"), [(1, 1), (8, 4), (16, 1), (16, 4)])
def test_threads_that_share_a_layer_give_the_same_bits(images: int, rows: int) -> None:
    layer = Layer(images=images, rows=rows, size=(4, 4))
    alone = Case(layer).check()
    for threads in (2, 3):
        assert np.array_equal(Case(layer).check(threads=threads), alone)


@pytest.mark.parametrize("images", [1, 4, 16])
def test_many_inputs_go_block_by_block(images: int) -> None:
    Case(Layer(inputs=90, images=images, act="gelu")).check()


def test_the_residual_may_be_what_is_written() -> None:
    case = Case(Layer(inputs=70))
    [(_, added)] = [(value, data) for value, data in case.block.data if value is case.residual]
    case.block.set_input(case.y, added)
    case.residual = case.y
    case.check()


def test_a_linear_layer_over_tokens_needs_no_scratch_memory() -> None:
    one = {"kernel": (1, 1), "padding": (0, 0), "halo": 0, "images": 1, "rows": 4}
    case = Case(Layer(size=(1, 37), **one))
    assert scratch_bytes(case.x, case.y, case.convolution, case.block.spec) == 0
    case.check()


@pytest.mark.parametrize("stride", [1, 2])
def test_rows_with_few_inputs_need_no_scratch_memory(stride: int) -> None:
    few = {"inputs": 12, "outputs": 12, "groups": 12, "images": 1, "halo": 0, "density": 0.4}
    case = Case(Layer(stride=(stride, stride), **few))
    case.block.spec = BlockSpec(target("host"), 1)
    assert [type(op.kernel) for op in case.ops()] == [Taps]
    case.check()


def test_values_of_one_position_take_inner_products() -> None:
    one = {"size": (1, 1), "kernel": (1, 1), "padding": (0, 0), "images": 1}
    case = Case(Layer(inputs=300, outputs=70, density=0.2, act="silu", **one))
    assert [type(op.kernel) for op in case.ops()] == [Collect, Dots]
    case.check()


def test_rows_without_any_column_are_in_sets_of_their_own() -> None:
    found = find_equal_rows(np.zeros((4, 0), bool), 2)
    assert [[rows.tolist() for rows in sets] for sets in found[1]] == [[[0], [1]], [[2], [3]]]
    assert list(found) == [1]


def test_rows_that_keep_the_same_columns_are_summed_together() -> None:
    kept = np.zeros((20, 30), dtype=bool)
    kept[:12, ::2] = True  # two sets of six
    kept[12:17, ::3] = True  # five
    kept[17, 1] = kept[18, 2] = True  # each alone; the last row keeps nothing
    found = find_equal_rows(kept, 1)
    sizes = {size: sorted(len(sets) for sets in groups) for size, groups in found.items()}
    assert sizes == {6: [2], 5: [1], 1: [1] * 3}
    assert sorted(np.concatenate([rows for groups in found.values() for sets in groups for rows in sets])) == list(
        range(20)
    )


def test_weights_take_little_more_memory_than_those_that_are_kept() -> None:
    for rows, most in ((1, 2.1), (32, 1.05)):
        case = Case(Layer(inputs=256, outputs=256, density=0.1, rows=rows, residual=False))
        program = Program(case.ops(), 16, case.block.size, library("host"), "parts")
        sizes = [op.args[index].nbytes for op in program.ops for index in (0, 1, 2)]  # type: ignore[union-attr]
        assert sum(sizes) <= most * 4 * np.count_nonzero(case.weight)


@pytest.mark.parametrize("where", targets())
@pytest.mark.parametrize(
    ("images", "vectors", "height", "kernel"),
    [(1, 1, 5, (3, 3)), (2, 2, 1, (3, 3)), (4, 3, 6, (1, 3)), (1, 4, 6, (5, 3)), (2, 1, 4, (5, 5))],
)
def test_rows_that_are_moved_sideways(where, images, vectors, height, kernel, monkeypatch) -> None:
    """The same copies, to the bit, as those that are put together piece by piece."""
    width = vectors * (target(where).lanes // images)
    layer = Layer(
        where=where,
        images=images,
        size=(height, width),
        kernel=kernel,
        padding=(kernel[0] // 2 + kernel[0] // 5, kernel[1] // 2),
        halo=0,
        inputs=9,
        outputs=40,
        density=0.2,
    )
    results = []
    for turned in (True, False):
        if not turned:
            monkeypatch.setattr(Unfolding, "uses_turn_kernel", False)
        case = Case(layer)
        assert any(isinstance(op.kernel, Turn) for op in case.ops()) == turned
        results.append(Case(layer).check())
    assert np.array_equal(*results)


# -- costs, bfloat16, errors -------------------------------------------------------------------------------------------


def test_costs_follow_what_is_kept_and_the_processor() -> None:
    def nanoseconds(layout: str, density: float, where: str = "host") -> float:
        rows = 1 if layout == "planar" else 32
        layer = Layer(layout, where, inputs=128, outputs=128, density=density, rows=rows, shuffled=False)
        case = Case(layer)
        return case.block.kernels.estimate_cost(case.x, case.y, case.convolution, case.block.spec)

    assert 0 < nanoseconds("planar", 0.1) < nanoseconds("planar", 0.9) / 2
    assert 0.1 < nanoseconds("channels_last", 0.1) / nanoseconds("channels_last", 1.0) < 0.15
    if target().lanes == 16:
        assert nanoseconds("channels_last", 1.0) < 0.7 * nanoseconds("channels_last", 1.0, "avx2")


needs_bf16 = pytest.mark.skipif(not target().bf16, reason="the processor multiplies no bfloat16")


@needs_bf16
@pytest.mark.parametrize(("images", "tokens", "inputs"), [(1, 1, 333), (7, 13, 333), (3, 1, 2)])
def test_a_linear_layer_of_pairs(images: int, tokens: int, inputs: int) -> None:
    """An odd number of channels; whole pairs pruned, and halves of pairs."""
    plain = {"kernel": (1, 1), "padding": (0, 0), "size": (1, tokens), "residual": False, "act": None}
    Case(
        Layer(
            "channels_last",
            images=images,
            inputs=inputs,
            outputs=70,
            density=0.6,
            rows=70,
            **plain,
            items=(HALF, FLOAT, FLOAT),
        )
    ).check()


@needs_bf16
def test_pairs_cost_half_where_they_are_kept_together() -> None:
    """A pair with one kept channel costs what a pair with two does."""
    rng, spec, cost = np.random.default_rng(0), BlockSpec(target(), 8), KERNELS["channels_last"].estimate_cost
    weight = rng.standard_normal((128, 128, 3, 3)).astype(np.float32)
    pairs = np.repeat(np.repeat(rng.random((4, 64, 3, 3)) < 0.25, 32, axis=0), 2, axis=1)
    apart = pairs * (np.arange(128) % 2 == 0)[:, None, None]

    def nanoseconds(mask: Array, item: int) -> float:
        x, y = (ChannelsLastValue(ChannelsLastGeometry.build(16, 16, 128, halo, item), 0) for halo in (1, 0))
        return cost(x, y, Convolution(weight * mask, padding=(1, 1)), spec)

    assert nanoseconds(pairs, HALF) == nanoseconds(apart, HALF)
    assert nanoseconds(pairs, HALF) < 0.6 * nanoseconds(pairs, FLOAT)


def _pixels(channels: int, halo: int = 0, item: int = FLOAT) -> ChannelsLastValue:
    return ChannelsLastValue(ChannelsLastGeometry.build(8, 8, channels, halo, item), 0)


def _planes(channels: int, halo: int = 1, images: int = 16, size: Pair = (8, 8)) -> Planes:
    return Planes.from_offset(Geometry.build(*size, halo, images), channels, 0)


_APART = ChannelsLastValue(ChannelsLastGeometry.build_channel_planes(8, 8, 4, 1), 0)
_ONE = {"padding": (1, 1)}


@pytest.mark.parametrize(
    ("message", "layout", "x", "y", "weight", "window"),
    [
        ("halo", "channels_last", _pixels(4, 1), _pixels(6), (6, 4, 5, 5), {"padding": (2, 2)}),
        ("but its output value has", "channels_last", _pixels(4, 1), _pixels(6), (6, 4, 3, 3), {}),
        ("3 channels cannot read an input of 4", "channels_last", _pixels(4, 1), _pixels(6), (6, 3, 3, 3), _ONE),
        ("innermost channels", "channels_last", _APART, _pixels(4), (4, 1, 3, 3), {**_ONE, "groups": 4}),
        ("cannot multiply bfloat16", "channels_last", *[_pixels(16, 0, HALF)] * 2, (16, 16, 1, 1), {}),
        ("channels", "planar", _planes(4), _planes(5), (4, 4, 3, 3), _ONE),
        ("gives 6 rows", "planar", _planes(4), _planes(4), (4, 4, 3, 3), {}),
        ("beyond the halo", "planar", *[_planes(4, 0, 16)] * 2, (4, 4, 3, 3), _ONE),
        ("scratch", "planar", _planes(4, 0, 4), _planes(4, 0, 4, (3, 3)), (4, 4, 3, 3), {**_ONE, "stride": (3, 3)}),
    ],
)
def test_what_cannot_be_done_is_refused(message, layout, x, y, weight, window) -> None:
    here = dataclasses.replace(target("avx2" if layout == "planar" else "host"), bf16=False)
    convolution = Convolution(np.ones(weight, np.float32), **window)
    with pytest.raises((EngineError, ValueError), match=message):
        KERNELS[layout].conv(x, y, convolution, None, BlockSpec(here))


def test_a_residual_of_another_shape_is_refused() -> None:
    layer = Convolution(np.ones((6, 4, 3, 3), np.float32), **_ONE)
    with pytest.raises(EngineError, match="residual"):
        KERNELS["channels_last"].conv(_pixels(4, 1), _pixels(6), layer, _pixels(4, 1), BlockSpec(target()))
