"""The Python examples of README and docs run as they are printed."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ticketry as tk
from gloo_processes import run_ranks
from samples import sample
from ticketry.tasks import catalogue

ROOT = Path(__file__).parents[1]


def examples(page: str) -> list[str]:
    """Return the blocks of Python code of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def batches_of_digits(task: tk.Task, epochs: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    data = task.load().train
    inputs, targets = task.prepare(data.inputs), data.targets
    return [(inputs[i : i + 64], targets[i : i + 64]) for i in range(0, 1024, 64)] * epochs


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What examples take from the reader's own program; the current directory is empty."""
    monkeypatch.chdir(tmp_path)
    task = tk.task("digits")
    batches = batches_of_digits(task, epochs=6)
    torch.manual_seed(0)
    return {
        "tk": tk,
        "model": task.build(),
        "make_model": task.build,
        "batches": batches,
        "example_inputs": batches[0][0][:2],
        "loss_function": nn.functional.cross_entropy,
    }


def accuracy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float((model(batch[0]).argmax(1) == batch[1]).float().mean())


# -- README, quickstart, own-loop --------------------------------------------------------------------------------------


def test_readme(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"<!-- tests/test_page_examples.py runs this block -->\n```python\n(.*?)```", readme, re.S)
    draw = torch.Generator().manual_seed(1)
    batches = [(torch.randn(64, 784, generator=draw), torch.randint(0, 10, (64,), generator=draw)) for _ in range(4)]
    names: dict[str, Any] = {"batches": batches, "loss_function": nn.functional.cross_entropy}
    exec(code, names)
    out = capsys.readouterr().out
    assert out.partition("Compiled for")[0] in readme, "README shows what the example prints"
    assert "as fast as eager torch" in out or "SLOWER" in out
    weights = dict(names["model"].named_parameters())
    for name, kept in names["mask"].items():
        assert torch.equal(weights[name] != 0, kept)


def test_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    first, faster = examples("docs/quickstart.md")
    names: dict[str, Any] = {}
    exec(first, names)
    ticket = tk.Ticket.load("my-ticket")
    assert ticket.mask.density == pytest.approx(0.1, abs=1e-3)
    assert not any(ticket.trained[name][~kept].any() for name, kept in ticket.mask.items())
    header, total, *_ = capsys.readouterr().out.splitlines()
    assert f"{header}\n{total}\n" in (ROOT / "docs" / "quickstart.md").read_text(), "the page shows what is printed"
    exec(faster, names)
    assert "torch.Size([8, 2])" in capsys.readouterr().out


LONGEST = 18
"""Lines of an example in own-loop.md: that so few are needed is the point of the page."""


def own_loop() -> dict[str, str]:
    """Return section -> example of own-loop.md."""
    sections = re.split(r"^## ", (ROOT / "docs" / "own-loop.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        section.partition("\n")[0]: code
        for section in sections
        for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    }


@pytest.mark.parametrize(
    ("section", "folder", "density"),
    [
        ("Hold a mask", "held", 0.2),
        ("Prune while training", "pruned", 0.1),
        ("Train the mask", "gated", None),
        ("Prune before training", "before", 0.1),
    ],
)
def test_own_loop(names: dict[str, Any], section: str, folder: str, density: float | None) -> None:
    model = names["model"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    code = own_loop()[section]
    assert len([line for line in code.splitlines() if line.strip()]) <= LONGEST
    exec(code, names)
    ticket = tk.Ticket.load(folder)
    assert all(torch.equal(ticket.start[name], value) for name, value in before.items())
    assert 0.01 < ticket.density < 0.9 if density is None else ticket.mask.kept == round(density * ticket.mask.total)
    if folder == "before":
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    else:
        assert not any(one.detach()[~ticket.mask[name]].any() for name, one in ticket.mask.parameters(model).items())
        assert all(torch.equal(ticket.trained[name], value) for name, value in model.state_dict().items())
        assert accuracy(model, names["batches"][0]) > 0.8


def test_own_loop_verdict(names: dict[str, Any]) -> None:
    trained: list[nn.Module] = []

    def train_and_test(network: nn.Module) -> float:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for inputs, targets in names["batches"][:8]:
            optimizer.zero_grad()
            names["loss_function"](network(inputs), targets).backward()
            optimizer.step()
        trained.append(network)
        return 100 * accuracy(network, names["batches"][0])

    names["train_and_test"] = train_and_test
    exec(own_loop()["Does it win?"], names)
    found = names["found"]
    assert (len(trained), found.n, set(found.controls)) == (5 * 4, 5, {"shuffled", "random_reinit"})


def test_own_loop_costs(names: dict[str, Any]) -> None:
    exec(own_loop()["Measure what it costs"], names)
    step, cost = names["step"], names["meter"].cost
    assert (cost.steps, cost.flops) == (len(names["batches"]), pytest.approx(len(names["batches"]) * step.flops))
    assert step.flops < 0.3 * step.dense_flops
    assert len(own_loop()) == 6, "a test for each example"


# -- pages on parts of the library -------------------------------------------------------------------------------------


def test_searches(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    *_, code = examples("docs/searches.md")
    digits = tk.task("digits")
    quick = replace(digits, recipe=digits.recipe.changed(length="30it"))
    monkeypatch.setattr(tk, "task", lambda name: quick)
    exec(code, names)
    assert isinstance(names["ticket"], tk.search.Found)
    assert Path(".ticketry/store.json").exists()


@pytest.mark.slow  # tests of the engine call the same functions
def test_engine(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    model = names["model"].eval()
    mask = names["mask"] = tk.prune(model, density=0.1)
    mask.apply_(model)
    names["example_inputs"] = tk.task("digits").example(8)
    for code in examples("docs/engine.md"):
        exec(code, names)
    assert names["same"]
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(names["again"](x), model(x), rtol=1e-4, atol=1e-5)
    assert [check.batch for check in names["made"].checks] == [1, 2, 5]
    assert [row.engine for row in names["found"].times] == ["eager", "onnxruntime", "ticketry"]
    assert "ticketry saves" in capsys.readouterr().out


def test_structure(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    names["batches"] = names["batches"][:32]
    for code in examples("docs/structure.md"):
        exec(code, names)
    model, small, x = names["model"], names["small"], names["batches"][0][0]
    assert abs(names["mask"].density - 0.5) < 0.02
    assert sum(p.numel() for p in small.parameters()) < 0.55 * sum(p.numel() for p in model.parameters())
    assert torch.allclose(small(x), model(x), atol=1e-4)
    assert torch.equal(names["again"](x), small(x))
    assert abs(names["by_gates"].density - 0.6) < 0.02
    assert names["optimizer"].state[next(small.parameters())]["momentum_buffer"].any()
    assert names["ticket"].density < 0.3 < names["plus"].density < 1
    assert names["at_most"] <= names["pruned"]
    assert names["one_of_sixteen"].density < names["at_most"].density < names["two_of_four"].density == 0.5
    assert "it is an output of the model" in capsys.readouterr().out
    for coarse in (names["coarse"], names["learned"]):
        for found in tk.structure.groups(coarse).values():
            assert all(len(group.rows) % 4 == 0 for group in found[:-1])
    assert names["control"].table() == names["grouped"].table()
    whole = tk.structure.together(names["fits"])
    assert 0.5 < whole.random_coverage < whole.coverage < 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ticketry.errors.BudgetWarning", "ignore:the budget was not met")
def test_budgets(capsys: pytest.CaptureFixture[str]) -> None:
    build, in_python, others = examples("docs/budgets.md")
    torch.manual_seed(0)
    layers = [nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(32, 256)
    batches = [(torch.randn(32, 256), torch.randint(0, 10, (32,))) for _ in range(2)]
    names: dict[str, Any] = {"tk": tk, "model": model, "x": x, "batches": batches}
    names["loss"] = lambda network, batch: nn.functional.cross_entropy(network(batch[0]), batch[1])
    exec(build, names)
    network, inputs = names["build"]()
    assert network(inputs).shape == (2, 64, 28, 28)
    exec(in_python, names)
    assert names["met"].mask.total == sum(layer.weight.numel() for layer in layers if isinstance(layer, nn.Linear))
    assert "eager" in capsys.readouterr().out
    assert tk.shrink(model, names["channels"], x)(x).shape == (32, 10)
    exec(others, names)
    assert tk.cost.model(model, x, unit="bytes").estimate(names["mask"]).value <= 2_000_000


def test_loggers(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = examples("docs/loggers.md")
    exec(code, names)
    first, *rest = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"trainings: twenty steps [0-9a-f]{8} \(twenty steps\)", first)
    assert rest[-1] == "  done"
    assert any("test/accuracy" in line and line.startswith("  20: ") for line in rest)


def test_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = examples("docs/comparison.md")
    exec(code, {})
    assert capsys.readouterr().out == "0.5\n"
    assert "print(mask.density)  # 0.5" in code


@pytest.mark.parametrize(("number", "name", "bound"), sample([(0, "Line", 0.2), (1, "Follow", 0.1)], 1))
def test_tasks(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch, number: int, name: str, bound: float) -> None:
    module = f"tasks_page_{number}"
    Path(f"{module}.py").write_text(examples("docs/tasks.md")[number])
    monkeypatch.syspath_prepend(os.getcwd())
    run = tk.run("iterative", f"{module}:{name}", levels=1, replicates=1, controls=(), workers=0, store="store")
    assert [point.role for point in run.record.points] == ["dense", "ticket"]
    task = catalogue.get(f"{module}:{name}")
    assert all(point.test[task.metric.name] < bound for point in run.record.points)
    if name == "Line":
        noisy = catalogue.get(f"{module}:{name}", options={"noise": "0.5"})
        assert noisy.load().train.targets.std() > task.load().train.targets.std()
    del sys.modules[module]


# -- several processes -------------------------------------------------------------------------------------------------

CLUSTER = re.findall(
    r"runs this block in two processes -->\n```python\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL
)


def two_ranks(rank: int) -> dict[str, Any]:
    torch.manual_seed(0)
    head = (nn.Flatten(), nn.Linear(8 * 36, 10))
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *head).double()
    batches = batches_of_digits(tk.task("digits"), epochs=10)
    parts = [(inputs[rank::2].reshape(-1, 1, 8, 8).double(), targets[rank::2]) for inputs, targets in batches]
    loss = nn.functional.cross_entropy
    return {"tk": tk, "torch": torch, "model": model, "batches": parts, "loss_function": loss}


def run_in_two_processes(rank: int, folder: Path) -> None:
    os.chdir(folder)
    for code in CLUSTER:
        exec(code, two_ranks(rank))


@pytest.mark.slow
def test_cluster(tmp_path: Path) -> None:
    assert len(CLUSTER) == 2
    run_ranks(run_in_two_processes, tmp_path)
    tickets = {name: tk.Ticket.load(tmp_path / name) for name in ("ddp", "fsdp")}
    given = two_ranks(0)
    start = {name: value.clone() for name, value in given["model"].state_dict().items()}
    mask = tk.prune(given["model"], density=0.2)
    for ticket in tickets.values():
        assert ticket.mask == mask
        assert all(torch.equal(ticket.start[name], value) for name, value in start.items())
        assert accuracy(ticket.apply(given["model"], "trained").eval(), given["batches"][0]) > 0.8
    for name, value in tickets["ddp"].trained.items():
        torch.testing.assert_close(tickets["fsdp"].trained[name], value, rtol=0, atol=1e-9)
