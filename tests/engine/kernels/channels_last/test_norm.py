"""Layer norm and softmax against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.kernels.channels_last.block import Block, close, targets
from ticketry.errors import EngineError
from ticketry_engine.kernels import channels_last
from ticketry_engine.kernels.channels_last import ChannelsLastGeometry


@given(
    operation=st.sampled_from(["layer_norm", "rms_norm", "softmax"]),
    where=st.sampled_from(targets()),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 200), st.integers(1, 3), st.integers(1, 5)),
    in_place=st.booleans(),
    threads=st.sampled_from([1, 2, 3]),
    scale=st.sampled_from([0.1, 10.0]),
    seed=st.integers(0, 99),
)
def test_over_channels(
    operation: str,
    where: str,
    shape: tuple[int, ...],
    in_place: bool,
    threads: int,
    scale: float,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    data = (scale * rng.standard_normal(shape) + 3).astype(np.float32)
    block = Block(shape[0])
    x, y = (block.place(ChannelsLastGeometry.build(*shape[2:], shape[1] + 20, 1), 5, shape[1]) for _ in range(2))
    # Beside the value lies another, which must not be taken for part of it.
    block.put(x.part(-5, shape[1] + 20), np.full((shape[0], shape[1] + 20, *shape[2:]), 1e6, np.float32))
    block.put(x, data)
    y = x if in_place else y
    values = torch.from_numpy(data).double()
    if operation == "softmax":
        ops, expected = channels_last.softmax(x, y), values.softmax(1)
    elif operation == "rms_norm":
        weight = rng.standard_normal(shape[1]).astype(np.float32)
        ops = channels_last.rms_norm(x, y, weight, 1e-3)
        factor = torch.from_numpy(weight).double()
        expected = torch.rms_norm(values.movedim(1, -1), (shape[1],), factor, 1e-3).movedim(-1, 1)
    else:
        weight, bias = rng.standard_normal((2, shape[1])).astype(np.float32)
        ops = channels_last.layer_norm(x, y, weight, bias, 1e-3)
        expected = torch.nn.functional.layer_norm(
            values.movedim(1, -1),
            (shape[1],),
            torch.from_numpy(weight).double(),
            torch.from_numpy(bias).double(),
            1e-3,
        ).movedim(-1, 1)
    [result] = block.run(ops, [y], where, threads=threads)
    assert close(result, expected, 1e-4 if operation == "layer_norm" and scale < 1 else 1e-5)


def test_a_softmax_of_what_is_minus_infinity_is_zero() -> None:
    data = np.array([0.0, -np.inf, 1.0], np.float32).reshape(1, 3, 1, 1)
    block = Block(1)
    x, y = (block.place(ChannelsLastGeometry.build(1, 1, 3)) for _ in range(2))
    block.put(x, data)
    [result] = block.run(channels_last.softmax(x, y), [y], "host")
    assert close(result, torch.from_numpy(data).softmax(1))


def test_shapes_that_do_not_fit() -> None:
    block = Block(1)
    x, y = block.place(ChannelsLastGeometry.build(1, 1, 3)), block.place(ChannelsLastGeometry.build(1, 2, 3))
    with pytest.raises(EngineError, match="shape"):
        channels_last.softmax(x, y)
    with pytest.raises(EngineError, match="2 values for 3"):
        channels_last.layer_norm(x, x, np.ones(2))
