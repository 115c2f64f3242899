"""The examples of docs/cluster.md, run as they stand there, in two processes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from gloo_processes import together

PAGE = Path(__file__).parents[1] / "docs" / "cluster.md"
EXAMPLES = re.findall(
    r"runs this block in two processes -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
)
LONGEST = 14
"""Lines."""


def names(rank: int) -> dict[str, Any]:
    torch.manual_seed(0)
    layers = (
        torch.nn.Conv2d(1, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 36, 10),
    )
    model = torch.nn.Sequential(*layers).double()
    task = tk.task("digits")
    data = task.load().train
    inputs, targets = task.prepare(data.inputs).reshape(-1, 1, 8, 8).double(), data.targets
    batches = [(inputs[i + rank : i + 64 : 2], targets[i + rank : i + 64 : 2]) for i in range(0, 1024, 64)] * 10
    return {
        "tk": tk,
        "torch": torch,
        "model": model,
        "batches": batches,
        "loss_function": torch.nn.functional.cross_entropy,
    }


def run_examples(rank: int, folder: Path) -> None:
    os.chdir(folder)
    for code in EXAMPLES:
        exec(code, names(rank))  # the point of this test


def test_there_are_two_short_ones():
    assert len(EXAMPLES) == 2
    assert all(len([line for line in code.splitlines() if line.strip()]) <= LONGEST for code in EXAMPLES)


@pytest.mark.slow
def test_examples(tmp_path: Path):
    together(run_examples, tmp_path)
    tickets = {name: tk.Ticket.load(tmp_path / name) for name in ("ddp", "fsdp")}
    given = names(0)
    start = {name: value.clone() for name, value in given["model"].state_dict().items()}
    mask = tk.prune(given["model"], density=0.2)
    for ticket in tickets.values():
        assert ticket.mask == mask
        assert all(torch.equal(ticket.start[name], value) for name, value in start.items())
        model = ticket.apply(given["model"], "trained").eval()
        inputs, targets = given["batches"][0]
        assert float((model(inputs).argmax(1) == targets).float().mean()) > 0.8
    for name, value in tickets["ddp"].trained.items():
        torch.testing.assert_close(tickets["fsdp"].trained[name], value, rtol=0, atol=1e-9)
