"""Tensors that may be read by their address; what a tensor is on a device is found once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry_engine.capture import capture
from ticketry_engine.ir import binding
from ticketry_engine.ir.binding import CallBinder, plain_keys


def test_keys_are_those_of_new_tensors_inside_of_inference_mode_and_outside():
    found = set()
    for inference in (False, True):
        with torch.inference_mode(inference):
            found.add(torch._C._dispatch_keys(torch.empty(2)).raw_repr())
    assert plain_keys("cpu") == found


def test_a_call_leaves_the_tracers_of_other_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's stack of tracers belongs to the process: whoever sets it aside takes it from a thread that records."""
    model, x = nn.Linear(4, 3).eval(), torch.ones(2, 4)
    graph = capture(model, None, x)
    monkeypatch.setattr(binding, "_disable_current_modes", None)
    CallBinder(graph)
    fast = tk.compile(model, None, x, threads=1)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
