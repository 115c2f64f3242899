"""A store that several machines share: each has a mirror of its own, in a cache of its own."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable

import pytest
import torch

from ticketry.errors import DamagedBlobError, StoreError
from ticketry.lab.store.files import read_with_digest, write_with_digest
from ticketry.lab.store.maintenance import check, collect_garbage
from ticketry.lab.store.store import Store, open_remote

KEY = "ab" * 32
Machine = Callable[[str], Store]


def record(**values: object) -> dict[str, object]:
    return {"model": "", "training": None, "variants": {}, "segment": {}, "step": 1, **values}


def test_what_one_machine_stores_another_finds(machine: Machine) -> None:
    one = machine("one")
    digest = one.put_tensors({"w": torch.arange(5.0)})
    one.put_result(KEY, 3, record(model=digest, metrics={"a": 1}))
    one.put_memo("masks", KEY, {"mask": digest})
    two = machine("two")
    assert two.address == one.address
    assert two.paths.root != one.paths.root
    found = two.load_result(KEY, 3)
    assert found is not None
    assert torch.equal(two.get_tensors(str(found["model"]))["w"], torch.arange(5.0))
    assert two.load_memo("masks", KEY) == {"mask": digest}
    assert two.load_result(KEY, 4) is None
    assert two.load_memo("masks", "cd" * 32) is None
    assert not two.has("cd" * 32)


def test_the_first_result_stays_but_metrics_are_added(machine: Machine) -> None:
    one, two = machine("one"), machine("two")
    one.put_result(KEY, 3, record(metrics=None, who="one"))
    two.put_result(KEY, 3, record(metrics=None, who="two"))
    assert machine("three").load_result(KEY, 3)["who"] == "one"
    one.put_result(KEY, 3, record(metrics={"accuracy": 1}, who="one"))
    assert two.load_result(KEY, 3)["metrics"] == {"accuracy": 1}
    assert machine("three").load_result(KEY, 3)["metrics"] == {"accuracy": 1}


def test_a_state_inside_a_segment_is_gone_on_with_elsewhere(machine: Machine) -> None:
    one = machine("one")
    with one.lock_trajectory(KEY):
        for step in (2, 4, 6):
            one.put_checkpoint(KEY, step, {"w": torch.full((3,), float(step))})
        one.put_result(KEY, 5, record(metrics=None))
    two = machine("two")
    with two.lock_trajectory(KEY):
        assert two.stored_steps(KEY) == [5]
        step, tensors = two.newest_checkpoint(KEY, 100) or (0, {})
        assert step == 6
        assert torch.equal(tensors["w"], torch.full((3,), 6.0))
        assert two.newest_checkpoint(KEY, 5) is None
        two.drop_checkpoints(KEY, 6)
    three = machine("three")
    with three.lock_trajectory(KEY):
        assert three.newest_checkpoint(KEY, 100) is None
        assert three.stored_steps(KEY) == [5]
    assert not [one.name for one in three.mirror.remote.list("partial/")]


def test_a_damaged_copy_is_fetched_again_and_a_damaged_object_told(machine: Machine) -> None:
    one = machine("one")
    digest = one.put_bytes(b"weights")
    one.paths.blob(digest).write_bytes(b"weighty")
    assert one.get_bytes(digest) == b"weights"
    one.mirror.remote.put(f"blobs/{digest[:2]}/{digest}.safetensors", b"weighty")
    with pytest.raises(DamagedBlobError, match=r"damaged.*--repair"):
        machine("two").get_bytes(digest)
    assert one.get_bytes(digest) == b"weights"


def test_a_damaged_answer_is_made_anew_for_all(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    one, two = machine("one"), machine("two")
    one.put_memo("masks", KEY, {"mask": "12" * 32})
    one.mirror.remote.put(f"memo/masks/ab/{KEY}.json", b"{")
    with caplog.at_level(logging.WARNING):
        assert two.load_or_compute("masks", KEY, lambda: {"mask": "34" * 32}) == {"mask": "34" * 32}
    assert "computed again" in caplog.text
    assert machine("three").load_memo("masks", KEY) == {"mask": "34" * 32}


def test_nor_is_anything_lost_between_a_file_and_its_publication(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right behind the writing of a file, of each kind."""
    one = machine("one")
    monkeypatch.setattr(one.mirror, "_upload_object", lambda *_, **__: (_ for _ in ()).throw(SystemExit))
    for write in (
        lambda: one.put_bytes(b"weights"),
        lambda: one.put_pieces([b"more ", b"weights"]),
        lambda: one.put_result(KEY, 3, record(metrics={"a": 1})),
        lambda: one.put_memo("masks", KEY, {"mask": "34" * 32}),
    ):
        with pytest.raises(SystemExit):
            write()
    machine("one")
    three = machine("three")
    assert three.get_bytes(hashlib.sha256(b"weights").hexdigest()) == b"weights"
    assert three.get_bytes(hashlib.sha256(b"more weights").hexdigest()) == b"more weights"
    assert three.load_result(KEY, 3)["metrics"] == {"a": 1}
    assert three.load_memo("masks", KEY) == {"mask": "34" * 32}


