"""Kernels of training for other processors than the host: compiled, with sums in vectors as wide as its own."""

from __future__ import annotations

import re

import numpy as np
import pytest

from arm_emulator import assembly
from ticketry_engine.kernels.planar.row_sums import RowSums
from ticketry_engine.kernels.target import cross_compile_target
from ticketry_engine.kernels.training.convolution import build_forward, build_input_gradient, build_weight_gradient
from ticketry_engine.kernels.training.layer import Batch, MaskedLayer
from ticketry_engine.kernels.training.products import Products
from ticketry_engine.kernels.window import Window

SUMS = {"avx512": r"vfmadd\d+ps\s.*zmm", "avx2": r"vfmadd\d+ps\s.*ymm", "aarch64": r"fmla\s+v\d+\.4s"}


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("where", SUMS)
def test_convolutions(where: str, rows: int) -> None:
    target = cross_compile_target(where)
    kept = np.repeat(np.random.default_rng(0).random((32 // rows, 16, 3, 3)) < 0.2, rows, axis=0)
    window = Window((3, 3), (1, 1), (1, 1), (1, 1))
    x, y = (Batch.build(channels, (8, 8), 1, 2, offset << 24) for offset, channels in enumerate((16, 32)))
    layer = MaskedLayer(kept, window)
    ops = [*build_forward(x, y, layer, target)[0].ops, *build_input_gradient(y, x, layer, target)[0].ops]
    made = build_weight_gradient(x, y, layer, target, lambda size: 2 << 24)
    kernels = dict.fromkeys(op.kernel for op in [*ops, *made.begin, *made.ops, *made.end])
    assert {kernel.rows for kernel in kernels if isinstance(kernel, RowSums)} == {1, rows}
    for kernel in kernels:
        text = assembly(kernel, "kernel", target)
        if isinstance(kernel, (RowSums, Products)):
            assert len(re.findall(SUMS[where], text)) >= len(kernel.shapes[0].x)
