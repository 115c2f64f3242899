"""Who is trained with whom, and that nobody waits for ever."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ticketry.errors import InterruptedTrainingError, RunnerError, TrainingError
from ticketry.lab import partners as partners_module
from ticketry.lab.execute import Work
from ticketry.lab.lab import Lab
from ticketry.lab.partners import Partners
from ticketry.lab.runner import Order
from ticketry.lab.segment import Segment
from ticketry.search import iterative
from ticketry.tasks import registry

ORDER = Order(Path("store"), None, 60.0)

pytestmark = pytest.mark.timeout(240)


class Workers:
    """A runner that trains nothing: stacks are done when the test says so."""

    def __init__(self, *, at_once: bool = False) -> None:
        self.stacks: list[list[Segment]] = []
        self.futures: list[concurrent.futures.Future[Any]] = []
        self.stopped = False
        self._at_once = at_once

    def submit_stack(self, order: Order, segments: Sequence[Segment], keep: tuple[int, ...]) -> Any:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.stacks.append(list(segments))
        self.futures.append(future)
        if self._at_once:
            self.finish(-1)
        return future

    def finish(self, number: int) -> None:
        self.futures[number].set_result([Work(1) for _ in self.stacks[number]])

    def stop(self) -> None:
        self.stopped = True
        for future in self.futures:
            if not future.done():
                future.set_exception(InterruptedTrainingError("stopped"))

    @property
    def sizes(self) -> list[int]:
        return [len(stack) for stack in self.stacks]


@pytest.fixture
def ask(lab, digits) -> Callable[..., Segment]:
    """A segment: of an order seed, that agrees with others of the same length."""

    def make(seed: int, length: int = 10) -> Segment:
        return lab.segment(digits, start=0, order_seed=seed, recipe=digits.recipe.changed(length=f"{length}it"))

    return make


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def trained(partners: Partners, segments: Sequence[Segment]) -> list[Work]:
    futures = [partners.submit(ORDER, segment, ()) for segment in segments]
    for future in futures:
        partners.wait_for(future)
    return [future.result(timeout=0) for future in futures]


@pytest.mark.parametrize(
    ("workers", "most", "count", "sizes"),
    [
        (1, 8, 8, [8]),
        (1, 8, 10, [8, 2]),
        (2, 8, 8, [4, 4]),
        (2, 8, 5, [3, 2]),
        (2, 3, 8, [3, 3, 2]),
        (0, 4, 4, [4]),
        (2, 1, 3, [1, 1, 1]),
        (4, 8, 1, [1]),
    ],
)
def test_what_is_asked_for_at_once_is_dealt_out(ask, workers, most, count, sizes):
    """As few stacks as keep every worker at work; each worker has one at a time."""
    runner = Workers()
    partners = Partners(runner, most, workers)
    thread = threading.Thread(target=trained, args=(partners, [ask(seed) for seed in range(count)]), daemon=True)
    thread.start()
    slots = max(workers, 1)
    for number in range(len(sizes)):
        until(lambda wanted=number: len(runner.stacks) > wanted)
        assert len(runner.stacks) - sum(future.done() for future in runner.futures) <= slots
        if number >= slots - 1:
            runner.finish(number - slots + 1)
    until(lambda: len(runner.stacks) == len(sizes))
    for number, future in enumerate(runner.futures):
        if not future.done():
            runner.finish(number)
    thread.join(30)
    assert not thread.is_alive()
    assert sorted(runner.sizes, reverse=True) == sizes


def test_only_those_that_agree(ask):
    runner = Workers(at_once=True)
    found = trained(Partners(runner, 8, 1), [ask(0), ask(1, 20), ask(2), ask(3, 20), ask(4)])
    assert runner.sizes == [3, 2]
    assert {segment.last for segment in runner.stacks[0]} == {10}
    assert len(found) == 5


def test_the_same_one_in_other_words_is_no_partner_of_itself(ask):
    runner = Workers(at_once=True)
    assert len(trained(Partners(runner, 8, 1), [ask(0), ask(0), ask(1)])) == 3
    assert sorted(runner.sizes) == [1, 2]


def pieces(partners: Partners, works: Sequence[Callable[[], object]]) -> list[Any]:
    """Run works as the pieces of one gathering."""
    with (
        partners.gathering(len(works)) as counted,
        concurrent.futures.ThreadPoolExecutor(len(works)) as pool,
    ):

        def one(work: Callable[[], object]) -> object:
            with counted():
                return work()

        return list(pool.map(one, works))


def test_pieces_of_a_search_stay_together_from_level_to_level(ask, monkeypatch):
    """Each asks for one after the other; the next stack begins when the slowest has asked, not before."""
    monkeypatch.setattr(partners_module, "_LINGER_SECONDS", 60.0)
    runner = Workers(at_once=True)
    partners = Partners(runner, 8, 1)

    def search(number: int) -> None:
        for level in range(5):
            time.sleep(0.01 * number)
            trained(partners, [ask(100 * number + level)])

    pieces(partners, [lambda number=number: search(number) for number in range(6)])
    assert runner.sizes == [6] * 5


def test_who_ends_early_is_not_waited_for(ask, monkeypatch):
    monkeypatch.setattr(partners_module, "_LINGER_SECONDS", 60.0)
    runner = Workers(at_once=True)
    partners = Partners(runner, 8, 1)

    def search(number: int) -> None:
        for level in range(number + 1):
            trained(partners, [ask(100 * number + level)])

    def fails() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        pieces(partners, [fails, *(lambda number=number: search(number) for number in range(3))])
    assert sum(runner.sizes) == 1 + 2 + 3
    assert runner.sizes == [3, 2, 1]


def test_pieces_that_gather_pieces(ask, monkeypatch):
    """An outer piece that waits for inner ones asks for nothing itself."""
    monkeypatch.setattr(partners_module, "_LINGER_SECONDS", 60.0)
    runner = Workers(at_once=True)
    partners = Partners(runner, 8, 1)

    def outer(number: int) -> None:
        pieces(partners, [lambda inner=inner: trained(partners, [ask(10 * number + inner)]) for inner in range(2)])
        trained(partners, [ask(100 + number)])

    pieces(partners, [lambda number=number: outer(number) for number in range(2)])
    assert runner.sizes == [4, 2]


def test_a_piece_that_asks_for_nothing_is_waited_for_a_moment_only(ask, monkeypatch):
    monkeypatch.setattr(partners_module, "_LINGER_SECONDS", 0.3)
    runner = Workers(at_once=True)
    partners = Partners(runner, 8, 1)
    done = threading.Event()
    began = time.monotonic()

    def asks() -> None:
        trained(partners, [ask(1)])
        done.set()

    pieces(partners, [asks, lambda: done.wait(30)])
    assert done.is_set()
    assert 0.3 <= time.monotonic() - began < 20
    assert runner.sizes == [1]


def test_those_who_come_while_all_workers_are_at_work_become_one_stack(ask):
    runner = Workers()
    partners = Partners(runner, 8, 1)
    threads = []
    for seed in range(5):
        threads.append(threading.Thread(target=trained, args=(partners, [ask(seed)]), daemon=True))
        threads[-1].start()
        until(lambda: len(runner.stacks) == 1)
    until(lambda: len(partners._waiting) == 4)
    runner.finish(0)
    until(lambda: len(runner.stacks) == 2)
    runner.finish(1)
    for thread in threads:
        thread.join(30)
    assert runner.sizes == [1, 4]


def test_what_a_search_asks_for_comes_first(ask):
    """Controls, which no piece asks for, were there before; they fill the stacks up."""
    runner = Workers(at_once=True)
    partners = Partners(runner, 4, 1)
    controls = [partners.submit(ORDER, ask(seed), ()) for seed in range(6)]
    asked = [ask(100 + number) for number in range(2)]
    pieces(partners, [lambda segment=segment: trained(partners, [segment]) for segment in asked])
    for future in controls:
        partners.wait_for(future)
    assert runner.sizes == [4, 4]
    assert {segment.key for segment in asked} < {segment.key for segment in runner.stacks[0]}


def test_two_who_wait_for_one(ask, monkeypatch):
    monkeypatch.setattr(partners_module, "_LINGER_SECONDS", 60.0)
    runner = Workers(at_once=True)
    partners = Partners(runner, 8, 1)
    shared = partners.submit(ORDER, ask(0), ())

    def waits(number: int) -> None:
        partners.wait_for(shared)
        trained(partners, [ask(1 + number)])

    pieces(partners, [lambda number=number: waits(number) for number in range(3)])
    assert runner.sizes == [1, 3]


@pytest.mark.parametrize("error", [RunnerError("lost"), KeyboardInterrupt()])
def test_what_a_runner_raises_reaches_all_who_wait(ask, error):
    class Refuses(Workers):
        def submit_stack(self, *_: Any) -> Any:
            raise error

    partners = Partners(Refuses(), 8, 1)
    futures = [partners.submit(ORDER, ask(seed), ()) for seed in range(2)]
    with contextlib.suppress(KeyboardInterrupt):
        partners.wait_for(futures[0])
    assert [future.exception(timeout=0) for future in futures] == [error, error]


def test_a_stop_ends_all_waiting(ask):
    runner = Workers()
    partners = Partners(runner, 1, 1)
    futures = [partners.submit(ORDER, ask(seed), ()) for seed in range(3)]
    threads = [threading.Thread(target=partners.wait_for, args=(future,), daemon=True) for future in futures]
    for thread in threads:
        thread.start()
    until(lambda: len(runner.stacks) == 1)
    partners.stop()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert all(isinstance(future.exception(timeout=0), InterruptedTrainingError) for future in futures)
    assert runner.stopped
    assert runner.sizes == [1]


def test_after_a_stop_no_piece_goes_on(ask):
    runner = Workers(at_once=True)
    partners = Partners(runner, 8, 1)

    def asks() -> None:
        partners.stop()
        with pytest.raises(InterruptedTrainingError, match="was stopped"):
            partners.submit(ORDER, ask(0), ())

    pieces(partners, [asks])
    assert trained(partners, [ask(1)])  # the lab is used again


# -- in a lab ----------------------------------------------------------------------------------------------------------


def test_replicates_of_a_search_are_stacked(tmp_path):
    """Three replicates and two levels in lockstep, by one worker process; and the same search from the store."""
    task = registry.get("digits")
    recipe = task.recipe.changed(length="30it")
    settings = iterative.Settings(rewind="5it", levels=2)
    found = {}
    with Lab(tmp_path / "store", workers=1, stack=8) as lab:
        for turn in ("first", "again"):
            found[turn] = iterative(lab, task, settings, recipe=recipe, replicates=3)
            assert lab.ledger.segments_trained == 3 * 3
    networks = [each.result for replicate in found["first"] for each in replicate]
    assert [result.record["stack"]["members"] for result in networks] == [3] * 9
    assert [each.result.model for replicate in found["again"] for each in replicate] == [r.model for r in networks]
    with Lab(tmp_path / "alone") as lab:
        for many, one in zip(found["first"], iterative(lab, task, settings, recipe=recipe, replicates=3), strict=True):
            for stacked, alone in zip(many, one, strict=True):
                close = pytest.approx(alone.result.metrics["test"]["loss"], rel=0.05)
                assert stacked.result.metrics["test"]["loss"] == close


def test_an_error_of_one_member_stops_the_search(tmp_path):
    """Those beside it have stored their states."""
    task = registry.get("digits")
    recipe = task.recipe.changed(length="200it", optimizer="sgd", lr=1e6)
    with Lab(tmp_path / "store", workers=1, stack=8) as lab:
        asked = [lab.segment(task, start=seed, recipe=recipe) for seed in range(2)]
        with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step"):
            lab.gather([lambda segment=segment: lab.train(segment) for segment in asked])
