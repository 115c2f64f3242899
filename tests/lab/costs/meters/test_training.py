"""A whole training: what is counted, and what the energy is called."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ticketry.errors import UsageError
from ticketry.lab.costs.meters import NOT_MEASURED, Meter, measure_step


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


def counter(root: Path, microjoules: int) -> None:
    folder = root / "intel-rapl:0"
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(3, 10)).sum().backward()
        optimizer.step()


def made() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(10, 5)
    return model, torch.optim.SGD(model.parameters(), 0.1)


def test_steps_and_their_flops(tmp_path: Path) -> None:
    model, optimizer = made()
    step = measure_step(model, lambda net, data: net(data).sum(), torch.ones(3, 10), optimizer, repeats=1)
    with Meter(optimizer, step=step, powercap=tmp_path) as meter:
        train(model, optimizer, 4)
    train(model, optimizer, 3)
    cost = meter.cost
    assert (cost.steps, cost.flops) == (4, 4 * 2 * (2 * 3 * 10 * 5))
    assert cost.seconds > 0
    assert cost.peak_memory is None or cost.peak_memory > 0
    assert (cost.energy, cost.energy_source) == (None, NOT_MEASURED)


def test_flops_of_a_mask_that_changes_are_told_step_by_step(tmp_path: Path) -> None:
    with Meter(powercap=tmp_path) as meter:
        for flops in (100.0, 50.0, 25.0):
            meter.step(flops)
    assert (meter.cost.steps, meter.cost.flops) == (3, 175.0)
    with meter:
        meter.step(100.0)
        meter.step()
    assert (meter.cost.steps, meter.cost.flops) == (2, None), "one step's are not known"


def test_energy_of_counters(tmp_path: Path) -> None:
    counter(tmp_path, 1_000_000)
    with Meter(powercap=tmp_path, estimate=True) as meter:
        counter(tmp_path, 1_000_000 + 36_000_000)  # 36 J
    assert meter.cost.energy == pytest.approx(1e-5)
    assert meter.cost.energy_source == "RAPL (whole processors), other work on the machine included"


def test_the_cost_is_known_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="when its block has ended"):
        _ = Meter(powercap=tmp_path).cost
