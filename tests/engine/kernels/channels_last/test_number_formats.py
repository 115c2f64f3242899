"""Operations on values in bfloat16 against numpy and torch on the same rounded numbers, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.kernels.channels_last.block import Block, activated, as_stored, close_in
from ticketry_engine.kernels import channels_last
from ticketry_engine.kernels.channels_last import ChannelsLastGeometry, ChannelsLastValue
from ticketry_engine.kernels.channels_last.geometry import FLOAT, HALF
from ticketry_engine.kernels.channels_last.number_formats import rounded
from ticketry_engine.kernels.program import BlockSpec
from ticketry_engine.kernels.target import target
from ticketry_engine.kernels.window import Window

Array = np.ndarray[Any, Any]

needs_bf16 = pytest.mark.skipif(not target().bf16, reason="the processor multiplies no bfloat16")
shapes = st.tuples(st.integers(1, 3), st.integers(1, 90), st.integers(1, 5), st.integers(1, 20))
sizes = st.sampled_from([FLOAT, HALF])


def test_numbers_are_rounded_to_the_nearest_even() -> None:
    one, step = np.float32(1), np.float32(2**-7)
    numbers = np.array([one, one + step, one + step / 2, one + 1.5 * step, -one - 0.51 * step, 0, np.inf], np.float32)
    expected = np.array([1, 1 + step, 1, 1 + 2 * step, -1 - step, 0, np.inf], np.float32)
    assert np.array_equal((rounded(numbers).astype(np.uint32) << 16).view(np.float32), expected)
    assert np.isnan((rounded(np.array([np.nan], np.float32)).astype(np.uint32) << 16).view(np.float32)).all()


def _value(
    block: Block, shape: tuple[int, ...], item: int, rng: np.random.Generator
) -> tuple[ChannelsLastValue, Array]:
    """A random value, part of a wider one with a random halo."""
    before, behind, halo = (int(n) for n in rng.integers(0, [3, 20, 2]))
    value = block.place(
        ChannelsLastGeometry.build(*shape[2:], before + shape[1] + behind, halo, item), before, shape[1]
    )
    data = as_stored(rng.standard_normal(shape), item)
    block.put(value, data)
    return value, data


@needs_bf16
@given(
    operation=st.sampled_from(["add", "mul", "affine", "apply", "copy", "layer_norm", "softmax"]),
    ones=st.tuples(*[st.booleans()] * 3),
    items=st.tuples(sizes, sizes, sizes),
    shape=shapes,
    act=st.sampled_from([None, "relu", "silu"]),
    threads=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_each_value(
    operation: str,
    ones: tuple[bool, ...],
    items: tuple[int, int, int],
    shape: tuple[int, ...],
    act: Any,
    threads: int,
    seed: int,
) -> None:
    """Of any sizes in memory: also from one to the other."""
    rng = np.random.default_rng(seed)
    block = Block(shape[0])
    x, data = _value(block, shape, items[0], rng)
    y, _ = _value(block, shape, items[2], rng)
    expected = torch.from_numpy(data).double()
    tolerance = 1e-5
    if operation in ("add", "mul"):
        kept = (1 if one else size for one, size in zip(ones, shape[1:], strict=True))
        other, second = _value(block, (shape[0], *kept), items[1], rng)
        ops = channels_last.elementwise(operation, x, other, y, act)
        both = torch.from_numpy(second).double()
        expected = activated(expected + both if operation == "add" else expected * both, act)
    elif operation == "affine":
        scale, shift = rng.standard_normal((2, shape[1])).astype(np.float32)
        ops = channels_last.affine(x, y, scale, shift, act)
        expected = expected * torch.from_numpy(scale)[:, None, None] + torch.from_numpy(shift)[:, None, None]
        expected = activated(expected, act)
    elif operation in ("apply", "copy"):
        ops = channels_last.apply(act, x, y) if operation == "apply" else channels_last.copy(x, y)
        expected = activated(expected, act if operation == "apply" else None)
    elif operation == "layer_norm":
        ops, tolerance = channels_last.layer_norm(x, y, eps=1e-3), 1e-4
        expected = torch.nn.functional.layer_norm(expected.movedim(1, -1), (shape[1],), eps=1e-3).movedim(-1, 1)
    else:
        ops, expected = channels_last.softmax(x, y), expected.softmax(1)
        tolerance = 2**-8  # exponentials are stored, and rounded, before they are divided
    [result] = block.run(ops, [y], "host", threads=threads)
    assert close_in(items[2], result, expected, tolerance)


@needs_bf16
@given(
    kind=st.sampled_from(["max", "mean", "global"]),
    items=st.tuples(sizes, sizes),
    shape=shapes,
    seed=st.integers(0, 99),
)
def test_pools(kind: str, items: tuple[int, int], shape: tuple[int, ...], seed: int) -> None:
    rng, functional = np.random.default_rng(seed), torch.nn.functional
    block = Block(shape[0])
    x, data = _value(block, shape, items[0], rng)
    numbers = torch.from_numpy(data).double()
    if kind == "global":
        expected = numbers.mean((2, 3), keepdim=True)
    else:
        pool = functional.max_pool2d if kind == "max" else functional.avg_pool2d
        expected = pool(numbers, 2, 2, 1)
    y = block.place(ChannelsLastGeometry.build(*expected.shape[2:], shape[1], 1, items[1]))
    if kind == "max":
        ops = channels_last.max_pool(x, y, Window((2, 2), (2, 2), (1, 1)))
    elif kind == "mean":
        ops = channels_last.avg_pool(x, y, Window((2, 2), (2, 2), (1, 1)))
    else:
        y = block.place(ChannelsLastGeometry.build(1, 1, shape[1], 0, items[1]))
        ops = channels_last.global_mean(x, y)
    [result] = block.run(ops, [y], "host")
    assert close_in(items[1], result, expected)


@needs_bf16
@given(
    shape=shapes,
    halo=st.integers(0, 2),
    last=st.booleans(),
    threads=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_in_and_out(shape: tuple[int, ...], halo: int, last: bool, threads: int, seed: int) -> None:
    """A float32 tensor comes in rounded, and goes out as it was held."""
    images, channels, height, width = shape
    rng = np.random.default_rng(seed)
    block = Block(images)
    value = block.place(ChannelsLastGeometry.build(height, width, channels + 19, halo, HALF), 3, channels)
    layout = torch.channels_last if last else torch.contiguous_format
    inside = torch.from_numpy(rng.standard_normal(shape).astype(np.float32)).contiguous(memory_format=layout)
    outside = torch.full_like(inside, torch.nan)
    strides = (channels * height * width, 1, width * channels, channels)
    strides = strides if last else (channels * height * width, height * width, width, 1)
    ops = channels_last.load(0, strides, value) + channels_last.store(1, strides, value)
    [held] = block.run(ops, [value], "host", threads=threads, external=[inside, outside])
    expected = as_stored(inside.contiguous().numpy(), HALF)
    assert np.array_equal(held, expected)
    assert np.array_equal(outside.contiguous().numpy(), expected)


@needs_bf16
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "size", "queries", "keys"), [(1, 5, 3, 9), (3, 33, 20, 20), (2, 64, 1, 40)])
def test_attention(causal: bool, heads: int, size: int, queries: int, keys: int) -> None:
    rng, here, images, width = np.random.default_rng(0), target(), 2, heads * size
    queries = keys if causal else queries
    block = Block(images)
    k = block.place(ChannelsLastGeometry.build(1, keys, 2 * width, 0, HALF), 0, width)
    v = k.part(width, width)
    q, y = (block.place(ChannelsLastGeometry.build(1, queries, width, 0, HALF)) for _ in range(2))
    data = [as_stored(rng.standard_normal((images, width, 1, n)), HALF) for n in (queries, keys, keys)]
    for value, numbers in zip((q, k, v), data, strict=True):
        block.put(value, numbers)
    ops = channels_last.attention(q, k, v, y, heads, size**-0.5, causal, BlockSpec(here, images, block.reserve))
    [result] = block.run(ops, [y], "host", threads=2)
    tensors = [torch.from_numpy(each).double().reshape(images, heads, size, -1).transpose(2, 3) for each in data]
    expected = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=causal)
    assert close_in(HALF, result, expected.transpose(2, 3).reshape(images, width, 1, queries))
