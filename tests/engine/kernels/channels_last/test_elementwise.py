"""Operations on each value against numpy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.kernels.channels_last.block import Block, activated, close, targets
from ticketry.errors import EngineError
from ticketry_engine.kernels import channels_last
from ticketry_engine.kernels.channels_last import ChannelsLastGeometry, ChannelsLastValue

ACTS = [None, "relu", "silu", ("leaky_relu", 0.2)]
shapes = st.tuples(st.integers(1, 4), st.integers(1, 90), st.integers(1, 5), st.integers(1, 5))
common: dict[str, Any] = {
    "where": st.sampled_from(targets()),
    "shape": shapes,
    "act": st.sampled_from(ACTS),
    "threads": st.sampled_from([1, 2, 3]),
    "seed": st.integers(0, 99),
}


def _value(
    block: Block, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[ChannelsLastValue, np.ndarray[Any, Any]]:
    """A random value, part of a wider one with a random halo."""
    before, behind, halo = (int(n) for n in rng.integers(0, [3, 20, 2]))
    geometry = ChannelsLastGeometry.build(*shape[2:], before + shape[1] + behind, halo)
    value = block.place(geometry, before, shape[1])
    data = rng.standard_normal(shape).astype(np.float32)
    block.put(value, data)
    return value, data


@given(
    operation=st.sampled_from(["add", "mul"]), ones=st.tuples(*[st.booleans()] * 3), in_place=st.booleans(), **common
)
def test_two_values(
    operation: str,
    ones: tuple[bool, ...],
    in_place: bool,
    where: str,
    shape: tuple[int, ...],
    act: Any,
    threads: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    block = Block(shape[0])
    x, a = _value(block, shape, rng)
    other, b = _value(block, (shape[0], *(1 if one else n for one, n in zip(ones, shape[1:], strict=True))), rng)
    y = x if in_place else _value(block, shape, rng)[0]
    ops = channels_last.elementwise(operation, x, other, y, act)
    [result] = block.run(ops, [y], where, threads=threads)
    expected = (np.add if operation == "add" else np.multiply)(a.astype(np.float64), b)
    assert close(result, activated(torch.from_numpy(expected), act))


@given(operation=st.sampled_from(["affine", "apply", "copy"]), in_place=st.booleans(), **common)
def test_one_value(
    operation: str, in_place: bool, where: str, shape: tuple[int, ...], act: Any, threads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    block = Block(shape[0])
    x, data = _value(block, shape, rng)
    y = x if in_place else _value(block, shape, rng)[0]
    expected = torch.from_numpy(data).double()
    if operation == "affine":
        scale, shift = rng.standard_normal((2, shape[1])).astype(np.float32)
        ops = channels_last.affine(x, y, scale, shift, act)
        expected = expected * torch.from_numpy(scale)[:, None, None] + torch.from_numpy(shift)[:, None, None]
    elif operation == "apply":
        ops = channels_last.apply(act, x, y)
    else:
        ops, act = channels_last.copy(x, y), None
    [result] = block.run(ops, [y], where, threads=threads)
    assert close(result, activated(expected, act))


def test_shapes_that_do_not_fit() -> None:
    block = Block(1)
    x, y, small = (block.place(ChannelsLastGeometry.build(4, 4, channels)) for channels in (8, 8, 3))
    with pytest.raises(EngineError, match="same shape"):
        channels_last.copy(x, small)
    with pytest.raises(EngineError, match="cannot be broadcast"):
        channels_last.elementwise("add", x, small, y)
    with pytest.raises(EngineError, match="3 values for 8"):
        channels_last.affine(x, y, np.ones(3), np.ones(8))
