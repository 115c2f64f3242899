"""The examples of docs/budgets.md, run as they stand there, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ticketry as tk

PAGE = Path(__file__).parents[1] / "docs" / "budgets.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ticketry.errors.BudgetWarning", "ignore:the budget was not met")
def test_examples(capsys: pytest.CaptureFixture[str]) -> None:
    build, in_python, others = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    torch.manual_seed(0)
    layers = [nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    model = nn.Sequential(*layers).eval()
    batches = [(torch.randn(32, 256), torch.randint(0, 10, (32,))) for _ in range(2)]
    names: dict[str, Any] = {
        "tk": tk,
        "model": model,
        "x": torch.randn(32, 256),
        "batches": batches,
        "loss": lambda network, batch: nn.functional.cross_entropy(network(batch[0]), batch[1]),
    }
    exec(build, names)
    network, inputs = names["build"]()
    assert network(inputs).shape == (2, 64, 28, 28)
    exec(in_python, names)  # the point of this test
    assert names["met"].mask.total == sum(layer.weight.numel() for layer in layers if isinstance(layer, nn.Linear))
    assert "eager" in capsys.readouterr().out
    assert tk.shrink(model, names["channels"], names["x"])(names["x"]).shape == (32, 10)
    exec(others, names)
    assert tk.cost.model(model, names["x"], unit="bytes").estimate(names["mask"]).value <= 2_000_000
