"""Stopped anywhere and gone on with, a segment gives the same bits; nothing is trained twice."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from ticketry.core.prune import prune
from ticketry.errors import InterruptedTrainingError
from ticketry.lab.lab import Lab
from ticketry.lab.store.store import Store
from ticketry.lab.training import job as job_module
from ticketry.lab.training.execute import execute, is_done
from ticketry.lab.training.job import Watch
from ticketry.lab.training.segment import Segment, Start
from ticketry.lab.training.state import rebuild_model
from ticketry.tasks.images import ImageClassification
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Split, Splits
from watches import StopAt


def stop_at(step: int) -> Watch:
    return StopAt(at=step, checkpoint_seconds=1e9)


@pytest.fixture(autouse=True)
def look_after_every_step(monkeypatch):
    monkeypatch.setattr(job_module, "_TICK_SECONDS", 0.0)


@pytest.fixture
def segment(lab: Lab, points, half: str) -> Segment:
    """24 steps of a masked network with batch norm and dropout."""
    return lab.segment(points, start=3, order_seed=4, mask=half)


def train(store: Store, segment: Segment, keep: tuple[int, ...] = (), watch: Watch | None = None) -> int:
    """Execute it; how many steps were really trained."""
    return execute(store, None, segment, keep, watch or Watch()).steps


def everything(store: Store, segment: Segment) -> dict[str, object]:
    """All of a result that is decided by the segment: digests of tensors, losses and metrics."""
    record = store.load_result(segment.trajectory, segment.last)
    assert record is not None
    return {name: record[name] for name in ("segment", "step", "model", "training", "metrics", "loss")}


@pytest.fixture
def undisturbed(tmp_path: Path, segment: Segment, lab: Lab) -> Store:
    """A store in which the segment was trained in one go, with a state kept at step 10."""
    store = Store(tmp_path / "undisturbed")
    if segment.mask:
        store.put_mask(lab.store.get_mask(segment.mask))
    train(store, segment, (10,))
    return store


@pytest.mark.parametrize(
    "stops", [(12,), (1, 2, 11, 23), pytest.param(tuple(range(1, 24)), marks=pytest.mark.slow)], ids=str
)
def test_going_on_gives_the_same_bits(lab, segment, undisturbed, stops):
    store = lab.store
    for stop in stops:
        with pytest.raises(InterruptedTrainingError, match=f"at step {stop}"):
            train(store, segment, watch=stop_at(stop))
        assert store.newest_checkpoint(segment.trajectory, segment.last)[0] == stop
        assert not is_done(store, segment)
    assert train(store, segment) == segment.last - stops[-1]
    assert everything(store, segment) == everything(undisturbed, segment)
    assert not list(store.paths.partial.iterdir())


def test_going_on_from_a_kept_state(lab, segment, undisturbed):
    part = segment.shortened_to(10)
    assert train(lab.store, part) == 10
    assert train(lab.store, segment) == 14
    for each in (part, segment):
        assert everything(lab.store, each)["training"] == everything(undisturbed, each)["training"]
        assert everything(lab.store, each)["model"] == everything(undisturbed, each)["model"]
    assert everything(lab.store, segment) == everything(undisturbed, segment)


class KilledAt12(Watch):
    def report_progress(self, segment: Segment, step: int) -> None:
        if step == 12:
            raise SystemExit


@pytest.mark.parametrize(("keep", "left"), [((), 19), ((10,), 14)])
def test_a_killed_writer_loses_only_its_last_seconds(lab, segment, undisturbed, keep, left):
    """Killed at step 12: there is a checkpoint of step 5, and perhaps a kept state that is nearer."""
    with pytest.raises(InterruptedTrainingError):
        train(lab.store, segment, watch=stop_at(5))
    with pytest.raises(SystemExit):
        train(lab.store, segment, keep, KilledAt12(checkpoint_seconds=1e9))
    assert train(lab.store, segment) == left
    assert everything(lab.store, segment) == everything(undisturbed, segment)


def test_a_damaged_checkpoint_costs_only_time(lab, segment, undisturbed):
    with pytest.raises(InterruptedTrainingError):
        train(lab.store, segment, watch=stop_at(5))
    partial = next(lab.store.paths.partial.iterdir())
    partial.write_bytes(partial.read_bytes()[:-1] + b"\xff")
    assert train(lab.store, segment) == 24
    assert everything(lab.store, segment) == everything(undisturbed, segment)


def test_states_kept_on_the_way_change_nothing(lab, segment, undisturbed):
    keep = tuple(range(25))
    assert train(lab.store, segment, keep) == 24
    assert everything(lab.store, segment) == everything(undisturbed, segment)
    assert lab.store.stored_steps(segment.trajectory) == [*keep]


def test_the_state_at_the_start_is_the_masked_start(lab, segment, points):
    train(lab.store, segment, (0,))
    record = lab.store.load_result(segment.trajectory, 0)
    dense = lab.state(lab.train(lab.segment(points, start=3, last=0)))
    mask = lab.store.get_mask(segment.mask)
    for name, tensor in lab.store.get_tensors(record["model"]).items():
        assert torch.equal(tensor, dense[name] * mask[name] if name in mask else dense[name])
    assert not any("optimizer" in name for name in lab.store.get_tensors(record["training"]))


def test_training_goes_on_with_a_stored_optimizer(lab, segment, undisturbed):
    """The second half as a segment of its own, from the weights and the optimiser of the first."""
    train(lab.store, segment.shortened_to(10))
    middle = lab.store.load_result(segment.trajectory, 10)
    args = {"mask": segment.mask, "first": 10, "order_seed": 4}
    whole = lab.segment(segment.task, start=Start(state=middle["model"], optimizer=middle["training"]), **args)
    fresh = lab.segment(segment.task, start=Start(state=middle["model"]), **args)
    assert train(lab.store, whole) == 14
    assert everything(lab.store, whole)["model"] == everything(undisturbed, segment)["model"]
    train(lab.store, fresh)
    assert everything(lab.store, fresh)["model"] != everything(undisturbed, segment)["model"]


def test_the_momentum_of_pruned_weights_is_forgotten(lab, points, half):
    """A mask that comes in the middle of training, with an optimiser that has moments for all weights."""
    dense = lab.train(lab.segment(points, start=0), keep=(10,))
    middle = lab.at(dense, 10)
    start = Start(state=middle.model, optimizer=middle.training)
    result = lab.train(lab.segment(points, start=start, mask=half, first=10, last=20))
    training, state = lab.store.get_tensors(result.training), lab.state(result)
    for name, kept in lab.store.get_mask(half).items():
        for tensor in (state[name], *(training[f"optimizer/{name}/{part}"] for part in ("exp_avg", "exp_avg_sq"))):
            assert not tensor[~kept].any()
            assert tensor[kept].any()


class Synthetic(ImageClassification):
    """A few random pictures."""

    def load(self, data: Path | None = None) -> Splits:
        draw = torch.Generator().manual_seed(0)
        images = torch.randint(256, (48, 3, 16, 16), generator=draw, dtype=torch.uint8)
        classes = torch.randint(10, (48,), generator=draw)
        return Splits(*(Split(images[a:b], classes[a:b]) for a, b in ((0, 32), (32, 40), (40, 48))))


def test_a_residual_network_in_bf16_goes_on_with_the_same_bits(tmp_path):
    recipe = Recipe(length="4it", batch=8, lr=0.05, weight_decay=1e-4, augment=("flip", "crop"))
    task = Synthetic(
        name="synthetic",
        model="resnet-20-8",
        shape=(3, 16, 16),
        classes=10,
        largest=255.0,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        recipe=recipe,
    )
    mask = prune(task.build(), 0.4, score="random")
    found = []
    for name, stops in (("undisturbed", ()), ("stopped", (1, 3))):
        with Lab(tmp_path / name, precision="bf16", device="cpu") as lab:
            segment = lab.segment(task, start=0, mask=mask)
            assert segment.arithmetic.precision == "bf16"
            assert segment.arithmetic.channels_last
            for stop in stops:
                with pytest.raises(InterruptedTrainingError):
                    train(lab.store, segment, (2,), stop_at(stop))
            train(lab.store, segment, (2,))
            found.append([everything(lab.store, part) for part in (segment.shortened_to(2), segment)])
            state = lab.store.get_tensors(lab.store.load_result(segment.trajectory, 4)["model"])
            assert state["conv.weight"].dtype == torch.float32
            assert all(not state[name][~mask[name]].any() for name in mask)
    assert found[0] == found[1]


def test_what_is_stored_is_not_trained(lab, segment):
    assert train(lab.store, segment, (5,)) == 24
    assert is_done(lab.store, segment, (5, 24))
    for part, keep in ((segment, ()), (segment, (5, 24)), (segment.shortened_to(5), ())):
        assert train(lab.store, part, keep) == 0


def test_only_the_missing_state_is_trained(lab, segment, undisturbed):
    train(lab.store, segment)
    assert not is_done(lab.store, segment, (10,))
    assert train(lab.store, segment, (10,)) == 10
    assert everything(lab.store, segment) == everything(undisturbed, segment)
    models = [store.load_result(segment.trajectory, 10)["model"] for store in (lab.store, undisturbed)]
    assert models[0] == models[1]


def test_only_metrics_are_missing(lab, segment, undisturbed):
    """A state kept on the way has none; asked for as a result of its own it is measured, not trained."""
    train(lab.store, segment, (10,))
    part = segment.shortened_to(10)
    assert lab.store.load_result(segment.trajectory, 10)["metrics"] is None
    assert not is_done(lab.store, part)
    assert train(lab.store, part) == 0
    other = Store(undisturbed.paths.root.parent / "other")
    other.put_mask(lab.store.get_mask(segment.mask))
    train(other, part)
    assert everything(lab.store, part) == everything(other, part)


def test_a_shorter_segment_leaves_the_checkpoint_of_a_longer_one(lab, segment, undisturbed):
    with pytest.raises(InterruptedTrainingError):
        train(lab.store, segment, (10,), stop_at(20))
    assert train(lab.store, segment.shortened_to(10)) == 0  # its metrics only
    assert train(lab.store, segment.shortened_to(7)) == 7
    assert train(lab.store, segment) == 4
    assert everything(lab.store, segment) == everything(undisturbed, segment)


def test_no_steps_at_all(lab, points):
    segment = lab.segment(points, start=1, last=0)
    assert train(lab.store, segment) == 0
    assert everything(lab.store, segment)["loss"] == []
    assert set(everything(lab.store, segment)["metrics"]) == {"validation", "test"}


def test_metrics_by_hand(lab, digits):
    """More examples than one batch of evaluation; in evaluation mode; of the right split."""
    splits = digits.load()
    task = digits
    result = lab.train(lab.segment(task, start=0, recipe=task.recipe.changed(length="30it")))
    model = rebuild_model(task, lab.state(result)).eval()
    for name, split in (("validation", splits.validation), ("test", splits.test)):
        logits = model(task.prepare(split.inputs)).detach().double()
        right = [int(row.argmax()) == int(label) for row, label in zip(logits, split.targets, strict=True)]
        entropies = [float(-functional.log_softmax(r, 0)[t]) for r, t in zip(logits, split.targets, strict=True)]
        assert result.metrics[name]["accuracy"] == pytest.approx(100 * sum(right) / len(right), abs=1e-6)
        assert result.metrics[name]["loss"] == pytest.approx(sum(entropies) / len(right), rel=1e-5)


def test_the_curve_of_the_loss(lab, points):
    steps = 130
    segment = lab.segment(points, start=0, recipe=points.recipe.changed(length=f"{steps + 1}it"), last=steps)
    train(lab.store, segment)
    record = lab.store.load_result(segment.trajectory, steps)
    losses = lab.store.get_tensors(record["training"])["losses"].tolist()
    assert len(losses) == steps
    assert len(record["loss"]) <= 100
    before = 0
    for step, mean in record["loss"]:
        part = losses[before:step]
        assert mean == pytest.approx(sum(part) / len(part), abs=1e-6)
        before = step
    assert before == steps


def test_training_time_adds_up_over_interruptions(lab, segment):
    with pytest.raises(InterruptedTrainingError):
        train(lab.store, segment, watch=stop_at(20))
    earlier = float(lab.store.newest_checkpoint(segment.trajectory, 24)[1]["seconds"])
    work = execute(lab.store, None, segment, (), Watch())
    total = lab.store.load_result(segment.trajectory, 24)["cost"]["train_seconds"]
    assert 0 < earlier <= total
    assert total == pytest.approx(earlier + work.train_seconds, abs=2e-3)


def test_work_tells_the_processor_s_time_of_its_own(lab, segment):
    began, busy = time.perf_counter(), time.process_time()
    work = execute(lab.store, None, segment, (), Watch())
    assert 0 < work.processor_seconds <= time.process_time() - busy
    assert work.train_seconds + work.other_seconds <= time.perf_counter() - began
    assert execute(lab.store, None, segment, (), Watch()).processor_seconds == 0, "all of it was there"
