"""Attention over planes against torch's in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from arenas import Arena, targets
from engine.kernels.channels_last.test_attention import bias_of, mask_of, windowed
from ticketry.errors import EngineError
from ticketry_engine.kernels.planar.attention import attention
from ticketry_engine.kernels.planar.geometry import Geometry, Planes
from ticketry_engine.kernels.planar.move import load, store
from ticketry_engine.kernels.program import Bias, BlockSpec
from ticketry_engine.kernels.target import target

_TOKENS = st.one_of(st.integers(1, 15), st.integers(16, 70))


@pytest.mark.parametrize("name", targets())
@given(
    batch=st.integers(1, 18),
    heads=st.integers(1, 2),
    group=st.integers(1, 2),
    depth=st.integers(1, 9),
    values=st.sampled_from([1, 6]),
    tokens=st.tuples(_TOKENS, _TOKENS),
    images=st.sampled_from([1, 2, 4, 8, 16]),
    halo=st.integers(0, 2),
    causal=st.booleans(),
    biases=st.sampled_from(["none", "one", "each head's"]),
    scale=st.sampled_from([0.3, 30.0]),
    threads=st.integers(1, 3),
)
def test_attention(
    name, batch, heads, group, depth, values, tokens, images, halo, causal, biases, scale, threads
) -> None:
    queries, keys = tokens
    shapes = [(heads * group, depth, queries), (heads, depth, keys), (heads, values, keys)]
    q, k, v = (torch.randn(batch, shape[0] * shape[1], 1, shape[2]) for shape in shapes)
    found = torch.empty(batch, heads * group * values, 1, queries)
    bias = bias_of(np.random.default_rng(depth), biases, heads * group, queries, keys)
    arena = Arena(name, threads)
    planes = [arena.planes(Geometry.of(1, t.shape[3], halo, images), t.shape[1]) for t in (q, k, v, found)]
    moves = [op for number, t in enumerate((q, k, v)) for op in load(number, t.stride(), planes[number])]
    ops = [
        *moves,
        *attention(*planes, heads * group, scale, causal, BlockSpec(target(name)), bias),
        *store(3, found.stride(), planes[3]),
    ]
    arena.run(ops, batch, [q, k, v, found])
    parts = [
        t.double().view(batch, shape[0], shape[1], shape[2]).transpose(2, 3)
        for t, shape in zip((q, k, v), shapes, strict=True)
    ]
    mask = mask_of(bias, causal, queries, keys)
    wanted = scaled_dot_product_attention(*parts, attn_mask=mask, scale=scale, enable_gqa=True)
    wanted = wanted.transpose(2, 3).reshape(found.shape)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=2e-6 * scale + 1e-5)


def test_heads_that_do_not_fit_are_told() -> None:
    value = Planes.at(Geometry.of(1, 4, 0, 1), 6, 0)
    with pytest.raises(EngineError, match="4 heads"):
        attention(value, value, value, value, 4, 1.0, False, BlockSpec(target()))


def test_tokens_with_a_halo_between_are_told() -> None:
    value = Planes.at(Geometry.of(2, 4, 1, 1), 6, 0)
    with pytest.raises(EngineError, match="rows of 4 lie 5 positions apart"):
        attention(value, value, value, value, 2, 1.0, False, BlockSpec(target()))


@pytest.mark.parametrize("name", targets())
@given(
    batch=st.integers(1, 5),
    windows=st.integers(1, 4),
    heads=st.integers(1, 3),
    biases=st.sampled_from([None, (1, 1), (1, 3), (4, 1), (4, 3)]),
    depth=st.integers(1, 9),
    tokens=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    images=st.sampled_from([1, 2, 8, 16]),
    halo=st.integers(0, 1),
    threads=st.integers(1, 2),
)
def test_windows(name, batch, windows, heads, biases, depth, tokens, images, halo, threads) -> None:
    queries, keys = tokens
    q, k, v = (torch.randn(batch, heads * depth, windows, n) for n in (queries, keys, keys))
    found = torch.empty_like(q)
    arena = Arena(name, threads)
    planes = [arena.planes(Geometry.of(windows, t.shape[3], halo, images), heads * depth) for t in (q, k, v, found)]
    bias = None
    if biases is not None:
        shape = (min(biases[0], windows), min(biases[1], heads), queries, keys)
        bias = np.random.default_rng(depth).standard_normal(shape).astype(np.float32)
    held = None if bias is None else Bias.of("bias", bias)
    moves = [op for number, t in enumerate((q, k, v)) for op in load(number, t.stride(), planes[number])]
    attend = attention(*planes, heads, 0.3, False, BlockSpec(target(name)), held, True)
    arena.run([*moves, *attend, *store(3, found.stride(), planes[3])], batch, [q, k, v, found])
    wanted = windowed([t.numpy() for t in (q, k, v)], heads, 0.3, bias)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
