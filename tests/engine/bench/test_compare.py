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

from ticketry.errors import EngineError
from ticketry.records.schema import as_json
from ticketry.records.speed import EngineTime
from ticketry_engine.bench import compare as module
from ticketry_engine.bench.compare import compare, saved_against
from ticketry_engine.bench.dense_engines import Call, Sparse, UnavailableError, rivals
from ticketry_engine.bench.timing import Case, Timing


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


def late(seconds: float) -> Callable[[Case], Call]:
    """Right, and so much later."""

    def prepare(case: Case) -> Call:
        def call(x: Tensor) -> Tensor:
            time.sleep(seconds)
            return case.model(x).detach()

        return call

    return prepare


def wrong(case: Case) -> Call:
    return lambda x: case.model(x).detach() * 1.001


def missing(case: Case) -> Call:
    raise UnavailableError("not installed")


@pytest.fixture
def case() -> Case:
    torch.manual_seed(0)
    return Case(nn.Linear(4, 3).eval(), (torch.randn(5, 4),))


QUICK = Timing(rounds=3)


@pytest.mark.slow
def test_what_is_saved_is_told_against_the_fastest(case: Case) -> None:
    found = compare(case, [Fake("slow", late(0.2)), Fake("fast", late(0.05)), Sparse(eager, "ours")], QUICK)
    assert [row.engine for row in found.times] == ["slow", "fast", "ours"]
    assert found.fastest is not None
    assert found.fastest.engine == "fast"
    (saved,) = found.saved
    assert (saved.engine, saved.against) == ("ours", "fast")
    assert 0.9 < saved.low <= saved.saved <= saved.high <= 1
    for row in found.times:
        assert len(row.wall) == 3
        assert row.seconds == statistics.median(row.wall)
        assert row.error == pytest.approx(0, abs=1e-6)
    assert (found.batch, found.threads, found.precision, found.cold, found.clock) == (5, 1, "fp32", False, "wall")
    told = json.loads(json.dumps(as_json(found)))
    assert told["fastest_dense"] == "fast"
    assert told["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert told["times"][0]["versions"] == {"slow": "1.0"}


def test_ratios_are_of_the_same_round() -> None:
    """A machine that slows down tenfold in the middle changes nothing."""

    def row(name: str, wall: list[float], cpu: list[float]) -> EngineTime:
        return EngineTime(name, False, 1.0, 1.0, 1.0, tuple(wall), tuple(cpu), 1, 0.0, 0.0, "", {})

    ours = row("ours", [1.0, 1.1, 10.0, 11.0, 1.0], [3.0] * 5)
    theirs = row("theirs", [4.0, 4.4, 40.0, 44.0, 4.0], [4.0] * 5)
    found = saved_against(ours, theirs, Timing())
    assert (found.saved, found.low, found.high) == pytest.approx((0.75, 0.75, 0.75))
    assert saved_against(ours, theirs, Timing(clock="cpu")).saved == pytest.approx(0.25)
    assert saved_against(theirs, ours, Timing()).saved == pytest.approx(-3)


def test_a_wrong_dense_engine_is_not_timed(case: Case) -> None:
    found = compare(case, [Fake("right", eager), Fake("wrong", wrong)], QUICK)
    assert found.times[0].timed
    row = found.times[1]
    assert (row.timed, row.seconds, row.wall, row.versions) == (False, None, (), {})
    assert row.error == pytest.approx(1e-3, rel=1e-2)
    assert "outputs are wrong: relative error 0.001" in row.why


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


def test_a_model_that_does_not_run_in_float64_has_no_rounding() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.ones(3, 2, dtype=torch.float32)

    assert Case(Fixed().eval(), (torch.randn(4, 3),)).rounding() == 0.0


def test_a_wrong_sparse_engine_is_an_error(case: Case) -> None:
    with pytest.raises(EngineError, match="ours is not timed, for its outputs are wrong"):
        compare(case, [Fake("right", eager), Sparse(wrong, "ours")], QUICK)


def test_an_engine_that_is_not_there_has_a_row_that_says_so(case: Case) -> None:
    engines = [Fake("right", eager), Fake("gone", missing)]
    row = compare(case, engines, QUICK).times[1]
    assert (row.timed, row.why) == (False, "not installed")
    with pytest.raises(EngineError, match="gone: not installed"):
        compare(case, engines, QUICK, required=["gone"])


def test_an_engine_that_fails(case: Case) -> None:
    def fails(_: Case) -> Call:
        raise EngineError("cannot load the model")

    assert compare(case, [Fake("right", eager), Fake("bad", fails)], QUICK).times[1].why == "cannot load the model"
    with pytest.raises(EngineError, match="cannot load"):
        compare(case, [Fake("right", eager), Fake("ours", fails, sparse=True)], QUICK)
    with pytest.raises(EngineError, match=r"no dense engine can be timed .bad: cannot load the model"):
        compare(case, [Fake("bad", fails), Sparse(eager)], QUICK)


def test_two_of_one_name(case: Case) -> None:
    with pytest.raises(EngineError, match="one name"):
        compare(case, [Fake("a", eager), Fake("a", eager)], QUICK)


def test_a_contender_with_a_model_of_its_own_is_compared_with_that(case: Case) -> None:
    other = nn.Linear(4, 3).eval()
    found = compare(case, [Fake("right", eager), Sparse(eager, "other", model=other)], QUICK)
    assert found.times[1].error == 0
    with pytest.raises(EngineError, match="outputs are wrong"):
        compare(case, [Fake("right", eager), Sparse(wrong, "other", model=other)], QUICK)


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
