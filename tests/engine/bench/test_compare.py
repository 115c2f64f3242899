"""A comparison: checked before it is timed, told against the fastest dense engine, in ratios of the same round."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from ticketry.errors import EngineError
from ticketry.records.schema import as_json
from ticketry_engine.bench import compare as module
from ticketry_engine.bench.compare import compare, copy_with_random_pruned_weights, time_layers, time_saved_against
from ticketry_engine.bench.dense_engines import Call, Sparse, UnavailableError, rivals
from ticketry_engine.bench.timing import Case, Timing
from ticketry_engine.results import EngineTime


class Fake:
    """A dense engine that does what it is told."""

    model = None

    def __init__(self, name: str, call: Callable[[Case], Call], sparse: bool = False) -> None:
        self.name, self.sparse, self._call = name, sparse, call

    def prepare(self, case: Case) -> Call:
        return self._call(case)

    def versions(self) -> dict[str, str]:
        return {self.name: "1.0"}


def eager(case: Case) -> Call:
    return lambda x: case.model(x).detach()


def wrong(case: Case) -> Call:
    return lambda x: case.model(x).detach() * 1.001


def missing(case: Case) -> Call:
    raise UnavailableError("not installed")


@pytest.fixture
def case() -> Case:
    torch.manual_seed(0)
    return Case(nn.Linear(4, 3).eval(), (torch.randn(5, 4),))


QUICK = Timing(rounds=3)


@pytest.fixture(autouse=True)
def _short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ticketry_engine.bench.timing._LEAST_SECONDS", 0.001)


def test_ratios_are_of_the_same_round() -> None:
    """A machine that slows down tenfold in the middle changes nothing."""

    def row(name: str, wall: list[float], cpu: list[float]) -> EngineTime:
        return EngineTime(name, False, 1.0, 1.0, 1.0, tuple(wall), tuple(cpu), 1, 0.0, 0.0, "", {})

    ours = row("ours", [1.0, 1.1, 10.0, 11.0, 1.0], [3.0] * 5)
    theirs = row("theirs", [4.0, 4.4, 40.0, 44.0, 4.0], [4.0] * 5)
    found = time_saved_against(ours, theirs, Timing())
    assert (found.saved, found.low, found.high) == pytest.approx((0.75, 0.75, 0.75))
    assert time_saved_against(ours, theirs, Timing(clock="cpu")).saved == pytest.approx(0.25)
    assert time_saved_against(theirs, ours, Timing()).saved == pytest.approx(-3)


class Cancels(nn.Module):
    """What is left of two large numbers: float32 keeps three or four digits of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return (x + 3000.0) * self.weight - 3000.0


def test_where_torch_itself_rounds_as_much_another_rounding_is_not_wrong() -> None:
    torch.manual_seed(0)
    case = Case(Cancels().eval(), (torch.randn(4, 50) / 10,))
    own = case.rounding()
    exact = case.inputs[0].double()
    assert own == pytest.approx(float((case.reference()[0] - exact).norm() / exact.norm()))
    assert own > 2e-4

    def off_by(share: float) -> Callable[[Case], Call]:
        return lambda case: lambda x: case.model(x) * (1 + share)

    compare(case, [Fake("right", eager), Sparse(off_by(1.9 * own), "ours")], QUICK)
    with pytest.raises(EngineError, match="outputs are wrong"):
        compare(case, [Fake("right", eager), Sparse(off_by(2.1 * own), "ours")], QUICK)


def test_what_is_saved_is_relative_to_the_fastest_dense_engine(case: Case) -> None:
    def late(case: Case) -> Call:
        return lambda x: first_after(time.sleep(0.02), case.model(x).detach())

    engines = [
        Fake("slow", late),
        Fake("fast", eager),
        Sparse(eager, "ours"),
        Fake("gone", missing),
        Fake("bad", wrong),
    ]
    found = compare(case, engines, QUICK)
    assert [row.engine for row in found.times] == ["slow", "fast", "ours", "gone", "bad"]
    assert found.fastest is not None
    assert found.fastest.engine == "fast"
    (saved,) = found.saved
    assert (saved.engine, saved.against) == ("ours", "fast")
    assert saved.low <= saved.saved <= saved.high
    for row in found.times[:3]:
        assert len(row.wall) == 3
        assert row.seconds == statistics.median(row.wall)
        assert row.error == pytest.approx(0, abs=1e-6)
    assert (found.times[3].timed, found.times[3].why) == (False, "not installed")
    bad = found.times[4]
    assert (bad.timed, bad.seconds, bad.wall, bad.versions) == (False, None, (), {})
    assert "outputs are wrong: relative error 0.001" in bad.why
    assert (found.batch, found.threads, found.precision, found.cold, found.clock) == (5, 1, "fp32", False, "wall")
    record = json.loads(json.dumps(as_json(found)))
    assert record["fastest_dense"] == "fast"
    assert record["times"][0]["versions"] == {"slow": "1.0"}


