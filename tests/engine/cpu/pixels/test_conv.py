"""Convolutions over pixels against torch in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cpu.pixels.block import Block, activated, close, targets
from ticketry.engine.cpu.pixels import Geometry, conv
from ticketry.engine.cpu.target import target


@dataclass(frozen=True)
class Case:
    """A convolution, what it is run on, and how."""

    target: str
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
    given_rows: bool
    act: Any
    residual: bool
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
    return Case(
        target=draw(st.sampled_from(targets())),
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
        given_rows=draw(st.booleans()),
        act=draw(st.sampled_from([None, "relu", "relu6", "gelu", "sigmoid", ("leaky_relu", 0.1)])),
        residual=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


def _weights(case: Case, rng: np.random.Generator) -> tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
    """Weights whose groups of rows each keep columns of their own; some groups keep none."""
    shape = (case.outputs, case.inputs // case.groups, *case.kernel)
    weight = rng.standard_normal(shape).astype(np.float32)
    order = rng.permutation(case.outputs) if case.shuffled else np.arange(case.outputs)
    rows = [order[at : at + case.rows] for at in range(0, case.outputs, case.rows)]
    for number, group in enumerate(rows):
        weight[group] *= (rng.random(shape[1:]) < case.density) * (number % 4 != 3)
    return weight, rows


@settings(max_examples=60)
@given(cases())
def test_any_convolution(case: Case) -> None:
    rng = np.random.default_rng(case.seed)
    weight, rows = _weights(case, rng)
    bias = rng.standard_normal(case.outputs).astype(np.float32)
    block = Block(case.images)
    data = rng.standard_normal((case.images, case.inputs, case.height, case.width)).astype(np.float32)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(data).double(),
        torch.from_numpy(weight).double(),
        torch.from_numpy(bias).double(),
        case.stride,
        case.padding,
        case.dilation,
        case.groups,
    )
    x = block.place(Geometry.of(case.height, case.width, case.inputs, max(case.padding)))
    y = block.place(Geometry.of(*expected.shape[2:], case.outputs, case.seed % 3))
    block.put(x, data)
    residual = None
    if case.residual:
        # Some channels of a wider value, in a geometry of its own.
        residual = block.place(Geometry.of(*expected.shape[2:], case.outputs + 21, 1), 5, case.outputs)
        added = rng.standard_normal(expected.shape).astype(np.float32)
        block.put(residual, added)
        expected = expected + torch.from_numpy(added).double()
    ops = conv(
        x,
        y,
        weight,
        bias,
        target=target(case.target),
        stride=case.stride,
        padding=case.padding,
        dilation=case.dilation,
        groups=case.groups,
        act=case.act,
        residual=residual,
        rows=rows if case.given_rows else None,
        images=case.images,
    )
    [result] = block.run(ops, [y], case.target, threads=case.threads, images=case.run)
    assert close(result, activated(expected, case.act)[: case.run])
