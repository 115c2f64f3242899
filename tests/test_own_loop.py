"""The examples of docs/own-loop.md, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk

PAGE = Path(__file__).parents[1] / "docs" / "own-loop.md"
SECTIONS = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
EXAMPLES = {
    section.partition("\n")[0]: code
    for section in SECTIONS
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
}
LONGEST = 18
"""Lines: an adapter surface of a few lines is the point of the page."""


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    task = tk.task("digits")
    data = task.load().train
    inputs, targets = task.prepare(data.inputs), data.targets
    torch.manual_seed(0)
    return {
        "model": task.build(),
        "batches": [(inputs[i : i + 64], targets[i : i + 64]) for i in range(0, 1024, 64)] * 6,
        "loss_function": torch.nn.functional.cross_entropy,
    }


def run(section: str, names: dict[str, Any], folder: str) -> tk.Ticket:
    code = EXAMPLES[section]
    assert len([line for line in code.splitlines() if line.strip()]) <= LONGEST
    exec(code, names)  # the point of this test
    return tk.Ticket.load(folder)


def check(ticket: tk.Ticket, model: torch.nn.Module, early: dict[str, torch.Tensor]) -> None:
    for name, parameter in ticket.mask.parameters(model).items():
        assert not parameter.detach()[~ticket.mask[name]].any()
    assert all(torch.equal(ticket.start[name], value) for name, value in early.items())
    assert all(torch.equal(ticket.trained[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("section", "folder", "density"),
    [("Hold a mask", "held", 0.2), ("Prune while training", "pruned", 0.1), ("Train the mask", "gated", None)],
)
def test_examples(names: dict[str, Any], section: str, folder: str, density: float | None) -> None:
    ticket = run(section, names, folder)
    check(ticket, names["model"], names["early"])
    if density is not None:
        assert ticket.mask.kept == round(density * ticket.mask.total)
    else:
        assert 0.01 < ticket.density < 0.9
    inputs, targets = names["batches"][0]
    assert float((names["model"](inputs).argmax(1) == targets).float().mean()) > 0.8


def test_example_before_training(names: dict[str, Any]) -> None:
    before = {name: value.clone() for name, value in names["model"].state_dict().items()}
    ticket = run("Prune before training", names, "before")
    assert ticket.mask.kept == round(0.1 * ticket.mask.total)
    assert all(torch.equal(ticket.start[name], value) for name, value in before.items())
    assert all(torch.equal(value, before[name]) for name, value in names["model"].state_dict().items())


def test_example_of_a_verdict(names: dict[str, Any]) -> None:
    batches, trained = names["batches"][:32], list[torch.nn.Module]()

    def train_and_test(network: torch.nn.Module) -> float:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for inputs, targets in batches:
            optimizer.zero_grad()
            names["loss_function"](network(inputs), targets).backward()
            optimizer.step()
        trained.append(network)
        inputs, targets = names["batches"][0]
        return 100 * float((network(inputs).argmax(1) == targets).float().mean())

    names |= {"make_model": tk.task("digits").build, "train_and_test": train_and_test}
    code = EXAMPLES["Does it win?"]
    assert len([line for line in code.splitlines() if line.strip()]) <= LONGEST + 3
    exec(code, names)
    assert len(trained) == 5 * 4
    found = names["found"]
    assert found.n == 5
    assert set(found.controls) == {"shuffled", "random_reinit"}


def test_every_example_is_run() -> None:
    run_here = {
        "Hold a mask",
        "Prune before training",
        "Prune while training",
        "Train the mask",
        "Measure what it costs",
        "Does it win?",
    }
    assert set(EXAMPLES) == run_here


def test_measure_what_it_costs(names: dict[str, Any]) -> None:
    exec(EXAMPLES["Measure what it costs"], names)
    step, cost = names["step"], names["meter"].cost
    assert (cost.steps, cost.flops) == (len(names["batches"]), pytest.approx(len(names["batches"]) * step.flops))
    assert step.flops < 0.3 * step.dense_flops
