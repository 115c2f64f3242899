"""Stacks in a store: resumed, shared with other processes, and no member harmed by another."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from ticketry.errors import InterruptedTrainingError, TrainingError, UsageError
from ticketry.lab import execute as execute_module
from ticketry.lab.execute import Watch, Work, execute, is_done
from ticketry.lab.lab import Lab
from ticketry.lab.segment import Segment, Start
from ticketry.lab.store import Store
from ticketry.lab.together import Answer, execute_together, stack_key
from ticketry.tasks.recipe import Recipe

RECIPE = Recipe(length="24it", batch=32, optimizer="adam", lr=1e-3)


@dataclass
class StopAt(Watch):
    """Looks after every step, and asks for a stop at one."""

    at: int = -1
    checkpoint_seconds: float = 1e9
    seen: list[tuple[str, int]] = field(default_factory=list)

    def progress(self, segment: Segment, step: int) -> None:
        self.seen.append((segment.trajectory, step))

    def stop_asked(self) -> bool:
        return self.seen[-1][1] == self.at


@pytest.fixture(autouse=True)
def look_after_every_step(monkeypatch):
    monkeypatch.setattr(execute_module, "_TICK_SECONDS", 0.0)


@pytest.fixture
def stacking(tmp_path) -> Lab:
    return Lab(tmp_path / "store", stack=8)


@pytest.fixture
def members(stacking, digits) -> list[Segment]:
    """Five of 24 steps."""
    return [stacking.segment(digits, start=seed, order_seed=seed, recipe=RECIPE) for seed in range(5)]


def train(
    store: Store, segments: Sequence[Segment], keep: Sequence[int] = (), watch: Watch | None = None
) -> list[Answer]:
    return execute_together(store, None, segments, keep, watch or Watch())


def steps(answers: Sequence[Answer]) -> list[int]:
    assert all(isinstance(answer, Work) for answer in answers)
    return [answer.steps for answer in answers if isinstance(answer, Work)]


def models(store: Store, segments: Sequence[Segment], step: int = 24) -> list[object]:
    """Digests of weights, buffers and optimisers, losses and metrics."""
    records = [store.result(segment.trajectory, step) for segment in segments]
    return [record and [record[name] for name in ("model", "training", "loss", "metrics")] for record in records]


def test_the_same_members_give_the_same_bits(tmp_path, members):
    """In whatever order they come, and stopped anywhere."""
    wanted = Store(tmp_path / "wanted")
    assert steps(train(wanted, members, keep=(7,))) == [24] * 5
    turned = Store(tmp_path / "turned")
    train(turned, members[::-1], keep=(7,))
    stopped = Store(tmp_path / "stopped")
    for stop in (1, 7, 20):
        with pytest.raises(InterruptedTrainingError, match=f"stopped at step {stop}"):
            train(stopped, members, (7,), StopAt(at=stop))
    assert steps(train(stopped, members, keep=(7,))) == [4] * 5
    for store in (turned, stopped):
        for step in (7, 24):
            assert models(store, members, step) == models(wanted, members, step)
        assert not list(store.paths.partial.glob("*"))


def test_what_is_there_is_not_trained_again(stacking, members):
    assert steps(train(stacking.store, members[:2])) == [24, 24]
    before = models(stacking.store, members[:2])
    assert steps(train(stacking.store, members)) == [0, 0, 24, 24, 24]
    assert models(stacking.store, members[:2]) == before
    assert [stacking.train(segment).record["stack"]["members"] for segment in members] == [2, 2, 3, 3, 3]
    assert steps(train(stacking.store, members)) == [0] * 5


def test_a_state_on_the_way_gets_its_metrics(stacking, members):
    short = [segment.until(7) for segment in members]
    train(stacking.store, members, keep=(7,))
    assert not any(is_done(stacking.store, segment) for segment in short)
    assert steps(train(stacking.store, short)) == [0] * 5
    assert all(stacking.train(segment).metrics["test"] for segment in short)


def test_members_that_are_ahead_are_caught_up_with(stacking, members, tmp_path, digits):
    """As after a crash between two checkpoints: two are at 9, one at 5, one has a result at 7, one nothing."""
    store = stacking.store
    for some, step in ((members[:2], 9), (members[2:3], 5)):
        with pytest.raises(InterruptedTrainingError):
            train(store, some, watch=StopAt(at=step))
    train(store, [members[3].until(7)])
    watch = StopAt()
    assert steps(train(store, members, watch=watch)) == [15, 15, 19, 17, 24]
    order = [step for trajectory, step in watch.seen if trajectory == members[4].trajectory]
    assert order == sorted(order)
    for name, steps_seen in {
        segment.trajectory: [step for trajectory, step in watch.seen if trajectory == segment.trajectory]
        for segment in members
    }.items():
        assert steps_seen == sorted(steps_seen), name
    assert [stacking.train(segment).record["stack"]["members"] for segment in members] == [5] * 5
    with Lab(tmp_path / "alone") as lab:
        for segment, seed in zip(members, range(5), strict=True):
            alone = lab.train(lab.segment(digits, start=seed, order_seed=seed, recipe=RECIPE))
            found = stacking.train(segment)
            assert found.metrics["test"]["loss"] == pytest.approx(alone.metrics["test"]["loss"], rel=1e-2)
            assert len(found.record["loss"]) == 24


def test_optimisers_of_unlike_histories_are_not_mixed(stacking, digits):
    """One has made 3 steps where the other has made 6: Adam's corrections differ."""
    begun = [stacking.segment(digits, start=0, first=first, last=6, recipe=RECIPE) for first in (0, 3)]
    points = [stacking.train(segment) for segment in begun]
    starts = [Start(state=point.model, optimizer=point.training) for point in points]
    later = [stacking.segment(digits, start=start, first=6, recipe=RECIPE) for start in starts]
    assert steps(train(stacking.store, later)) == [18, 18]
    assert [stacking.train(segment).record["stack"]["members"] for segment in later] == [1, 1]


