"""Damage is found, set aside and trained again; what nobody needs is freed, and nothing else."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from lab_fixtures import PointsTask
from ticketry.core.scope import scope
from ticketry.errors import DamagedBlobError, StoreError
from ticketry.files import file_digest
from ticketry.lab.lab import Lab
from ticketry.lab.retrain import retraining
from ticketry.lab.store import maintenance
from ticketry.lab.store.locks import mark_running
from ticketry.lab.store.maintenance import GRACE_SECONDS, check, collect_garbage
from ticketry.lab.training.segment import Result

REWIND = 6


def small_search(lab: Lab, points) -> list[Result]:
    """The dense network, its rewind point, a ticket from there, and a network of another seed."""
    dense = lab.train(lab.segment(points, start=0), keep=(REWIND,))
    rewound = lab.at(dense, REWIND)
    mask = lab.prune(points, dense, scope(points.build()), density=0.5)
    ticket = retraining(
        lab, points, points.recipe, retrain="continue", mask=mask, rewound=rewound, trained=dense, order_seed=0
    )
    return [dense, rewound, lab.train(ticket), lab.train(lab.segment(points, start=1))]


@pytest.fixture(scope="module")
def store_of_a_search(shared_store: Path) -> Path:
    with Lab(shared_store) as lab:
        small_search(lab, PointsTask())
    return shared_store


@pytest.fixture
def searched(lab: Lab, points, store_of_a_search: Path) -> list[Result]:
    """In a copy of a store in which all is trained."""
    shutil.copytree(store_of_a_search, lab.store.paths.root, dirs_exist_ok=True)
    found = small_search(lab, points)
    assert lab.ledger.segments_trained == 0
    return found


def again(lab: Lab, points) -> tuple[list[Result], int]:
    """The search in a new lab on the same store: what it gives, and how many segments it trained."""
    with Lab(lab.store.paths.root) as other:
        return small_search(other, points), other.ledger.segments_trained


def flip(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def flip_metric(path: Path) -> None:
    """Still valid JSON, and no digest of a blob is touched."""
    text = path.read_text()
    at = text.index('"accuracy": ') + len('"accuracy": ')
    flip(path, at)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def age(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def test_a_sound_store(lab, searched):
    before = snapshot(lab.store.paths.root)
    health = check(lab.store, repair=True)
    assert health.is_undamaged
    assert health.results == 4
    assert health.blobs == len(list(lab.store.paths.blobs.rglob("*.safetensors")))
    assert health.leftover == []
    assert snapshot(lab.store.paths.root) == before


def _blob(lab: Lab, searched: list[Result]) -> Path:
    return lab.store.paths.blob(searched[0].model)


def _record(lab: Lab, searched: list[Result]) -> Path:
    return lab.store.paths.result(searched[0].segment.trajectory, searched[0].segment.last)


def _memo(lab: Lab, searched: list[Result]) -> Path:
    return next(lab.store.paths.memo.glob("masks/*/*.json"))


def _partial(lab: Lab, searched: list[Result]) -> Path:
    lab.store.put_checkpoint("ab" * 32, 3, {"a": torch.zeros(3)})
    return next(lab.store.paths.partial.iterdir())


@pytest.mark.parametrize("find", [_blob, _record, _memo, _partial])
def test_a_flipped_byte_is_found(lab, searched, find):
    path = find(lab, searched)
    flip(path, 40)
    health = check(lab.store)
    assert not health.is_undamaged
    assert health.damaged == [path]
    assert path.exists(), "without repair nothing is moved"


def test_results_whose_tensors_are_gone_are_found(lab, searched):
    dense, _, ticket, _ = searched
    lab.store.paths.blob(ticket.segment.start.state).unlink()
    health = check(lab.store)
    assert not health.damaged
    needs_it = {(dense.segment.trajectory, REWIND), (ticket.segment.trajectory, ticket.segment.last)}
    assert set(health.missing) == {lab.store.paths.result(*place) for place in needs_it}


def test_what_a_search_writes_meanwhile_is_no_damage(lab, points, searched, monkeypatch):
    """While tensors are read, which takes long, a search writes more of them, and a result that names them."""
    kept = []

    def trained_meanwhile(path: Path) -> str:
        if not kept:
            kept.append(lab.train(lab.segment(points, start=2)))
        return file_digest(path)

    monkeypatch.setattr(maintenance, "file_digest", trained_meanwhile)
    health = check(lab.store, repair=True)
    assert kept
    assert health.is_undamaged
    assert not (lab.store.paths.root / "damaged").exists()


# Which of the searched networks has the damage, and how many segments are trained again for it.
DAMAGES = {
    "weights of the ticket": (lambda lab, found: lab.store.paths.blob(found[2].model), 1),
    "weights at the rewind point": (lambda lab, found: lab.store.paths.blob(found[1].model), 2),
    "weights of the dense network": (_blob, 1),
    "the mask": (lambda lab, found: lab.store.paths.blob(found[2].segment.mask), 1),
    "a record": (_record, 1),
    "a remembered mask": (_memo, 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_repair_and_train_again(lab, points, searched, damage):
    find, trained_again = DAMAGES[damage]
    root = lab.store.paths.root
    path = find(lab, searched)
    sound = snapshot(root)
    flip(path, path.stat().st_size // 2)
    if path.suffix != ".json":
        with pytest.raises(DamagedBlobError, match="check --repair"):
            lab.store.get_bytes(path.stem)
    health = check(lab.store, repair=True)
    assert not health.is_undamaged
    assert (root / "damaged" / path.relative_to(root)).exists()
    assert check(lab.store).is_undamaged
    found, trained = again(lab, points)
    assert trained == trained_again
    assert [(result.model, result.metrics) for result in found] == [
        (result.model, result.metrics) for result in searched
    ]
    shutil.rmtree(root / "damaged")
    blobs = {name: data for name, data in snapshot(root).items() if name.startswith("blobs")}
    assert blobs == {name: data for name, data in sound.items() if name.startswith("blobs")}


def unneeded(lab: Lab) -> list[Path]:
    """One of each kind of what `collect` is for."""
    paths = lab.store.paths
    orphan = paths.blob(lab.store.put_tensors({"a": torch.zeros(5)}))
    leftover = paths.results / ".1.json.abc.tmp"
    leftover.write_bytes(b"half")
    finished = next(paths.results.glob("*/*")).name
    lab.store.put_checkpoint(finished, 3, {"a": torch.zeros(3)})
    half_a_ticket = paths.runs / "imp-x" / "tickets" / ".level-01.0123abcd.tmp" / "mask.safetensors"
    replaced = paths.runs / "imp-x" / "tickets" / ".level-02.0123abcd.old" / "mask.safetensors"
    for path in (half_a_ticket, replaced):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
    return [orphan, leftover, *paths.partial.glob(f"{finished}-3-*"), half_a_ticket, replaced]


def test_collect_frees_what_nobody_needs(lab, points, searched):
    root = lab.store.paths.root
    lab.store.put_checkpoint("ab" * 32, 3, {"a": torch.zeros(3)})  # of a segment that is still to be finished
    lab.prune(points, searched[0], scope(points.build()), density=0.7)  # of a ticket that is still to be trained
    before = snapshot(root)
    size = sum(path.stat().st_size for path in unneeded(lab))
    age(root, GRACE_SECONDS + 60)
    assert check(lab.store).is_undamaged
    assert len(check(lab.store).leftover) == 3
    whole = snapshot(root)
    assert collect_garbage(lab.store, dry_run=True) == (5, size)
    assert snapshot(root) == whole
    assert collect_garbage(lab.store) == (5, size)
    assert snapshot(root) == before
    assert collect_garbage(lab.store) == (0, 0)
    found, trained = again(lab, points)
    assert trained == 0
    assert found == searched


def test_what_is_young_is_left_alone(lab, searched):
    files = unneeded(lab)
    age(lab.store.paths.root, GRACE_SECONDS - 60)
    assert collect_garbage(lab.store) == (0, 0)
    assert collect_garbage(lab.store, grace_seconds=60)[0] == 5
    assert not any(path.exists() for path in files)
    assert not list(lab.store.paths.leftovers())


@pytest.mark.parametrize("by", ["a lab's training", "a command", "a run"])
def test_nothing_is_collected_while_something_is_trained(lab, searched, by):
    """Another store's ticket is named by a result only when the first training is done, however long that takes."""
    needed, paths = unneeded(lab)[0], lab.store.paths
    age(paths.root, 100 * GRACE_SECONDS)
    under_way = {
        "a lab's training": lambda: lab.store.lock_trajectory(searched[0].segment.trajectory),
        "a command": lambda: mark_running(paths.live),
        "a run": lambda: mark_running(paths.run("imp-x")),
    }
    told = "the run imp-x is being carried out" if by == "a run" else "something is being trained"
    with under_way[by](), pytest.raises(StoreError, match=f"{told} in .*: free space when it has ended"):
        collect_garbage(lab.store)
    assert needed.exists()
    assert collect_garbage(lab.store)[0] == 5
    assert not needed.exists()


def test_nothing_is_collected_by_a_damaged_record(lab, searched):
    """It might be the one that needs what would be deleted."""
    record = _record(lab, searched)
    age(lab.store.paths.root, GRACE_SECONDS + 60)
    flip_metric(record)
    before = snapshot(lab.store.paths.root)
    with pytest.raises(StoreError, match="check --repair"):
        collect_garbage(lab.store)
    assert snapshot(lab.store.paths.root) == before
