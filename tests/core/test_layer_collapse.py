"""What is advised where a layer is left empty: the argument that it names is one of the function that was called."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.core.budget import allocate_budget
from ticketry.core.costs.allocation import allocate_cost
from ticketry.core.costs.curve import Curve
from ticketry.errors import LayerCollapseError

SCORES = {"poor": torch.full((8, 4), 0.001), "rich": torch.rand(32, 8, generator=torch.Generator().manual_seed(0)) + 1}
PRICES = {"poor": 3, "rich": 1}
CURVES = {"poor": Curve((0.0, 1.0), (0.0, 96.0)), "rich": Curve((0.0, 1.0), (0.0, 256.0))}
X = torch.zeros(2, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[0].weight.data *= 1e-4
    return model


def gates_of(**more: Any) -> tk.Mask:
    model = network()
    gates = tk.gates.attach(model, pattern=more.pop("pattern", "unstructured"))
    with torch.no_grad():
        gates.parameters()[0].fill_(-9.0)
    return gates.allocate(0.3, **more)


CALLS: dict[str, Callable[..., object]] = {
    "allocate": lambda **more: tk.allocate(SCORES, 0.5, **more),
    "allocate in blocks": lambda **more: tk.allocate(SCORES, 0.5, pattern="4x1", **more),
    "multiplications": lambda **more: allocate_budget(SCORES, PRICES, 0.3, **more),
    "multiplications by a rule": lambda **more: allocate_budget(SCORES, PRICES, 0.3, weighed=False, **more),
    "costs": lambda **more: allocate_cost(SCORES, CURVES, 100.0, **more),
    "prune": lambda **more: tk.prune(network(), 0.3, **more),
    "prune on the way": lambda **more: tk.prune(network(), 0.1, iterations=2, **more),
    "prune flops": lambda **more: tk.prune(network(), flops=0.3, example_inputs=X, score="magnitude", **more),
    "gates": gates_of,
    "gates of blocks": lambda **more: gates_of(pattern="4x1", **more),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_advised_can_be_done(call: Callable[..., object]):
    with pytest.raises(LayerCollapseError) as told:
        call()
    error = told.value
    assert str(error).endswith(f", or {error.keep} ({error.by})")
    argument, _, value = error.by.partition("=")
    call(**{argument: int(value) if value.isdigit() else value})


def test_what_is_told_goes_with_a_process_and_with_where_it_was():
    error = (
        LayerCollapseError("fc is empty", "spare it", keep="keep one")
        .with_keep_argument("collapse=keep")
        .with_prefix("level 2")
    )
    again = pickle.loads(pickle.dumps(error))
    for one in (error, again):
        assert str(one) == "level 2: fc is empty; spare it, or keep one (collapse=keep)"
        assert (one.what, one.advice, one.keep, one.by) == (
            "level 2: fc is empty", "spare it", "keep one", "collapse=keep",
        )  # fmt: skip
    assert str(LayerCollapseError("fc is empty")) == "fc is empty"
    assert str(LayerCollapseError("fc is empty", keep="keep one")) == "fc is empty; keep one (keep_at_least=1)"
