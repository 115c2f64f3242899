"""Copying a store: what the other lacks, once, and records that name the new place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from ticketry.errors import StoreError
from ticketry.experiments.stores import copy_store
from ticketry.lab.store import store as store_module
from ticketry.lab.store.files import read_with_digest, write_with_digest
from ticketry.lab.store.maintenance import collect_garbage
from ticketry.lab.store.objects import SharedFolder
from ticketry.lab.store.store import open_existing_store, open_store

KEY = "ab" * 32


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with a result, its weights and a run."""
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store_module, "_mirrors", {})  # which later commands of this process would publish
    folder = tmp_path / "origin"
    store = open_store(folder)
    digest = store.put_bytes(b"weights")
    store.put_result(KEY, 3, {"model": digest, "metrics": {}})
    ticket = store.paths.run("a-run") / "tickets" / "level-01"
    ticket.mkdir(parents=True)
    (ticket / "ticket.json").write_text("{}")
    write_with_digest(store.paths.run("a-run") / "run.json", {"store": str(folder), "ticket": str(ticket)})
    return str(folder)


def test_there_and_back_by_a_shared_store(origin: str, tmp_path: Path) -> None:
    shared, back = f"file://{tmp_path}/shared", str(tmp_path / "back")
    first = copy_store(origin, shared)
    assert (first.files, first.known) == (4, 0)
    assert copy_store(origin, shared).files == 0
    assert copy_store(origin, shared).known == 4
    assert copy_store(shared, back).files == 4
    told = read_with_digest(Path(back) / "runs" / "a-run" / "run.json")
    assert told == {"store": back, "ticket": f"{back}/runs/a-run/tickets/level-01"}
    digest = (open_store(back).load_result(KEY, 3) or {})["model"]
    assert open_store(back).get_bytes(digest) == b"weights"
    seen = open_existing_store(shared)
    assert seen is not None
    found = read_with_digest(seen.paths.run("a-run") / "run.json")
    assert found == {"store": shared, "ticket": str(seen.paths.run("a-run") / "tickets" / "level-01")}


def test_a_run_file_that_was_changed_is_told(origin: str, tmp_path: Path) -> None:
    """As `store check` does: it would repeat another run than the one that it lies beside."""
    run = Path(origin) / "runs" / "a-run"
    write_with_digest(run / "run.json", {"store": origin, "config": "method = 'oneshot'\n"})
    (run / "run.toml").write_text("method = 'oneshot'\n")
    assert copy_store(origin, str(tmp_path / "one")).files == 5
    (run / "run.toml").write_text("method = 'early'\n")
    with pytest.raises(StoreError, match=r"runs/a-run/run\.toml is damaged: .*store check --repair"):
        copy_store(origin, str(tmp_path / "other"))


@pytest.mark.parametrize("recorded", [True, False])
def test_what_is_there_stays_whole(origin: str, tmp_path: Path, recorded: bool) -> None:
    for name, more in (("origin", "here"), ("target", "there")):
        store = open_store(tmp_path / name)
        ticket = store.paths.run("a-run") / "tickets" / "level-01"
        ticket.mkdir(parents=True, exist_ok=True)
        (ticket / "model.safetensors").write_text(f"weights of {more}")
        (store.paths.run("a-run") / "report.html").write_text(more)
        (store.paths.run("a-run") / f"of-{more}.txt").write_text(more)
        if recorded or name == "origin":
            write_with_digest(store.paths.run("a-run") / "run.json", {"store": "", "of": more})
        campaigns = store.paths.campaign("small-demo")
        campaigns.parent.mkdir()
        write_with_digest(campaigns, {"of": more})
        campaigns.with_suffix(".html").write_text(more)
    target = tmp_path / "target"
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    copied = copy_store(origin, str(target))
    after = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before
    assert {path.relative_to(target).parts[0] for path in after.keys() - before.keys()} <= {"blobs", "results", "memo"}
    assert copied.known >= 5


def test_a_copy_that_was_ended_goes_on(origin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, real, left = str(tmp_path / "target"), SharedFolder.put, [2]

    def ended(self: SharedFolder, *more: Any) -> str:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(self, *more)

    monkeypatch.setattr(SharedFolder, "put", ended)
    with pytest.raises(KeyboardInterrupt):
        copy_store(origin, target)
    monkeypatch.undo()
    assert not (Path(target) / "runs" / "a-run" / "run.json").exists()
    done = copy_store(origin, target)
    assert (done.files, done.known) == (2, 2)


def test_what_is_damaged_is_not_copied(tmp_path: Path) -> None:
    mask = tk.Mask({"w": torch.ones(3, dtype=torch.bool)})
    ticket = tk.Ticket(mask, {"w": torch.ones(3)}, {}, trained={"w": torch.ones(3)})
    origin = open_store(tmp_path / "origin").paths
    folder = ticket.save(origin.run("a-run") / "tickets" / "level-01")
    assert copy_store(str(origin.root), str(tmp_path / "sound")).files == 4
    blob = open_store(tmp_path / "origin").put_bytes(b"weights")
    (path,) = origin.root.glob(f"blobs/*/{blob}*")
    path.write_bytes(b"weighty")
    with pytest.raises(StoreError, match="do not match"):
        copy_store(str(origin.root), str(tmp_path / "target"))
    assert not list((tmp_path / "target").glob("blobs/*/*"))
    path.unlink()
    for name in ("mask", "start", "model"):
        path = folder / f"{name}.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(StoreError, match=rf"level-01/{name}\.safetensors is damaged"):
            copy_store(str(origin.root), str(tmp_path / name))
        path.write_bytes(data)


@pytest.mark.parametrize("described", ['{"format": 1, "kind": "ticketry.store"}', '{"format": 99}', "[]", "half"])
def test_a_store_of_another_format_is_not_copied(origin: str, tmp_path: Path, described: str) -> None:
    """It would stand there under the number of this one."""
    (Path(origin) / "store.json").write_text(described)
    with pytest.raises(StoreError, match=r"has the store format .*, this ticketry copies 2"):
        copy_store(origin, str(tmp_path / "target"))
    assert not (tmp_path / "target").exists()


def test_nothing_is_deleted_while_it_is_copied(origin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, told = open_store(tmp_path / "target"), []

    def get(folder: SharedFolder, name: str, **more: Any) -> bytes | None:
        if folder.root == Path(origin) and name != "store.json":
            with pytest.raises(StoreError, match="free space when it has ended"):
                collect_garbage(target, grace_seconds=0)
            told.append(name)
        return real(folder, name, **more)

    real = SharedFolder.get
    monkeypatch.setattr(SharedFolder, "get", get)
    copy_store(origin, str(tmp_path / "target"))
    assert told
    collect_garbage(target, grace_seconds=0)


def test_no_store_and_the_same_store(origin: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store at"):
        copy_store(str(tmp_path / "absent"), str(tmp_path / "target"))
    assert not (tmp_path / "target").exists()
    with pytest.raises(StoreError, match="very store"):
        copy_store(origin, origin)