def first_after(_: object, result: Tensor) -> Tensor:
    return result


def test_engines_that_may_not_be_missing_or_wrong_are_errors(case: Case) -> None:
    other = nn.Linear(4, 3).eval()
    assert compare(case, [Fake("right", eager), Sparse(eager, "other", model=other)], QUICK).times[1].error == 0
    for engines, message in (
        ([Fake("right", eager), Sparse(wrong, "ours")], "ours is not timed, for its outputs are wrong"),
        ([Fake("right", eager), Sparse(wrong, "other", model=other)], "outputs are wrong"),
        ([Fake("right", eager), Fake("gone", missing)], "gone: not installed"),
        ([Fake("a", eager), Fake("a", eager)], "one name"),
    ):
        with pytest.raises(EngineError, match=message):
            compare(case, engines, QUICK, required=["gone"])


def test_an_engine_that_fails(case: Case) -> None:
    def fails(_: Case) -> Call:
        raise EngineError("cannot load the model")

    assert compare(case, [Fake("right", eager), Fake("bad", fails)], QUICK).times[1].why == "cannot load the model"
    with pytest.raises(EngineError, match="cannot load"):
        compare(case, [Fake("right", eager), Fake("ours", fails, sparse=True)], QUICK)
    with pytest.raises(EngineError, match=r"no dense engine can be timed .bad: cannot load the model"):
        compare(case, [Fake("bad", fails), Sparse(eager)], QUICK)


def test_threads_and_cores_are_put_back(case: Case) -> None:
    seen: list[Any] = []

    def looks(case: Case) -> Call:
        def call(x: Tensor) -> Tensor:
            seen.append((torch.get_num_threads(), os.sched_getaffinity(0)))
            return case.model(x).detach()

        return call

    before = torch.get_num_threads(), os.sched_getaffinity(0)
    core = max(before[1])
    found = compare(case, [Fake("a", looks)], QUICK, on_cores=[core])
    assert seen == [(1, before[1]), *[(1, {core})] * (len(seen) - 1)]  # all but the check
    assert found.cores == (core,)
    assert (torch.get_num_threads(), os.sched_getaffinity(0)) == before


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()


def test_nothing_is_pruned_any_more(model: nn.Module) -> None:
    mask = tk.structure.channels(model, torch.randn(2, 3, 8, 8), 0.4)
    mask.apply_(model)
    filled = copy_with_random_pruned_weights(model, mask)
    for name, parameter in filled.named_parameters():
        kept = mask.get(name, torch.ones_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter[kept], model.get_parameter(name)[kept])
        assert (parameter[~kept] != 0).all()
    assert not model.get_parameter("1.weight")[~mask["1.weight"]].any(), "the ticket's model stays as it is"


def test_every_layer_has_both_times(model: nn.Module) -> None:
    mask, inputs = tk.prune(model, density=0.2), torch.randn(4, 3, 8, 8)
    mask.apply_(model)
    fast = tk.compile(model, mask, inputs)
    rows = {row.name: row for row in time_layers(fast, model, mask, inputs, "fp32")}
    for name in ("0", "4"):
        assert rows[name].density == pytest.approx(mask.table()[0 if name == "0" else 1].density)
        assert rows[name].seconds > 0
        assert rows[name].dense_seconds > 0


def test_a_model_that_does_not_run_in_float64_has_no_rounding() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.ones(3, 2, dtype=torch.float32)

    assert Case(Fixed().eval(), (torch.randn(4, 3),)).rounding() == 0.0


def test_the_model_that_was_given_is_not_changed(case: Case) -> None:
    def spoils(case: Case) -> Call:
        case.model.weight.data.zero_()  # type: ignore[operator, union-attr]
        return eager(case)

    compare(case, [Fake("right", eager), Fake("spoils", spoils)], QUICK)
    assert float(case.model.weight.detach().abs().sum()) > 0  # type: ignore[operator]


@pytest.mark.slow
def test_real_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    said: list[str] = []
    found = compare(Case(model, (torch.randn(2, 3, 8, 8),)), rivals(), Timing(rounds=2, cold=True), say=said.append)
    assert all(row.timed or row.why for row in found.times)
    assert {row.engine for row in found.times if row.timed} >= {"eager", "channels_last", "onnxruntime", "openvino"}
    assert found.cold
    assert said[0] == "preparing eager"
    assert module.TOLERANCE == {"fp32": 1e-4, "bf16": 5e-2}
