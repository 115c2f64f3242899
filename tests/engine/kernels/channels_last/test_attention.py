"""Attention against torch in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.kernels.channels_last.block import Block, close, targets
from ticketry.errors import EngineError
from ticketry_engine.kernels.channels_last import ChannelsLastGeometry
from ticketry_engine.kernels.channels_last.attention import attention
from ticketry_engine.kernels.program import Bias, BlockSpec
from ticketry_engine.kernels.target import target


@given(
    where=st.sampled_from(targets()),
    images=st.integers(1, 3),
    heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 3]),
    biases=st.sampled_from(["none", "one", "each head's"]),
    size=st.integers(1, 70),
    queries=st.integers(1, 20),
    keys=st.integers(1, 90),
    causal=st.booleans(),
    threads=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
)
def test_attention(
    where: str,
    images: int,
    heads: int,
    group: int,
    biases: str,
    size: int,
    queries: int,
    keys: int,
    causal: bool,
    threads: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    queries = keys if causal else queries
    block, here = Block(images), target(where)
    shapes = [(group * heads, queries), (heads, keys), (heads, keys)]
    data = [rng.standard_normal((images, count * size, 1, n)).astype(np.float32) for count, n in shapes]
    bias = bias_of(rng, biases, group * heads, queries, keys)
    # Keys and values are channels of one wider value, as a layer that makes them at once leaves them.
    both = ChannelsLastGeometry.build(1, keys, 2 * heads * size)
    k = block.place(both, 0, heads * size)
    v = k.part(heads * size, heads * size)
    q, y = (block.place(ChannelsLastGeometry.build(1, queries, group * heads * size)) for _ in range(2))
    for value, numbers in zip((q, k, v), data, strict=True):
        block.put(value, numbers)
    spec = BlockSpec(here, images, block.reserve)
    ops = attention(q, k, v, y, group * heads, size**-0.5, causal, spec, bias)
    [result] = block.run(ops, [y], where, threads=threads)
    tensors = [torch.from_numpy(each).double().reshape(images, -1, size, each.shape[-1]) for each in data]
    mask = mask_of(bias, causal, queries, keys)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(each.transpose(2, 3) for each in tensors), attn_mask=mask, enable_gqa=True
    )
    assert close(result, expected.transpose(2, 3).reshape(images, group * heads * size, 1, queries))


def bias_of(rng: np.random.Generator, biases: str, heads: int, queries: int, keys: int) -> Bias | None:
    """What is added to scores: every fifth key hidden, but the first."""
    if biases == "none":
        return None
    values = rng.standard_normal((1 if biases == "one" else heads, queries, keys)).astype(np.float32)
    values[:, :, 4::5] = -np.inf
    return Bias.of("bias", values)


def mask_of(bias: Bias | None, causal: bool, queries: int, keys: int) -> torch.Tensor:
    """The same as torch takes it."""
    mask = torch.zeros(1, queries, keys).double() if bias is None else torch.from_numpy(bias.values).double()
    return mask.masked_fill(torch.ones(queries, keys).triu(1).bool(), float("-inf")) if causal else mask


def test_values_that_do_not_fit() -> None:
    block, spec = Block(1), BlockSpec(target())
    q, k = block.place(ChannelsLastGeometry.build(1, 4, 12)), block.place(ChannelsLastGeometry.build(1, 5, 12))
    with pytest.raises(EngineError, match="5 heads"):
        attention(q, k, k, q, 5, 1.0, False, spec)
    with pytest.raises(EngineError, match="do not match"):
        attention(q, k, q, q, 4, 1.0, False, spec)
    halo = block.place(ChannelsLastGeometry.build(1, 4, 12, 1))
    with pytest.raises(EngineError, match="halo"):
        attention(halo, k, k, halo, 4, 1.0, False, spec)
    far = block.place(ChannelsLastGeometry.build(1, 4097, 4))
    with pytest.raises(EngineError, match="at most 4096"):
        attention(far, far, far, far, 4, 1.0, False, spec)


@given(
    where=st.sampled_from(targets()),
    images=st.integers(1, 2),
    windows=st.integers(1, 4),
    heads=st.integers(1, 3),
    biases=st.sampled_from([None, (1, 1), (1, 3), (4, 1), (4, 3)]),
    size=st.integers(1, 40),
    tokens=st.tuples(st.integers(1, 20), st.integers(1, 60)),
    halo=st.integers(0, 1),
    threads=st.sampled_from([1, 2]),
)
def test_windows(where, images, windows, heads, biases, size, tokens, halo, threads) -> None:
    rng = np.random.default_rng(size)
    block, here = Block(images), target(where)
    queries, keys = tokens
    data = [rng.standard_normal((images, heads * size, windows, n)).astype(np.float32) for n in (queries, keys, keys)]
    places = [
        block.place(ChannelsLastGeometry.build(windows, n, heads * size, halo)) for n in (queries, keys, keys, queries)
    ]
    for value, numbers in zip(places[:3], data, strict=True):
        block.put(value, numbers)
    bias = None
    if biases is not None:
        shape = (min(biases[0], windows), min(biases[1], heads), queries, keys)
        bias = rng.standard_normal(shape).astype(np.float32)
    held = None if bias is None else Bias.of("bias", bias)
    ops = attention(*places, heads, 0.2, False, BlockSpec(here, images, block.reserve), held, True)
    [result] = block.run(ops, [places[3]], where, threads=threads)
    assert close(result, windowed(data, heads, 0.2, bias))


def windowed(data: list[np.ndarray], heads: int, scale: float, bias: np.ndarray | None) -> torch.Tensor:
    """Attention in windows of [images, channels, windows, tokens] by torch in float64."""
    parts = [torch.from_numpy(each).double().unflatten(1, (heads, -1)).permute(0, 3, 1, 4, 2) for each in data]
    mask = None if bias is None else torch.from_numpy(bias).double()
    made = torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask, scale=scale)
    return made.permute(0, 2, 4, 1, 3).flatten(1, 2)
