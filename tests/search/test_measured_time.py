"""Searches whose tickets meet a measured time, and dense networks that take as long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

import ticketry as tk
from search.known_costs import COMMON, costs, slowly, task
from ticketry.errors import CostError, UsageError
from ticketry.evidence.controls import narrowest_dense_of_cost
from ticketry.lab import masks
from ticketry.lab.masks import dense_macs
from ticketry_engine.bench.timing import Interval
from ticketry_engine.bench.timing import machine as machine_here


class Scripted:
    """A meter: masks take a time that costs do not tell, dense networks one by their multiplications."""

    dense_seconds = 1.0

    def __init__(self, lab: tk.Lab, of: tk.Task, slower: float) -> None:
        self._lab, self._task, self._slower = lab, of, slower

    def compiled(self, mask: tk.Mask | None = None) -> Any:
        return self._task if mask is None else mask

    def time_share(self, compiled: Any, rounds: int) -> Interval:
        if isinstance(compiled, tk.Mask):
            value = self._slower * slowly(compiled, costs()) / costs().dense
        else:
            value = dense_macs(self._lab, compiled) / dense_macs(self._lab, task())
        return Interval(value, 0.9 * value, 1.1 * value, 0.95)

    def retime_share(self, mask: tk.Mask, rounds: int) -> Interval:
        return self.time_share(mask, rounds)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """How much slower masks are here than the costs say."""
    known = {"slower": 1.25}
    monkeypatch.setattr(masks, "_build_meter", lambda lab, of, costs: Scripted(lab, of, known["slower"]))
    monkeypatch.setattr(masks, "check_measurable_here", lambda costs: None)
    return known


@pytest.mark.slow
def test_a_ticket_meets_the_time_that_is_measured(machine: dict[str, float], tmp_path: Path) -> None:
    file = costs().save(tmp_path / "costs.json")
    asked: dict[str, Any] = {"time": 0.5, "base": "engine", "profile": str(file), "store": tmp_path / "store", **COMMON}
    asked["controls"] = ("random_prune", "dense_of_time")
    run = tk.run("oneshot", task(), measured=True, **asked)
    points = {point.role: point for point in run.record.points}
    mask = run.tickets[0].load().mask
    assert 1.25 * slowly(mask, costs()) / costs().dense == pytest.approx(0.5, rel=0.016)
    assert points["ticket"].timed.share == pytest.approx(1.25 * slowly(mask, costs()) / costs().dense)
    assert points["ticket"].timed.low < points["ticket"].timed.share < points["ticket"].timed.high
    assert points["dense"].timed.share == 1.0
    assert points["random_prune"].timed.share == pytest.approx(points["ticket"].timed.share, rel=0.02)
    rival = points["dense_of_time"]
    assert rival.timed.share >= points["ticket"].timed.share
    with tk.Lab(tmp_path / "store") as lab:
        full = dense_macs(lab, task())
        of_width = [
            dense_macs(lab, tk.task("digits", model=f"conv-2@{0.0625 * width / 100:.6f}")) / full
            for width in range(1, 101)
        ]
    assert rival.timed.share == min(one for one in of_width if one >= points["ticket"].timed.share)

    machine["slower"] = 1.5  # what was measured in this store counts there, however long it takes another time
    again = tk.run("oneshot", task(), measured=True, **asked)
    assert again.now["segments_trained"] == 0
    assert again.record == run.record
    elsewhere = tk.run("oneshot", task(), measured=True, **asked | {"store": tmp_path / "other", "controls": ()})
    assert elsewhere.tickets[0].load().mask.density < 0.9 * mask.density
    unmeasured = tk.run("oneshot", task(), **asked | {"controls": ()})
    assert unmeasured.record.points[-1].timed is None
    assert unmeasured.tickets[0].load().mask != mask


def test_what_cannot_be_timed_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    file = costs().save(tmp_path / "costs.json")
    common: dict[str, Any] = {"store": tmp_path / "store", **COMMON}
    with pytest.raises(CostError, match="of another machine"):
        tk.run("oneshot", task(), time=0.5, base="engine", profile=str(file), measured=True, **common)
    with pytest.raises(CostError, match="of another machine"):
        tk.run("oneshot", task(), time=0.5, base="engine", profile=str(file), controls=("dense_of_time",), **common)
    here = costs().scaled(1.0, processor=machine_here()["processor"], threads=4096)
    here.save(tmp_path / "threads.json")
    with pytest.raises(CostError, match="of 4096 threads, and this machine has"):
        tk.run(
            "oneshot", task(), time=0.5, base="engine", profile=str(tmp_path / "threads.json"), measured=True, **common
        )
    with pytest.raises(UsageError, match="measured needs a budget of time"):
        tk.run("oneshot", task(), flops=0.5, measured=True, **common)
    with pytest.raises(UsageError, match="dense_of_time needs tickets with a latency budget"):
        tk.run("oneshot", task(), flops=0.5, controls=("dense_of_time",), **common)
    assert not list((tmp_path / "store").glob("segments/**/*.safetensors"))


def test_a_dense_network_that_is_never_so_slow_is_refused(machine: dict[str, float], tmp_path: Path) -> None:
    machine["slower"] = 2.0
    with tk.Lab(tmp_path) as lab:
        model = costs()
        lab.store.load_or_compute("costs", model.digest, lambda: {"model": msgspec.to_builtins(model)})
        mask = tk.Mask.ones(tk.scope(task().build()))
        with pytest.raises(
            UsageError, match=r"even conv-2@0.0625 takes only 100.0 % of the dense time, and the ticket"
        ):
            narrowest_dense_of_cost(lab, task(), "dense_of_time", mask, f"time:{model.digest}")
        with pytest.raises(UsageError, match="needs tickets with a latency budget"):
            narrowest_dense_of_cost(lab, task(), "dense_of_time", mask, "flops")


@pytest.mark.slow
def test_a_search_is_timed_on_this_machine(tmp_path: Path) -> None:
    wide = tk.task("digits", model="conv-4@0.5")
    x = torch.randn(32, *wide.shape)
    file = tk.cost.model(wide.build(), x, threads=1).save(tmp_path / "costs.json")
    run = tk.run(
        "oneshot",
        wide,
        time=0.5,
        base="engine",
        profile=str(file),
        measured=True,
        controls=("dense_of_time",),
        store=tmp_path / "store",
        **COMMON,
    )
    points = {point.role: point for point in run.record.points}
    assert 0.35 < points["ticket"].timed.share < 0.65
    assert points["dense_of_time"].timed.share >= points["ticket"].timed.share
    assert points["dense_of_time"].model.startswith("conv-4@0.")
