"""Activations against torch in float64, over all magnitudes."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from arenas import library, targets
from engine.kernels.layouts import ACTS
from ticketry.errors import EngineError
from ticketry_engine.kernels.activations import activate, parse_activation
from ticketry_engine.kernels.emitter import Emitter
from ticketry_engine.kernels.target import Target

TRUTH = {act: function for act, function in ACTS.items() if act is not None} | {
    "gelu": lambda x: 0.5 * x * torch.special.erfc(-x / math.sqrt(2)),
    "inverse_root": lambda x: x.clamp_min(1e-30) ** -0.5,
    "gelu_tanh": lambda x: x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
}


@dataclass(frozen=True)
class _Apply:
    act: Any

    def emit(self, name: str, target: Target) -> str:
        e = Emitter(name, target)
        data = e.table(0)
        with e.loop(0, e.arg(1), e.target.lanes * 4) as loop:
            e.store(activate(e, self.act, e.load(data, loop.index)), data, loop.index)
        return e.text()


def _apply(act: Any, values: np.ndarray, where: str) -> np.ndarray:
    data = values.astype(np.float32).copy()
    assert data.size % 16 == 0
    op = np.array([0, data.ctypes.data, data.nbytes], dtype=np.int64)
    address = library(where).addresses([_Apply(act)])[0]
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(address)(0, op.ctypes.data)
    return data


@pytest.mark.parametrize("act", TRUTH)
def test_close_to_float64_at_all_magnitudes(act: Any) -> None:
    sizes = np.concatenate([np.geomspace(1e-30, 60, 4000), np.linspace(0, 20, 4000)])
    values = np.concatenate([sizes, -sizes]).astype(np.float32)
    expected = TRUTH[act](torch.from_numpy(values.astype(np.float64))).numpy()
    large = np.abs(expected) > 1e-6  # an exponential's relative error is its argument's absolute one
    for where in targets():
        found = _apply(act, values, where)
        np.testing.assert_allclose(found[large], expected[large], rtol=2e-6)
        np.testing.assert_allclose(found, expected, atol=1e-36, rtol=2e-5)


@pytest.mark.parametrize("act", TRUTH)
def test_far_inputs_reach_the_limits_and_nan_stays(act: Any) -> None:
    values = np.array([1e30, 300.0, -300.0, -1e30] * 4 + [np.nan] * 16, dtype=np.float32)
    found = _apply(act, values, "host")
    expected = TRUTH[act](torch.from_numpy(values[:16].astype(np.float64))).numpy()
    np.testing.assert_allclose(found[:16], expected, rtol=2e-6, atol=1e-5)
    assert np.isnan(found[16:]).all()


def test_names_are_checked() -> None:
    assert parse_activation({"leaky_relu": 0.2}) == ("leaky_relu", 0.2)
    with pytest.raises(EngineError, match="no activation 'swish9'"):
        parse_activation("swish9")
