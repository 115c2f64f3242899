"""Methods that take example inputs take them as `compile` does: a tensor, a tuple, a list, a dict or a mapping."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from ticketry.errors import EngineError
from ticketry_engine.example_inputs import at_batch


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        made: Tensor = self.layer(x)
        return made if shift is None else made + shift


X, SHIFT = torch.randn(4, 8), torch.randn(4, 8)
EXAMPLES: dict[str, Any] = {
    "tensor": X,
    "tuple of one": (X,),
    "tuple": (X, SHIFT),
    "list": [X, SHIFT],
    "dict": {"x": X, "shift": SHIFT},
    "mapping": MappingProxyType({"x": X, "shift": SHIFT}),
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_profile_and_tune_take_the_example_inputs(kind: str):
    fast = tk.compile(Two().eval(), None, EXAMPLES[kind])
    rows = fast.profile(EXAMPLES[kind], rounds=1)
    assert any(row.name == "layer" and row.seconds is not None for row in rows)
    assert fast.tune(EXAMPLES[kind]) is fast


def test_profile_takes_a_call_too():
    fast = tk.compile(Two().eval(), None, (X, SHIFT))
    assert fast.profile(X, SHIFT, rounds=1)
    assert fast.profile(X, shift=SHIFT, rounds=1)
    with pytest.raises(EngineError, match="'shift' is missing"):
        fast.profile(X)


class OfContainers(nn.Module):
    """Its one argument is a container itself."""

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.keys = first, second

    def forward(self, both: Any) -> Tensor:
        made: Tensor = self.layer(both[self.keys[0]])
        return made + both[self.keys[1]]


@pytest.mark.parametrize(
    ("model", "both"), [(OfContainers("x", "shift"), {"x": X, "shift": SHIFT}), (OfContainers(0, 1), (X, SHIFT))]
)
def test_a_container_that_is_the_models_argument(model: nn.Module, both: Any):
    fast = tk.compile(model.eval(), None, (both,))
    assert fast.profile(both, rounds=1)
    if isinstance(both, dict):
        assert fast.profile((both,), rounds=1)
    named = tk.compile(model.eval(), None, {"both": both})
    assert named.profile({"both": both}, rounds=1)


@pytest.mark.parametrize("kind", [kind for kind in EXAMPLES if kind != "tensor"])
def test_other_batches_of_every_kind_of_example_inputs(kind: str):
    found = at_batch(EXAMPLES[kind], 6)
    tensors = list(found.values()) if isinstance(found, dict) else list(found)
    assert [tuple(tensor.shape) for tensor in tensors] == [(6, 8)] * len(EXAMPLES[kind])
