"""Convolutions over pixels against torch in float64."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.kernels.channels_last.block import Block, activated, as_stored, close, close_in, kinds, targets
from ticketry.errors import EngineError
from ticketry_engine.kernels.channels_last import ChannelsLastGeometry, ChannelsLastValue, conv, cost
from ticketry_engine.kernels.channels_last.geometry import FLOAT, HALF
from ticketry_engine.kernels.program import BlockSpec
from ticketry_engine.kernels.target import target
from ticketry_engine.kernels.window import Convolution


@dataclass(frozen=True)
class Case:
    """A convolution, what it is run on, and how."""

    target: str
    items: tuple[int, int, int]
    """Bytes of a value of the input, the output and the residual."""
    images: int
    run: int
    threads: int
    height: int
    width: int
    inputs: int
    outputs: int
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    density: float
    rows: int
    """Rows that share their columns."""
    shuffled: bool
    """Whether rows of a group lie apart."""
    act: Any
    residual: bool
    beside: int
    """Channels before and behind the input and the output in wider values."""
    apart: bool
    """Whether the input's channels lie apart, where they may."""
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, dilation, padding = pair(1, 3), pair(1, 2), pair(0, 2)
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) for i in range(2)]
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 40]))
    # As many groups as channels: a depthwise convolution.
    each = 1 if groups == 40 and draw(st.booleans()) else None
    images = draw(st.integers(1, 9))
    where, item = draw(st.sampled_from(kinds()))
    return Case(
        target=where,
        items=(item, draw(st.sampled_from([FLOAT, item])), draw(st.sampled_from([FLOAT, item]))),
        images=images,
        run=draw(st.integers(1, images)),
        threads=draw(st.sampled_from([1, 1, 2, 3])),
        height=draw(st.integers(least[0], 9)),
        width=draw(st.integers(least[1], 20)),
        inputs=groups * (each or draw(st.integers(1, 20 if groups < 40 else 2))),
        outputs=groups * (each or draw(st.integers(1, 40 if groups < 40 else 2))),
        groups=groups,
        kernel=kernel,
        stride=pair(1, 3),
        padding=padding,
        dilation=dilation,
        density=draw(st.sampled_from([0.0, 0.05, 0.3, 1.0])),
        rows=draw(st.sampled_from([1, 4, 8, 16, 32, 48, 64])),
        shuffled=draw(st.booleans()),
        act=draw(st.sampled_from([None, "relu", "relu6", "gelu", "sigmoid", ("leaky_relu", 0.1)])),
        residual=draw(st.booleans()),
        beside=draw(st.sampled_from([0, 0, 3, 16])),
        apart=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


def _weights(case: Case, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Weights whose groups of rows each keep columns of their own; some groups keep none."""
    shape = (case.outputs, case.inputs // case.groups, *case.kernel)
    weight = rng.standard_normal(shape).astype(np.float32)
    order = rng.permutation(case.outputs) if case.shuffled else np.arange(case.outputs)
    rows = [order[at : at + case.rows] for at in range(0, case.outputs, case.rows)]
    for number, group in enumerate(rows):
        weight[group] *= (rng.random(shape[1:]) < case.density) * (number % 4 != 3)
    return weight


@given(cases())
def test_any_convolution(case: Case) -> None:
    rng = np.random.default_rng(case.seed)
    weight = _weights(case, rng)
    bias = rng.standard_normal(case.outputs).astype(np.float32)
    block = Block(case.images)
    item, y_item, residual_item = case.items
    data = as_stored(rng.standard_normal((case.images, case.inputs, case.height, case.width)), item)
    depthwise = case.groups == case.inputs == case.outputs > 1
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(data).double(),
        torch.from_numpy(weight if depthwise else as_stored(weight, item)).double(),
        torch.from_numpy(bias).double(),
        case.stride,
        case.padding,
        case.dilation,
        case.groups,
    )
    beside = 2 * case.beside
    wide = ChannelsLastGeometry.build(case.height, case.width, case.inputs + beside, max(case.padding), item)
    x = block.place(wide, case.beside, case.inputs)
    if case.apart and item == FLOAT and not depthwise:
        x = block.place(
            ChannelsLastGeometry.build_channel_planes(case.height, case.width, case.inputs, max(case.padding))
        )
    there = ChannelsLastGeometry.build(*expected.shape[2:], case.outputs + beside, case.seed % 3, y_item)
    y = block.place(there, case.beside, case.outputs)
    block.put(x, data)
    residual = None
    if case.residual:
        # Some channels of a wider value, in a geometry of its own.
        other = ChannelsLastGeometry.build(*expected.shape[2:], case.outputs + 21, 1, residual_item)
        residual = block.place(other, 5, case.outputs)
        added = as_stored(rng.standard_normal(expected.shape), residual_item)
        block.put(residual, added)
        expected = expected + torch.from_numpy(added).double()
    layer = Convolution(weight, bias, case.stride, case.padding, case.dilation, case.groups, case.act)
    ops = conv(x, y, layer, residual, BlockSpec(target(case.target), case.images))
    [result] = block.run(ops, [y], case.target, threads=case.threads, images=case.run)
    assert close_in(y_item, result, activated(expected, case.act)[: case.run])


def _run(weight: np.ndarray[Any, Any], x_shape: tuple[int, ...], where: str, padding: int = 0) -> tuple[Any, Any]:
    """The result of a convolution without bias, and torch's."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal(x_shape).astype(np.float32)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(data).double(), torch.from_numpy(weight).double(), padding=padding
    )
    block = Block(x_shape[0])
    x = block.place(ChannelsLastGeometry.build(*x_shape[2:], x_shape[1], padding))
    y = block.place(ChannelsLastGeometry.build(*expected.shape[2:], len(weight)))
    block.put(x, data)
    ops = conv(x, y, Convolution(weight, padding=(padding, padding)), None, BlockSpec(target(where), x_shape[0]))
    return block.run(ops, [y], where)[0], expected


@pytest.mark.parametrize("where", targets())
@pytest.mark.parametrize("images", [1, 7])
@pytest.mark.parametrize("tokens", [1, 13])
def test_a_linear_layer(where: str, images: int, tokens: int) -> None:
    """Vectors alone (images of one pixel) and tokens (images of one row): few pixels, many columns."""
    weight = np.random.default_rng(1).standard_normal((70, 333, 1, 1)).astype(np.float32)
    weight[:, ::3] = 0
    result, expected = _run(weight, (images, 333, 1, tokens), where)
    assert close(result, expected)


def test_inputs_that_are_far_apart() -> None:
    """Taps whose distance does not fit in 16 bits."""
    weight = np.random.default_rng(1).standard_normal((16, 130, 3, 3)).astype(np.float32)
    result, expected = _run(weight, (1, 130, 3, 300), "host", padding=1)
    assert close(result, expected)


def test_rows_without_columns_are_their_bias() -> None:
    block = Block(2)
    x, y = block.place(ChannelsLastGeometry.build(3, 3, 4)), block.place(ChannelsLastGeometry.build(3, 3, 20))
    block.put(x, np.ones((2, 4, 3, 3), np.float32))
    bias = np.linspace(-1, 1, 20).astype(np.float32)
    ops = conv(x, y, Convolution(np.zeros((20, 4, 1, 1), np.float32), bias, act="relu"), None, BlockSpec(target()))
    [result] = block.run(ops, [y], "host")
    assert np.array_equal(result, np.broadcast_to(np.maximum(bias, 0)[:, None, None], result.shape))


def test_shapes_and_rows_that_do_not_fit() -> None:
    block, spec = Block(1), BlockSpec(target())
    x, y = block.place(ChannelsLastGeometry.build(8, 8, 4, 1)), block.place(ChannelsLastGeometry.build(8, 8, 6))
    weight = np.ones((6, 4, 3, 3), np.float32)
    with pytest.raises(EngineError, match="halo"):
        conv(x, y, Convolution(np.ones((6, 4, 5, 5), np.float32), padding=(2, 2)), None, spec)
    with pytest.raises(EngineError, match="but its output value has"):
        conv(x, y, Convolution(weight), None, spec)
    with pytest.raises(EngineError, match="3 channels cannot read an input of 4"):
        conv(x, y, Convolution(np.ones((6, 3, 3, 3), np.float32), padding=(1, 1)), None, spec)
    with pytest.raises(EngineError, match="residual"):
        conv(x, y, Convolution(weight, padding=(1, 1)), x, spec)
    apart, like = (
        block.place(ChannelsLastGeometry.build_channel_planes(8, 8, 4, 1)),
        block.place(ChannelsLastGeometry.build(8, 8, 4)),
    )
    alone = Convolution(np.ones((4, 1, 3, 3), np.float32), padding=(1, 1), groups=4)
    with pytest.raises(EngineError, match="needs an input with innermost channels"):
        conv(apart, like, alone, None, spec)


def test_what_a_layer_costs() -> None:
    """Nearly as much less as there are fewer weights, more on half the vectors, and less than it takes by nothing."""
    rng, spec = np.random.default_rng(0), BlockSpec(target())
    x = ChannelsLastValue(ChannelsLastGeometry.build(16, 16, 128, 1), 0)
    y = ChannelsLastValue(ChannelsLastGeometry.build(16, 16, 128, 0), 0)
    weight = rng.standard_normal((128, 128, 3, 3)).astype(np.float32)
    dense = cost(x, y, Convolution(weight, padding=(1, 1)), spec)
    kept = np.repeat(rng.random((4, 128, 3, 3)) < 0.1, 32, axis=0)
    sparse = cost(x, y, Convolution(weight * kept, padding=(1, 1)), spec)
    assert 0.1 * dense < sparse < 0.15 * dense
    if target().lanes == 16:
        assert dense < 0.7 * cost(x, y, Convolution(weight, padding=(1, 1)), BlockSpec(target("avx2")))


@pytest.mark.skipif(not target().bf16, reason="the processor multiplies no bfloat16")
@pytest.mark.parametrize(("images", "tokens", "inputs"), [(1, 1, 333), (7, 13, 333), (3, 1, 2)])
def test_a_linear_layer_of_pairs(images: int, tokens: int, inputs: int) -> None:
    """An odd number of channels; whole pairs pruned, and halves of pairs."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((70, inputs, 1, 1)).astype(np.float32)
    weight[:, ::3] = 0
    data = as_stored(rng.standard_normal((images, inputs, 1, tokens)), HALF)
    block = Block(images)
    x, y = (
        block.place(ChannelsLastGeometry.build(1, tokens, inputs, 0, HALF)),
        block.place(ChannelsLastGeometry.build(1, tokens, 70)),
    )
    block.put(x, data)
    [result] = block.run(conv(x, y, Convolution(weight), None, BlockSpec(target(), images)), [y], "host")
    expected = np.einsum("oc,ncht->noht", as_stored(weight[:, :, 0, 0], HALF).astype(np.float64), data)
    assert close(result, expected)


@pytest.mark.skipif(not target().bf16, reason="the processor multiplies no bfloat16")
def test_pairs_cost_half_where_they_are_kept_together() -> None:
    """A pair with one kept channel costs what a pair with two does."""
    rng, spec = np.random.default_rng(0), BlockSpec(target(), 8)
    weight = rng.standard_normal((128, 128, 3, 3)).astype(np.float32)
    pairs = np.repeat(np.repeat(rng.random((4, 64, 3, 3)) < 0.25, 32, axis=0), 2, axis=1)
    apart = pairs * (np.arange(128) % 2 == 0)[:, None, None]

    def nanoseconds(mask: np.ndarray[Any, Any], item: int) -> float:
        x, y = (ChannelsLastValue(ChannelsLastGeometry.build(16, 16, 128, halo, item), 0) for halo in (1, 0))
        return cost(x, y, Convolution(weight * mask, padding=(1, 1)), spec)

    assert nanoseconds(pairs, HALF) == nanoseconds(apart, HALF)
    assert nanoseconds(pairs, HALF) < 0.6 * nanoseconds(pairs, FLOAT)


def test_pairs_need_a_target_that_multiplies_them() -> None:
    spec = BlockSpec(dataclasses.replace(target(), bf16=False))
    x, y = (ChannelsLastValue(ChannelsLastGeometry.build(4, 4, 16, 0, HALF), 0) for _ in range(2))
    with pytest.raises(EngineError, match="cannot multiply bfloat16"):
        conv(x, y, Convolution(np.ones((16, 16, 1, 1), np.float32)), None, spec)
