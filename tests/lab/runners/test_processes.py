"""Training in several processes: the same bits as in one, and no harm when one of them ends."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from samples import sample
from ticketry.errors import InterruptedTrainingError, TrainingError
from ticketry.lab.lab import Lab
from ticketry.lab.runners.runner import Event
from ticketry.lab.store.maintenance import check
from ticketry.tasks import catalogue

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def events() -> list[Event]:
    """Events of the lab with workers."""
    return []


@pytest.fixture(scope="module", params=sample([1, 2], 1))
def at_work(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, events: list[Event]):
    """One lab for all tests here, in their order: its processes take seconds to start."""
    events.clear()
    store, settings = tmp_path_factory.mktemp("workers") / "store", {"device": "cpu", "checkpoint_seconds": 1e-3}
    with Lab(store, workers=request.param, on_event=events.append, **settings) as lab:
        yield lab


def wait_until(holds: Callable[[], bool]) -> None:
    """Events come from other processes, a little later than results."""
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_workers_give_the_same_bits(at_work, events, lab, digits):
    """Three networks, requested by several threads and twice, some with an intermediate state."""
    recipe = digits.recipe.changed(length="20it")
    segments = [lab.segment(digits, start=seed, order_seed=seed, recipe=recipe) for seed in range(3)]
    wanted = lab.train_many(segments, keep=(7,))
    first = at_work.gather(
        [
            lambda: at_work.train_many(segments[:2], labels=["a", "b"]),
            lambda: [at_work.train(segments[0])],
            lambda: [at_work.at(at_work.train(segments[0], keep=(7,)), 7)],
        ]
    )
    found = at_work.train_many(segments, keep=(7,))
    assert [(r.model, r.training, r.metrics) for r in found] == [(r.model, r.training, r.metrics) for r in wanted]
    assert [r.model for part in first[:2] for r in part] == [wanted[i].model for i in (0, 1, 0)]
    kept = [lab.at(result, 7).model for result in wanted]
    assert [at_work.at(result, 7).model for result in found] == kept
    assert first[2][0].model == kept[0]
    ledger = at_work.ledger
    assert ledger.segments_asked == 2 + 1 + 1 + 3
    # Seed 1 was trained without step 7 first; for seed 0 it depends on which request came first.
    assert ledger.steps_trained - 3 * 20 - 7 in (0, 7)
    told = {segment.key for segment in segments}
    wait_until(lambda: {event.key for event in events if event.kind == "progress"} == told)
    assert "b" in {event.label for event in events} <= {"", "a", "b"}


DEADLY = """
import os, signal
from pathlib import Path
from ticketry.tasks.user_task import OwnTask
from ticketry.tasks import catalogue

class Deadly(OwnTask):
    "Digits; the process that takes the 20th step of a training while there is no flag is killed as by the kernel."

    def __init__(self, flag=""):
        inner = catalogue.get("digits")
        self.inner, self.name, self.metric, self.recipe = inner, "deadly", inner.metric, inner.recipe
        self.flag, self.calls = flag, 0

    def key(self):
        return {"version": 1}

    def load(self, data=None):
        self.calls = 0
        return self.inner.load(data)

    def loss(self, outputs, targets, *, label_smoothing=0.0):
        self.calls += 1
        if self.calls == 20 and not Path(self.flag).exists():
            Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.loss(outputs, targets)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_killed_worker_is_replaced(at_work, events, lab, tmp_path, monkeypatch):
    """The pool is rebuilt; the training resumes from its last checkpoint, to equal bits."""
    (tmp_path / "deadly_task.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(str(tmp_path))
    flag = tmp_path / "flag"
    task = catalogue.get("deadly_task:Deadly", options={"flag": str(flag)})
    short, long = (task.recipe.changed(length=length) for length in ("10it", "30it"))
    finished, killed = at_work.segment(task, start=0, recipe=short), at_work.segment(task, start=0, recipe=long)
    before = at_work.ledger.steps_trained
    at_work.train(finished)
    _, result = at_work.train_many([finished, killed])
    assert 30 - 20 < at_work.ledger.steps_trained - before - 10 < 30, "a finished segment is not trained again"
    assert check(at_work.store).is_undamaged
    assert flag.exists()
    assert [event.key for event in events if event.kind == "lost"] == [killed.key]
    wanted = lab.train(killed)
    assert (result.model, result.metrics) == (wanted.model, wanted.metrics)


@pytest.mark.slow
def test_first_error_stops_the_others(at_work, events, digits):
    """A loss that explodes beside a training that would take hours. This stops the lab: the last test of it."""
    lab = at_work
    if lab.workers == 1:
        pytest.skip("two trainings at once")
    long = lab.segment(digits, start=0, recipe=digits.recipe.changed(length="10000000it"))
    hot = lab.segment(digits, start=1, recipe=digits.recipe.changed(length="200it", optimizer="sgd", lr=1e6))

    def explode() -> None:
        wait_until(lambda: any(event.key == long.key and event.kind == "progress" for event in events))
        lab.train(hot)

    with pytest.raises(TrainingError, match="the loss is"):
        lab.gather([lambda: lab.train(long), explode])
    assert lab.store.newest_checkpoint(long.trajectory, long.last)[0] > 0, "the stopped training can be resumed"
    with pytest.raises(InterruptedTrainingError, match="continue with a new one on the same store"):
        lab.train(lab.segment(digits, start=2))
    with Lab(lab.store.paths.root) as other:
        assert check(other.store).is_undamaged
        assert other.train(other.segment(digits, start=2, last=3)).metrics


UNGUARDED = """
import sys
from ticketry.lab.lab import Lab
from ticketry.tasks import catalogue
task = catalogue.get("digits")
with Lab(sys.argv[1], workers=1) as lab:
    lab.train(lab.segment(task, start=0, last=2))
"""


@pytest.mark.slow
def test_unguarded_script_is_an_error(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "store")], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 1
    assert "RunnerError: 3 workers of processes in a row were lost" in done.stderr
    assert "is not guarded by `if __name__ == '__main__':`" in done.stderr