def test_other_things_at_the_address_are_left_alone(machine: Machine, address: str) -> None:
    open_remote(address).create_if_absent("photos/one.jpg", b"jpg")
    with pytest.raises(StoreError, match=r"other things in it.*another folder"):
        machine("one")
    assert [one.name for one in open_remote(address).list()] == ["photos/one.jpg"]


def test_runs_are_published_records_last_and_name_their_own_place(
    machine: Machine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machine("one")
    folder = one.paths.run("a-run")
    ticket = folder / "tickets" / "level-01"
    ticket.mkdir(parents=True)
    (ticket / "ticket.json").write_text("{}")
    write_with_digest(folder / "run.json", {"run": "a-run", "store": address, "points": [{"ticket": str(ticket)}]})
    (folder / "running").touch()
    (folder / "report.html").touch()
    written: list[str] = []
    real = one.mirror.remote.put
    monkeypatch.setattr(one.mirror.remote, "put", lambda name, *more: (written.append(name), real(name, *more))[1])
    one.publish()
    assert written == ["runs/a-run/tickets/level-01/ticket.json", "runs/a-run/run.json"]
    one.publish()
    assert len(written) == 2

    two = machine("two")
    real("runs/a-run/report.html", b"a stranger's script")
    two.fetch()
    there = two.paths.run("a-run")
    told = read_with_digest(there / "run.json")
    assert told == {"run": "a-run", "store": address, "points": [{"ticket": str(there / "tickets" / "level-01")}]}
    assert not (there / "tickets").exists()
    two.fetch_folder(there)
    assert (there / "tickets" / "level-01" / "ticket.json").read_text() == "{}"
    assert not (there / "running").exists()
    two.fetch(everything=True)
    assert not (there / "report.html").exists()
    two.mirror.delete(["runs/a-run/run.json", "runs/a-run/tickets/level-01/ticket.json"])
    one.fetch()
    assert not folder.joinpath("run.json").exists()
    assert not folder.joinpath("report.html").exists()


def test_check_reads_what_is_there_and_sets_it_aside(machine: Machine) -> None:
    one = machine("one")
    good, bad = one.put_bytes(b"good"), one.put_bytes(b"bad")
    one.put_result(KEY, 3, record(model=bad, metrics={}))
    name = f"blobs/{bad[:2]}/{bad}.safetensors"
    one.mirror.remote.put(name, b"worse")
    two = machine("two")
    health = check(two)
    assert [path.stem for path in health.damaged] == [bad]
    assert [path.stem for path in health.missing] == ["3"]
    assert health.blobs == 2
    check(two, repair=True)
    names = {one.name for one in two.mirror.remote.list()}
    assert name not in names
    assert f"damaged/{name}" in names
    assert f"blobs/{good[:2]}/{good}.safetensors" in names
    assert check(machine("three")).is_undamaged


def test_gc_deletes_what_nothing_names_by_the_stores_own_clock(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machine("one")
    used, unused = one.put_bytes(b"used"), one.put_bytes(b"unused")
    one.put_result(KEY, 3, record(model=used, metrics={}))
    two = machine("two")
    assert collect_garbage(two) == (0, 0)
    now = two.mirror.remote.now()
    monkeypatch.setattr(type(two.mirror.remote), "now", lambda _: now + 4000)
    assert collect_garbage(two, dry_run=True) == (1, 6)
    assert machine("three").has(unused)
    assert collect_garbage(two) == (1, 6)
    four = machine("four")
    assert four.has(used)
    assert not four.has(unused)


def test_a_blob_that_was_collected_meanwhile_is_published_again(machine: Machine) -> None:
    digest = machine("one").put_bytes(b"weights")
    two = machine("two")
    two.mirror.remote.delete([f"blobs/{digest[:2]}/{digest}.safetensors"])
    machine("one").put_bytes(b"weights")
    assert machine("three").get_bytes(digest) == b"weights"
