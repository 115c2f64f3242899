"""Several real processes, each with a part of every parameter (FSDP2): as one process does, through kills and stops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rank_trainings import deciding, described, largest_difference, task_of, trained
from ticketry.errors import InterruptedTrainingError, UsageError
from ticketry.lab.lab import Lab
from ticketry.lab.store import checkpoints
from ticketry.lab.store.maintenance import check, collect_garbage
from ticketry.lab.store.mirror import Mirror
from ticketry.lab.store.store import Store, local_folder, open_remote
from ticketry.lab.training.job import Watch
from ticketry.lab.training.precision import FSDP, OWN, choose_arithmetic
from ticketry.lab.training.ranks.group import find_blocks_to_shard
from ticketry.lab.training.state import initial_state
from ticketry.lab.training.variants import Penalty
from watches import KillAt, StopAt, children


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_parts_are_equal_to_one_process(store, optimizer):
    """In float64: convolutions, synchronised norms, dropout, augmentation, clipping, a mask, batches that do not come
    out even, a state on the way to rewind to, and one that is gone on from."""
    task = task_of(examples=211)
    recipe = task.recipe.changed(optimizer=optimizer, lr=0.01 if optimizer == "adam" else 0.1)
    alone, two = (described(store, task, ranks, recipe=recipe, parallel=FSDP * (ranks > 1)) for ranks in (1, 2))
    one, both = trained(store, alone, (10,)), trained(store, two, (10,))
    assert two.trajectory not in (alone.trajectory, described(store, task, 2, recipe=recipe).trajectory)
    assert largest_difference(store, one["model"], both["model"]) <= 1e-9
    at_ten = [store.load_result(each.trajectory, 10) for each in (alone, two)]
    assert largest_difference(store, at_ten[0]["training"], at_ten[1]["training"]) <= 1e-9
    assert both["metrics"] == one["metrics"]
    assert [loss for _, loss in both["loss"]] == pytest.approx([loss for _, loss in one["loss"]], abs=1e-6)
    state = store.get_tensors(both["model"])
    assert all(not state[name][~kept].any() for name, kept in store.get_mask(two.mask).items())

    again = Store(store.paths.root.parent / "again")
    again.put_mask(store.get_mask(two.mask))
    trained(again, two.shortened_to(10))  # and goes on from that result
    assert deciding(trained(again, two)) == deciding(both)
    assert not check(again).damaged


@pytest.mark.slow
def test_parameters_without_a_gradient_and_norms_of_each_rank(store):
    task = task_of("Unused", length="9it")
    one = trained(store, described(store, task, 1, masked=False))
    two = trained(store, described(store, task, 2, masked=False, parallel=FSDP))
    assert largest_difference(store, one["model"], two["model"]) <= 1e-9
    assert torch.equal(store.get_tensors(two["model"])["unused.weight"], initial_state(task, 3)["unused.weight"])
    own = [trained(store, described(store, task, 2, norms=OWN, parallel=parallel)) for parallel in ("", FSDP)]
    assert largest_difference(store, own[0]["model"], own[1]["model"]) <= 1e-9


@pytest.mark.slow
def test_a_state_of_many_files_goes_on_with_the_same_bits(store, tmp_path):
    """75 MB of each of two ranks, in several files; a rank is killed with SIGKILL."""
    segment = described(store, task_of("Large"), 2, parallel=FSDP, masked=False)
    undisturbed = trained(store, segment)
    other = Store(tmp_path / "disturbed")
    with pytest.raises(InterruptedTrainingError, match="its state is stored"):
        trained(other, segment, watch=StopAt(at=2))
    step, folder = checkpoints.find_newest_shard_folder(other.paths, segment.trajectory, segment.last)
    files = [path.stat().st_size for path in folder.glob("*.safetensors")]
    assert len(files) >= 6, "three of each rank"
    assert sum(files) > 2 * 64 << 20
    watch = KillAt(ranks={step + 1: 1})
    assert deciding(trained(other, segment, watch=watch)) == deciding(undisturbed)
    assert not watch.ranks, "no rank was killed"
    assert not children()


@pytest.mark.slow
def test_killed_and_stopped_parts_go_on_with_the_same_bits(store, tmp_path):
    """With three ranks, some of which have nothing of a small parameter."""
    segment = described(store, task_of(length="60it", wide="no"), 3, parallel=FSDP)
    undisturbed = trained(store, segment, (30,))
    other = Store(tmp_path / "disturbed")
    other.put_mask(store.get_mask(segment.mask))
    with pytest.raises(InterruptedTrainingError, match="its state is stored"):
        trained(other, segment, (30,), StopAt(at=9))
    reached = checkpoints.find_newest_shard_folder(other.paths, segment.trajectory, segment.last)
    assert reached is not None
    assert 0 < reached[0] < segment.last
    assert len(list(reached[1].glob("*.safetensors"))) == 3, "each rank writes its part"
    assert other.last_stored_step(segment.trajectory, segment.last) == reached[0]
    watch = KillAt(ranks={25: 1})
    assert deciding(trained(other, segment, (30,), watch)) == deciding(undisturbed)
    assert not watch.ranks, "no rank was killed"
    assert not children()
    collect_garbage(other, grace_seconds=0)
    assert not list(other.paths.partial.iterdir())


@pytest.mark.slow
def test_another_machine_goes_on_from_a_state_in_parts(store, tmp_path, monkeypatch):
    """Two machines with a mirror each of one shared store: what one has trained when it is stopped is not lost."""
    segment = described(store, task_of(length="60it", wide="no"), 2, parallel=FSDP)
    undisturbed = trained(store, segment)
    steps: list[int] = []

    def machine(name: str) -> Store:
        monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path / name))
        address = f"file://{tmp_path}/shared"
        return Store(local_folder(address), Mirror(open_remote(address), local_folder(address), lease_seconds=30))

    one = machine("one")
    one.put_mask(store.get_mask(segment.mask))
    with pytest.raises(InterruptedTrainingError, match="its state is stored"):
        trained(one, segment, watch=StopAt(at=20))
    reached = checkpoints.find_newest_shard_folder(one.paths, segment.trajectory, segment.last)
    assert reached is not None
    two = machine("two")
    assert two.paths.root != one.paths.root
    watch = Watch()
    monkeypatch.setattr(watch, "progress", lambda _, step: steps.append(step))
    assert deciding(trained(two, segment, watch=watch)) == deciding(undisturbed)
    assert min(steps) > reached[0] >= 20
    assert not list(two.mirror.remote.list("partial/"))


def test_folders_of_parts(store):
    paths, trajectory = store.paths, "ab" * 32
    for step in (3, 7):
        folder = checkpoints.create_shard_folder(paths, trajectory, step)
        for rank in range(2):
            (folder / f"part-{rank}").write_bytes(bytes([rank, step]))
        found = checkpoints.digest_shards(folder, 0, 2) | checkpoints.digest_shards(folder, 1, 2)
        assert checkpoints.find_newest_shard_folder(paths, trajectory, 10) == (
            None if step == 3 else (3, paths.partial_folder(trajectory, 3))
        )
        checkpoints.finish_shard_folder(folder, paths, trajectory, step, found)
    (step, folder) = checkpoints.find_newest_shard_folder(paths, trajectory, 10)
    assert step == 7
    assert [path.stem for path in paths.partial_folders(trajectory)] == [f"{trajectory}-7"], "the one before is dropped"
    assert checkpoints.find_newest_shard_folder(paths, trajectory, 6) is None
    (folder / "part-1").write_bytes(b"damaged")
    assert checkpoints.find_newest_shard_folder(paths, trajectory, 10) is None
    assert check(store).damaged == [folder]
    (folder / "part-1").unlink()
    assert checkpoints.find_newest_shard_folder(paths, trajectory, 10) is None
    store.drop_checkpoints(trajectory, 7)
    assert not list(paths.partial_folders(trajectory))


def test_blocks_are_what_is_called():
    tied = nn.Linear(8, 8)
    model = nn.Sequential(
        nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8)),
        nn.ModuleList([tied, nn.MultiheadAttention(8, 2)]),
        tied,
        nn.BatchNorm1d(1, affine=False),
    )
    found = list(find_blocks_to_shard(model))
    assert model[0] in found
    assert model[0][0] in found
    assert found.index(model[0][0]) < found.index(model[0]), "inner ones first"
    assert model[1][1] in found
    assert model[1][1].out_proj not in found, "its weight is used without it being called"
    assert not {model, model[1], model[2], model[3], tied} & set(found)


def test_what_needs_whole_parameters_is_refused(store):
    penalty = Penalty(kind="hoyer_square", strength=1e-3, names=("0.weight",))
    with pytest.raises(UsageError, match=r"training with penalty looks at whole parameters.*--parallel ddp"):
        described(store, task_of(), 2, parallel=FSDP, variants=(penalty,))


def test_the_choice_is_part_of_a_key_where_there_are_several(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))
    assert choose_arithmetic(model, ranks=1, parallel="fsdp") == choose_arithmetic(model)
    found = choose_arithmetic(model, ranks=2, parallel="fsdp")
    assert found.describe()["parallel"] == "fsdp"
    assert not found.channels_last
    assert "parallel" not in choose_arithmetic(model, ranks=2).describe()
    with pytest.raises(UsageError, match="parallel 'tensor' is not known"):
        choose_arithmetic(model, ranks=2, parallel="tensor")
    with Lab(tmp_path / "s", devices=2, parallel="fsdp", runner="in-process", device="cpu", workers=0) as lab:
        assert lab.arithmetic(task_of()).parallel == FSDP