def test_a_member_that_fails_does_not_stop_the_others(stacking, digits, members, monkeypatch):
    """Its weights are no numbers; the others are what they are without it."""
    bad = {name: value * float("nan") for name, value in stacking.state(stacking.train(members[0])).items()}
    broken = stacking.segment(digits, start=Start(state=stacking.store.put_tensors(bad)), recipe=RECIPE)
    answers = train(stacking.store, [members[1], broken, members[2]])
    assert isinstance(answers[1], TrainingError)
    assert "the loss is nan at step 0" in str(answers[1])
    assert steps([answers[0], answers[2]]) == [24, 24]
    assert [stacking.train(segment).record["stack"]["members"] for segment in members[1:3]] == [2, 2]
    assert not stacking.store.stored_steps(broken.trajectory)
    with pytest.raises(TrainingError, match="the loss is nan at step 0"):
        stacking.train_many([members[3], broken])


def test_two_that_want_the_same_members_share_them(stacking, members):
    """They come in other orders and overlap; nobody waits for ever, and nothing is trained twice."""
    answers: dict[int, list[Answer]] = {}

    def work(number: int, wanted: list[Segment]) -> None:
        answers[number] = train(stacking.store, wanted)

    asked = [members[:4], members[:0:-1], [members[2], members[4], members[0]]]
    threads = [threading.Thread(target=work, args=(i, wanted), daemon=True) for i, wanted in enumerate(asked)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert sum(sum(steps(each)) for each in answers.values()) == 5 * 24
    assert all(is_done(stacking.store, segment) for segment in members)


def test_training_time_is_shared_out(stacking, members):
    answers = train(stacking.store, members)
    assert all(isinstance(answer, Work) and answer.train_seconds > 0 and answer.other_seconds > 0 for answer in answers)
    shares = [answer.train_seconds for answer in answers if isinstance(answer, Work)]
    assert max(shares) == pytest.approx(min(shares))
    ledger = stacking.ledger
    assert ledger.segments_trained == 0  # nothing went through the lab
    assert sum(stacking.train(segment).train_seconds for segment in members) == pytest.approx(sum(shares), abs=0.01)


def test_who_may_be_a_member(stacking, digits, members):
    other = stacking.segment(digits, start=0, recipe=RECIPE.changed(lr=0.1))
    keys = {stack_key(segment, ()) for segment in members}
    assert len(keys) == 1
    mask = "m" * 64
    alike = [
        stacking.segment(digits, start=9, recipe=RECIPE, mask=mask),
        stacking.segment(digits, start=Start(state="s" * 64), recipe=RECIPE, order_seed=8),
    ]
    assert {stack_key(segment, ()) for segment in alike} == keys
    unlike = [
        other,
        members[0].until(23),
        stacking.segment(digits, start=0, first=1, recipe=RECIPE),
        stacking.segment(digits, start=Start(state="s" * 64, optimizer="o" * 64), recipe=RECIPE),
    ]
    assert not keys & {stack_key(segment, ()) for segment in unlike}
    assert stack_key(members[0], (3,)) not in keys
    with pytest.raises(UsageError, match="agree in all but start, mask and order seed"):
        train(stacking.store, [members[0], other])
    with pytest.raises(UsageError, match="no segment twice"):
        train(stacking.store, [members[0], members[0]])


def test_alone_it_is_another_segment(stacking, members, lab, digits):
    """What was trained in a stack is never taken for what was trained alone."""
    stacking.train_many(members)
    alone = lab.segment(digits, start=0, order_seed=0, recipe=RECIPE)
    assert alone.key != members[0].key
    assert not is_done(stacking.store, alone)
    assert execute(stacking.store, None, alone, (), Watch()).steps == 24
