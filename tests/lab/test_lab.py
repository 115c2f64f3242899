"""The lab in one process: what it remembers, what it refuses, how it stops."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest
import torch

import ticketry as tk
from ticketry.core.prune import prune
from ticketry.core.scope import scope
from ticketry.errors import InterruptedTrainingError, LayerCollapseError, TaskError, TrainingError, UsageError
from ticketry.lab import lab as lab_module
from ticketry.lab.lab import Lab
from ticketry.lab.runners.runner import Activity
from ticketry.lab.store.store import Store
from ticketry.lab.training import job as job_module
from ticketry.tasks.task import Split, Splits
from ticketry_engine.support.process_state import private_random_state


class Stopper:
    """Calls `act` at the first sign of progress at or after a step, once."""

    def __init__(self, step: int, act) -> None:
        self.step, self.act, self.done = step, act, False

    def __call__(self, event) -> None:
        if event.kind == "progress" and event.step >= self.step and not self.done:
            self.done = True
            self.act()


# -- asking ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"workers": -1}, {"threads": 0}, {"checkpoint_seconds": 0.0}])
def test_wrong_settings(tmp_path, settings):
    with pytest.raises(UsageError, match=r"must be a (whole )?number from"):
        Lab(tmp_path / "store", **settings)
    assert not (tmp_path / "store").exists()


def test_a_segment_by_default_is_the_whole_dense_training(lab, points):
    segment = lab.segment(points, start=4)
    assert (segment.first, segment.last, segment.total, segment.per_epoch) == (0, 24, 24, 7)
    assert (segment.mask, segment.order_seed, segment.start.seed) == (None, 0, 4)
    in_epochs = lab.segment(points, start=4, recipe=points.recipe.changed(length="3ep"))
    assert in_epochs.total == 3 * 7


def test_sizes_are_loaded_once_for_a_store(lab, points):
    assert lab.sizes(points) == {"train": 200, "validation": 50, "test": 60}
    points.load = None
    with Lab(lab.store.paths.root) as other:
        assert other.sizes(points) == lab.sizes(points)
        assert other.per_epoch(points) == 7


def test_a_split_without_examples_is_told(lab, points_class):
    class Empty(points_class):
        def load(self, data=None):
            nothing = Split(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
            return Splits(**{**vars(super().load(data)), "test": nothing})

    with pytest.raises(TaskError, match="no examples in its test split"):
        lab.segment(Empty(), start=0)


@pytest.mark.parametrize(("first", "keep"), [(0, 25), (0, -1), (5, 4)])
def test_only_steps_of_the_segment_can_be_kept(lab, points, first, keep):
    with pytest.raises(UsageError, match=f"keep= names step {keep} of a segment that is from {first} to 24"):
        lab.train(lab.segment(points, start=0, first=first), keep=(keep,))
    assert lab.ledger.segments_asked == 0


def test_a_step_that_was_not_kept(lab, points):
    result = lab.train(lab.segment(points, start=0), keep=(5,))
    assert lab.at(result, 5).segment.last == 5
    assert lab.at(result, 24) == result
    with pytest.raises(UsageError, match="step 6 of this trajectory is not stored: name it in keep="):
        lab.at(result, 6)


# -- remembering -------------------------------------------------------------------------------------------------------


def test_the_same_segment_is_trained_once(lab, points):
    segments = [lab.segment(points, start=0), lab.segment(points, start=1), lab.segment(points, start=0)]
    results = lab.train_many(segments)
    assert results[0] == results[2]
    assert results[0].model != results[1].model
    assert lab.train(segments[1]) == results[1]
    ledger = lab.ledger
    assert (ledger.segments_asked, ledger.segments_trained) == (4, 2)
    assert (ledger.steps_asked, ledger.steps_trained) == (4 * 24, 2 * 24)
    with Lab(lab.store.paths.root) as other:
        assert other.train_many(segments) == results
        assert (other.ledger.segments_asked, other.ledger.segments_trained) == (3, 0)


def test_a_longer_trajectory_trains_the_difference(lab, points, equal_bits):
    whole = lab.segment(points, start=0)
    lab.train(whole.shortened_to(10))
    assert lab.ledger.steps_trained == 10
    result = lab.train(whole)
    assert lab.ledger.steps_trained == 24
    with Lab(lab.store.paths.root.parent / "other") as other:
        assert equal_bits(other.state(other.train(whole)), lab.state(result))


def test_events_tell_the_story(tmp_path, points):
    events = []
    with Lab(tmp_path / "store", on_event=events.append) as lab:
        segment = lab.segment(points, start=0, first=3)
        for _ in range(2):
            lab.train(segment, label="a name")
    kinds = [event.kind for event in events if event.kind != "progress"]
    assert kinds == ["started", "waiting", "finished", "cached"]
    steps = [event.step for event in events if event.kind == "progress"]
    assert steps == sorted(steps)
    assert steps[-1] == 24
    assert {(event.key, event.label, event.first, event.last) for event in events} == {(segment.key, "a name", 3, 24)}


def test_steps_are_trained_aside_and_nothing_is_counted(tmp_path):
    """In another store; what is being trained there is shown, and is gone afterwards."""
    task, told = tk.task("digits"), Activity()
    with Lab(tmp_path / "own", on_event=told.on_event) as lab:
        whole = [lab.segment(task, start=seed, recipe=task.recipe.changed(length="40it")) for seed in (0, 1)]
        other = Store(tmp_path / "other")
        steps = lab.train_aside([one.shortened_to(5) for one in whole], other.address, measure=False)
        more = lab.train_aside([one.shortened_to(12) for one in whole], other.address, measure=True)
        assert [one.steps for one in (*steps, *more)] == [5, 5, 7, 7]
        assert min(one.train_seconds for one in (*steps, *more)) > 0
        assert not list(lab.store.paths.result_files())
        assert {path.stem for path in other.paths.result_files()} == {"5", "12"}
        assert (lab.ledger.segments_asked, told.trained, told.asked, told.active()) == (0, 0, 0, [])


def test_masks_are_remembered_by_what_made_them(lab, points, monkeypatch):
    one, other = lab.train_many([lab.segment(points, start=seed) for seed in (0, 1)])
    made = []
    monkeypatch.setattr(lab_module, "prune", lambda *a, **k: made.append(k) or prune(*a, **k))
    names = scope(points.build())
    first = lab.prune(points, one, names, density=0.5)
    assert lab.store.get_mask(first) == prune(lab.model(points, one), 0.5)
    asked = [
        {"density": 0.4},
        {"density": 0.5, "score": "random"},
        {"density": 0.5, "score": "random", "seed": 1},
        {"density": 0.5, "distribution": "erk"},
        {"density": 0.3, "score": "random"},
        {"density": 0.3, "score": "random", "within": first},
    ]
    masks = [first, *(lab.prune(points, one, names, **settings) for settings in asked)]
    masks.append(lab.prune(points, other, names, density=0.5))
    masks.append(lab.prune(points, one, scope(points.build(), spare=("5",)), density=0.5))
    assert len(set(masks)) == len(masks) == len(made)
    assert lab.store.get_mask(masks[6]) <= lab.store.get_mask(first)
    with Lab(lab.store.paths.root) as again:
        assert [again.prune(points, one, names, **settings) for settings in asked] == masks[1:7]
    assert len(made) == len(masks)


def test_a_mask_that_cannot_be_made_is_not_remembered(lab, points):
    result = lab.train(lab.segment(points, start=0, last=0))
    for _ in range(2):
        with pytest.raises(LayerCollapseError):
            lab.prune(points, result, scope(points.build()), density=0.003)


# -- side by side ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 3])
def test_pieces_are_gathered_in_order(tmp_path, workers):
    with Lab(tmp_path / "store", workers=workers) as lab:
        assert lab.gather([]) == []
        assert lab.gather(lambda n=n: n * n for n in range(7)) == [n * n for n in range(7)]


def test_seconds_of_masks_made_side_by_side_are_each_ones_own(tmp_path):
    """They wait for each other: the generators are the process's."""
    meeting = threading.Barrier(3)

    def made() -> tk.Mask:
        meeting.wait(timeout=30)
        with private_random_state([]):
            time.sleep(0.3)
        return tk.Mask({"weight": torch.ones(2, dtype=torch.bool)})

    with Lab(tmp_path / "store", workers=2) as lab:
        began = time.perf_counter()
        lab.gather([lambda n=n: lab.load_or_compute_mask({"one": n}, made) for n in range(3)])
        assert time.perf_counter() - began > 0.85
        told = [json.loads(path.read_text())["seconds"] for path in (tmp_path / "store/memo").rglob("*.json")]
    assert sorted(told) == pytest.approx([0.3] * 3, abs=0.15)


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("order", [1, -1])
def test_the_cause_is_told_rather_than_its_consequence(tmp_path, order):
    """One piece fails, the others are stopped for it, and may end sooner than it does."""
    stopped = threading.Event()

    def fails() -> None:
        assert stopped.wait(30)
        raise TrainingError("the cause")

    def is_stopped() -> None:
        stopped.set()
        raise InterruptedTrainingError("a consequence")

    with Lab(tmp_path / "store", workers=2) as lab:
        for _ in range(5):
            stopped.clear()
            with pytest.raises(TrainingError, match="the cause"):
                lab.gather([fails, is_stopped, is_stopped][::order])


