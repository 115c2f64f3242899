"""Several real processes learn a text, each from its rows of a batch: as one does, through kills and stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from rank_trainings import deciding, described, largest_difference, trained
from ticketry.errors import InterruptedTrainingError, TaskError
from ticketry.lab.lab import Lab
from ticketry.lab.store.store import Store
from ticketry.lab.training.precision import FSDP
from ticketry.tasks import catalogue
from ticketry.tasks.task import Task
from watches import KillAt, StopAt, children


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def words(**options: str) -> Task:
    return catalogue.get("ranks_texts:Words", options=options)


@pytest.mark.parametrize(
    ("model", "parallel", "ranks"),
    [
        pytest.param("lstm", "", 2, marks=pytest.mark.slow),
        pytest.param("gpt", "", 2, marks=pytest.mark.slow),
        pytest.param("pointer", "", 2, marks=pytest.mark.slow),
        pytest.param("tied", FSDP, 2, marks=pytest.mark.slow),
        pytest.param("gpt", FSDP, 2, marks=pytest.mark.slow),
    ],
)
def test_ranks_are_equal_to_one_process(store, model, parallel, ranks):
    """In float64: dropout, clipping, a mask, rows (of a GPT pieces) that do not come out even, states of rows that are
    carried, over more than two epochs, a state on the way."""
    task = words(model=model)
    alone, several = (described(store, task, each, parallel=parallel * (each > 1)) for each in (1, ranks))
    assert alone.last > 2 * alone.per_epoch
    one, all_ = trained(store, alone, (10,)), trained(store, several, (10,))
    assert largest_difference(store, one["model"], all_["model"]) <= 1e-9
    at_ten = [store.load_result(each.trajectory, 10) for each in (alone, several)]
    assert largest_difference(store, at_ten[0]["training"], at_ten[1]["training"]) <= 1e-9
    carried = [name for name in store.get_tensors(at_ten[1]["training"]) if name.startswith("session/")]
    assert bool(carried) == (model != "gpt")
    assert all_["metrics"] == one["metrics"]
    assert [loss for _, loss in all_["loss"]] == pytest.approx([loss for _, loss in one["loss"]], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["", FSDP])
def test_killed_and_stopped_ranks_go_on_with_the_same_bits(store, tmp_path, parallel):
    task = words(wide="no")
    segment = described(store, task, 3, parallel=parallel, recipe=task.recipe.changed(length="60it"))
    undisturbed = trained(store, segment, (30,))
    other = Store(tmp_path / "disturbed")
    other.put_mask(store.get_mask(segment.mask))
    with pytest.raises(InterruptedTrainingError, match="its state is stored"):
        trained(other, segment, (30,), StopAt(at=8))
    assert 0 < other.last_stored_step(segment.trajectory, segment.last) < segment.last
    watch = KillAt(ranks={23: 1})
    assert deciding(trained(other, segment, (30,), watch)) == deciding(undisturbed)
    assert not watch.ranks, "no rank was killed"
    assert not children()


def test_fewer_rows_than_devices(store, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    with Lab(store.paths.root, device="cpu", precision="fp32", devices=3) as lab:
        with pytest.raises(TaskError, match="a batch of a text has 2 rows, fewer than the 3 devices"):
            lab.segment(words(batch="2"), start=0)
        with pytest.raises(TaskError, match="last batch of an epoch of a text has 2 pieces"):  # 74 pieces, of 12
            lab.segment(words(model="gpt", batch="12"), start=0)
        assert lab.segment(words(), start=0).arithmetic.ranks == 3
