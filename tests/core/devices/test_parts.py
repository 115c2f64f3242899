"""What is given in the place of a model is told, wherever a model is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.errors import UsageError

MODEL = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
MASK = tk.prune(MODEL, 0.5)
X = torch.randn(4, 6)

ASKING: dict[str, Callable[[Any], object]] = {
    "prune": lambda model: tk.prune(model, 0.5),
    "scope": tk.scope,
    "hold": lambda model: tk.hold(model, MASK),
    "gradual": lambda model: tk.gradual(model, density=0.5, steps=5),
    "gates": tk.gates.attach,
    "compile": lambda model: tk.compile(model, MASK, X),
    "sparse_training": lambda model: tk.sparse_training(model, MASK, X),
    "cost": lambda model: tk.cost.model(model, X),
    "shrink": lambda model: tk.shrink(model, MASK, X),
    "channels": lambda model: tk.structure.channels(model, X, 0.5),
    "apply_": MASK.apply_,
    "ticket": lambda model: tk.Ticket(MASK, MODEL.state_dict(), {"method": "one-shot"}).apply(model, "start"),
}


@pytest.mark.parametrize("asking", ASKING.values(), ids=ASKING.keys())
def test_what_is_no_model_is_told(asking: Callable[[Any], object]) -> None:
    with pytest.raises(
        UsageError, match=r"model= is a torch\.nn\.Module, not a OrderedDict: make the model and load it"
    ):
        asking(MODEL.state_dict())
    with pytest.raises(UsageError, match=r"not the class Linear: make one, Linear\(\.\.\.\)"):
        asking(nn.Linear)
    with pytest.raises(UsageError, match="not a str: it is the first argument"):
        asking("model.pt")
