"""The store gives back what it was given, or says that it cannot."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import filelock
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ticketry.core.mask import Mask
from ticketry.errors import DamagedBlobError, StoreError
from ticketry.lab.store import store as store_module
from ticketry.lab.store.files import read_json, read_with_digest
from ticketry.lab.store.maintenance import repair_format
from ticketry.lab.store.store import FORMAT, Store

TRAJECTORY = "ab" * 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# -- the folder --------------------------------------------------------------------------------------------------------


def test_a_store_is_made_once(tmp_path):
    Store(tmp_path / "new" / "store")
    assert read_json(tmp_path / "new" / "store" / "store.json") == {"format": FORMAT, "kind": "ticketry.store"}
    before = (tmp_path / "new" / "store" / "store.json").stat().st_mtime_ns
    Store(tmp_path / "new" / "store")
    assert (tmp_path / "new" / "store" / "store.json").stat().st_mtime_ns == before


def test_a_store_of_another_format_is_left_alone(tmp_path):
    (tmp_path / "store.json").write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(StoreError, match="use the ticketry that made it, or another folder with --store"):
        Store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]


@pytest.mark.parametrize("text", ["{", "{}"])
def test_a_file_of_that_name_that_is_no_stores_is_left_alone(tmp_path, text):
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(StoreError, match="no store's: choose another folder with --store"):
        Store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(StoreError, match="other things in it: choose another with --store"):
        Store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("text", ["{", '{"format": "2"}'])
def test_a_damaged_store_file_is_told_and_can_be_made_anew(store, text):
    store.put_result(TRAJECTORY, 1, {"step": 1})
    store.paths.format.write_text(text)
    with pytest.raises(StoreError, match=r"store\.json is damaged: delete this one file"):
        Store(store.paths.root)
    store.paths.format.unlink()
    assert Store(store.paths.root).load_result(TRAJECTORY, 1) == {"step": 1}
    store.paths.format.write_text(text)
    assert repair_format(store.paths.root) == [store.paths.format]
    assert Store(store.paths.root).load_result(TRAJECTORY, 1) == {"step": 1}


def test_two_processes_may_make_one_store(tmp_path):
    """What the other one leaves for a moment while it writes is not a thing of somebody else."""
    (tmp_path / ".store.json.abc.tmp").write_text("{")
    Store(tmp_path)


def test_a_store_may_be_made_while_one_looks(tmp_path, monkeypatch):
    Store(tmp_path)
    answers = iter([None])  # the first look was before the other process wrote the file
    monkeypatch.setattr(store_module.files, "read_json", lambda path: next(answers, read_json(path)))
    Store(tmp_path)


# -- tensors -----------------------------------------------------------------------------------------------------------


def test_the_same_content_is_written_once(store):
    digest = store.put_bytes(b"some")
    path = store.paths.blob(digest)
    os.utime(path, (1, 1))
    written = path.stat().st_ino
    assert store.put_bytes(b"some") == digest
    assert path.stat().st_ino == written
    assert path.stat().st_mtime > 1, "it is in use again, which keeps it from being collected"
    assert len(files(store.paths.blobs)) == 1


def test_tensors_round_trip(store):
    tensors = {
        "float": torch.randn(3, 4),
        "half": torch.randn(5).bfloat16(),
        "count": torch.tensor(7),
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "strided": torch.randn(4, 6).t()[1:],
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "tied": (tied := torch.randn(4)),
        "part": tied[:2],
    }
    found = store.get_tensors(store.put_tensors(tensors))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_equal_tensors_have_one_digest(store):
    one = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.zeros(2)}
    other = {"a": torch.zeros(2), "b": torch.arange(12.0).reshape(6, 2)[:, 0].div(2).reshape(2, 3)}
    assert torch.equal(one["b"], other["b"])
    assert store.put_tensors(one) == store.put_tensors(other)
    assert store.put_tensors({**one, "a": torch.ones(2)}) != store.put_tensors(one)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {"flipped": _flip, "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]), "missing": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_when_it_is_read(store, damage):
    mask = Mask({"a": torch.rand(30) > 0.5})
    digest, get = store.put_mask(mask), store.get_mask
    assert get(digest) == mask
    path = store.paths.blob(digest)
    DAMAGE[damage](path)
    with pytest.raises(DamagedBlobError, match="ticketry store check --repair") as caught:
        get(digest)
    assert str(path) in str(caught.value)


# -- records -----------------------------------------------------------------------------------------------------------

RECORD = {"model": "m" * 64, "metrics": {"test": {"accuracy": 97.25}}, "loss": [(10, 0.5)], "training": None}


@pytest.mark.parametrize("data", [b"", b"\x08" + bytes(7) + b"[1, 2]  ", b"\x10" + bytes(40), b"{}" * 20])
def test_a_file_with_the_right_digest_that_holds_no_tensors(store, data):
    digest = store.put_bytes(data)
    with pytest.raises(DamagedBlobError, match="holds no tensors"):
        store.get_tensors(digest)
    path = store.paths.partial_file(TRAJECTORY, 3, digest)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    assert store.newest_checkpoint(TRAJECTORY, 10) is None


@pytest.mark.parametrize(
    "text", ['{"a": "\\ud800"}', '{"\\uDFFF": 1}', '{"a": ' + "[" * 5000, '{"a": ' + "9" * 5000 + "}"]
)
def test_json_that_cannot_be_written_again_is_damaged(store, text):
    path = store.paths.memo_file("masks", TRAJECTORY)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(StoreError, match="is damaged"):
        read_with_digest(path)


def test_results_by_trajectory_and_step(store):
    assert store.load_result(TRAJECTORY, 5) is None
    assert store.stored_steps(TRAJECTORY) == []
    for step in (100, 5, 20):
        store.put_result(TRAJECTORY, step, {**RECORD, "step": step})
    assert store.stored_steps(TRAJECTORY) == [5, 20, 100]
    assert store.load_result(TRAJECTORY, 20) == {**RECORD, "step": 20, "loss": [[10, 0.5]]}
    store.put_result(TRAJECTORY, 20, {"step": 21})
    assert store.load_result(TRAJECTORY, 20) == {"step": 21}
    assert store.load_result("cd" * 32, 20) is None


@pytest.mark.parametrize("damage", ["{", '{"shares": {"w": 2.5}}', '{"shares": {}, "sha256": "0"}'])
def test_a_damaged_answer_is_told_and_made_anew(store, caplog, damage):
    store.put_memo("removed", "k" * 64, {"shares": {"w": 0.5}})
    path = store.paths.memo_file("removed", "k" * 64)
    path.write_text(damage)
    assert store.load_or_compute("removed", "k" * 64, lambda: {"shares": {"w": 0.25}}) == {"shares": {"w": 0.25}}
    assert f"{path} is computed again" in caplog.text
    assert store.load_memo("removed", "k" * 64) == {"shares": {"w": 0.25}}


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_no_flipped_bit_of_a_record_goes_unseen(store, data):
    store.put_result(TRAJECTORY, 1, RECORD)
    path = store.paths.result(TRAJECTORY, 1)
    written = path.read_bytes()
    known = store.load_result(TRAJECTORY, 1)
    changed = bytearray(written)
    changed[data.draw(st.integers(0, len(written) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    try:
        found = store.load_result(TRAJECTORY, 1)
    except StoreError:
        return
    # White space, or the very name of the seal.
    assert {name: found[name] for name in known} == known


def test_a_record_that_lost_its_seal_is_refused(store):
    """Else bytes changed where the seal stands would take it away, and whatever else they changed would pass."""
    store.put_result(TRAJECTORY, 1, {"step": 1})
    path = store.paths.result(TRAJECTORY, 1)
    values = json.loads(path.read_text())
    del values["sha256"]
    path.write_text(json.dumps(values))
    with pytest.raises(StoreError, match="no digest"):
        store.load_result(TRAJECTORY, 1)


# -- checkpoints inside a segment --------------------------------------------------------------------------------------


def state(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((4,), value)}


def value_of(found) -> tuple[int, float] | None:
    return None if found is None else (found[0], float(found[1]["w"][0]))


def test_the_newest_partial_up_to_a_step(store):
    assert store.newest_checkpoint(TRAJECTORY, 100) is None
    store.put_checkpoint(TRAJECTORY, 10, state(10))
    store.put_checkpoint(TRAJECTORY, 20, state(20))
    assert value_of(store.newest_checkpoint(TRAJECTORY, 100)) == (20, 20.0)
    assert value_of(store.newest_checkpoint(TRAJECTORY, 20)) == (20, 20.0)
    assert store.newest_checkpoint(TRAJECTORY, 19) is None, "the older one was dropped"
    assert len(files(store.paths.partial)) == 1
    assert store.newest_checkpoint("cd" * 32, 100) is None


def test_a_damaged_partial_is_passed_over(store):
    store.put_checkpoint(TRAJECTORY, 10, state(10))
    older = files(store.paths.partial)[0]
    kept = older.read_bytes()
    store.put_checkpoint(TRAJECTORY, 20, state(20))
    older.write_bytes(kept)  # as if the process had been killed before it could drop it
    newer = next(path for path in files(store.paths.partial) if path != older)
    _flip(newer)
    assert value_of(store.newest_checkpoint(TRAJECTORY, 100)) == (10, 10.0)
    _flip(older)
    assert store.newest_checkpoint(TRAJECTORY, 100) is None


def test_a_partial_beyond_a_shorter_segment_is_kept(store):
    store.put_checkpoint(TRAJECTORY, 90, state(90))
    store.put_checkpoint(TRAJECTORY, 30, state(30))
    store.put_checkpoint("cd" * 32, 20, state(1))
    store.drop_checkpoints(TRAJECTORY, 50)
    assert value_of(store.newest_checkpoint(TRAJECTORY, 100)) == (90, 90.0)
    assert store.newest_checkpoint(TRAJECTORY, 50) is None
    assert value_of(store.newest_checkpoint("cd" * 32, 50)) == (20, 1.0)


# -- locks -------------------------------------------------------------------------------------------------------------


def _hold_twice(root: Path, pipe: Connection) -> None:
    store = Store(root)
    for _ in range(2):
        with store.lock_trajectory(TRAJECTORY):
            pipe.send("held")
            pipe.recv()
        pipe.send("released")
        pipe.recv()


def _is_free(store: Store) -> bool:
    probe = filelock.FileLock(store.paths.lock(TRAJECTORY))
    try:
        with probe.acquire(timeout=0):
            return True
    except filelock.Timeout:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the fork of a process with threads
def test_a_lock_excludes_another_process_and_dies_with_it(store):
    pipe, theirs = multiprocessing.Pipe()
    holder = multiprocessing.get_context("fork").Process(target=_hold_twice, args=[store.paths.root, theirs])
    holder.start()

    def go_on() -> str:
        pipe.send("go on")
        return pipe.recv()

    assert pipe.recv() == "held"
    assert not _is_free(store)
    with store.lock_trajectory("cd" * 32):
        pass  # another trajectory's is free
    assert go_on() == "released"
    assert _is_free(store)
    assert go_on() == "held"
    got = threading.Event()

    def wait() -> None:
        with store.lock_trajectory(TRAJECTORY):
            got.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    assert not got.wait(0.2)
    holder.kill()
    assert got.wait(30), "the lock of a killed process is free"
    waiting.join()


def test_a_lock_is_released_after_an_error(store):
    with store.lock_trajectory(TRAJECTORY):
        assert not _is_free(store)
    with pytest.raises(ZeroDivisionError), store.lock_trajectory(TRAJECTORY):
        raise ZeroDivisionError
    assert _is_free(store)