def test_in_one_process_the_first_error_ends_it(lab):
    done = []
    with pytest.raises(TrainingError, match="first"):
        lab.gather([lambda: done.append(1), lambda: _raise(TrainingError("first")), lambda: done.append(2)])
    assert done == [1]


# -- stopping and going on ---------------------------------------------------------------------------------------------


def test_after_an_error_the_lab_is_as_good_as_before(lab, points, points_class):
    class Failing(points_class):
        def loss(self, outputs, targets, *, label_smoothing=0.0):
            return super().loss(outputs, targets) * float("nan")

    for _ in range(2):
        with pytest.raises(TrainingError):
            lab.train(lab.segment(Failing(), start=0))
        assert lab.train(lab.segment(points, start=0)).metrics
    with pytest.raises(TrainingError):
        lab.train_many([lab.segment(Failing(), start=seed) for seed in (0, 1)])
    assert lab.train(lab.segment(points, start=1)).metrics
    assert lab.ledger.segments_trained == 2


STOPS = {"ctrl-c": lambda lab: os.kill(os.getpid(), signal.SIGINT), "stop": lambda lab: lab.stop()}


@pytest.mark.parametrize("how", STOPS)
def test_stopping_between_two_steps(tmp_path, points, equal_bits, how, monkeypatch):
    """Its state is stored first, and the same lab goes on from there."""
    monkeypatch.setattr(job_module, "_TICK_SECONDS", 0.0)
    with Lab(tmp_path / "undisturbed") as lab:
        wanted = lab.state(lab.train(lab.segment(points, start=0)))
    handler = signal.getsignal(signal.SIGINT)
    listener = Stopper(11, lambda: STOPS[how](lab))
    with Lab(tmp_path / "store", on_event=listener) as lab:
        segment = lab.segment(points, start=0)
        with pytest.raises(KeyboardInterrupt):
            lab.train(segment)
        assert signal.getsignal(signal.SIGINT) is handler
        assert lab.store.newest_checkpoint(segment.trajectory, 24)[0] == 11
        result = lab.train(segment)
        assert lab.ledger.steps_trained == 24 - 11
        assert equal_bits(lab.state(result), wanted)


def test_an_error_of_the_listener_is_the_callers(tmp_path, points):
    with Lab(tmp_path / "store", on_event=Stopper(1, lambda: _raise(ZeroDivisionError()))) as lab:
        with pytest.raises(ZeroDivisionError):
            lab.train(lab.segment(points, start=0))
        assert lab.train(lab.segment(points, start=0)).metrics


def test_a_state_on_the_way_needs_no_metrics(lab, points):
    """Asked for without them it is not measured, asked for with them it is, and trained once."""
    segment = lab.segment(points, start=0)
    plain = lab.train(segment.shortened_to(10), measure=False)
    assert plain.metrics == {}
    assert lab.train(segment.shortened_to(10), measure=False).model == plain.model
    assert lab.ledger.steps_trained == 10
    measured = lab.train(segment.shortened_to(10))
    assert measured.metrics["test"].keys() == {"accuracy", "loss"}
    assert measured.model == plain.model
    assert lab.train(segment).metrics
    assert lab.ledger.steps_trained == 24
