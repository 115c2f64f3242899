"""Attention against torch in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cpu.pixels.block import Block, close, targets
from ticketry.engine.cpu.pixels import Geometry
from ticketry.engine.cpu.pixels.attention import attention, attention_bytes
from ticketry.engine.cpu.target import target
from ticketry.errors import EngineError


@settings(max_examples=30)
@given(
    where=st.sampled_from(targets()),
    images=st.integers(1, 3),
    heads=st.integers(1, 3),
    size=st.integers(1, 70),
    queries=st.integers(1, 20),
    keys=st.integers(1, 90),
    causal=st.booleans(),
    biases=st.sampled_from(["none", "one", "all"]),
    threads=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
)
def test_attention(
    where: str,
    images: int,
    heads: int,
    size: int,
    queries: int,
    keys: int,
    causal: bool,
    biases: str,
    threads: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    queries = keys if causal else queries
    block, here = Block(images), target(where)
    data = [rng.standard_normal((images, heads * size, 1, n)).astype(np.float32) for n in (queries, keys, keys)]
    # Keys and values are channels of one wider value, as a layer that makes them at once leaves them.
    both = Geometry.of(1, keys, 2 * heads * size)
    k = block.place(both, 0, heads * size)
    v = k.part(heads * size, heads * size)
    q, y = (block.place(Geometry.of(1, queries, heads * size)) for _ in range(2))
    for value, numbers in zip((q, k, v), data, strict=True):
        block.put(value, numbers)
    scratch = block.size
    block.size += attention_bytes(k, images, here) + 64
    bias = None
    if biases != "none":
        bias = rng.standard_normal((heads if biases == "all" else 1, queries, keys)).astype(np.float32)
    ops = attention(q, k, v, y, heads, scratch, causal=causal, bias=bias, target=here)
    block.scratch = (scratch, attention_bytes(k, images, here))
    [result] = block.run(ops, [y], where, threads=threads)
    tensors = [torch.from_numpy(each).double().reshape(images, heads, size, -1).transpose(2, 3) for each in data]
    mask = torch.zeros(queries, keys, dtype=torch.float64) if bias is None else torch.from_numpy(bias).double()
    if causal:
        mask = mask + torch.full((queries, keys), -torch.inf, dtype=torch.float64).triu(1)
    expected = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=mask)
    assert close(result, expected.transpose(2, 3).reshape(images, heads * size, 1, queries))


def test_values_that_do_not_fit() -> None:
    block, here = Block(1), target()
    q, k = block.place(Geometry.of(1, 4, 12)), block.place(Geometry.of(1, 5, 12))
    with pytest.raises(EngineError, match="5 heads"):
        attention(q, k, k, q, 5, 0, target=here)
    with pytest.raises(EngineError, match="do not fit"):
        attention(q, k, q, q, 4, 0, target=here)
    with pytest.raises(EngineError, match="shape"):
        attention(q, k, k, q, 4, 0, bias=np.zeros((2, 4, 5), np.float32), target=here)
    halo = block.place(Geometry.of(1, 4, 12, 1))
    with pytest.raises(EngineError, match="halo"):
        attention(halo, k, k, halo, 4, 0, target=here)
    far = block.place(Geometry.of(1, 4097, 4))
    with pytest.raises(EngineError, match="at most 4096"):
        attention(far, far, far, far, 4, 0, target=here)
