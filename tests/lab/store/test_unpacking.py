"""Unpacking that was ended, and records that would block a store or swell: see `test_bundles` for the rest."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from flips import make_store, repacked
from ticketry.errors import StoreError
from ticketry.lab.store import bundle as bundle_module
from ticketry.lab.store import packing
from ticketry.lab.store.bundle import Bundle, Source, write_bundle
from ticketry.lab.store.files import bytes_with_digest, parse_canonical_record, read_with_digest
from ticketry.lab.store.maintenance import check, collect_garbage
from ticketry.lab.store.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one of everything."""
    return make_store(tmp_path_factory.mktemp("unpacking") / "store", page=False)


def record_of(store: Path) -> dict[str, Any]:
    return read_with_digest(next(store.glob("runs/*/run.json"))) or {}


def bundle_of(path: Path, name: str, data: bytes) -> Path:
    """A bundle of a run's record alone, whatever it is."""
    write_bundle(path, [Source("run", (name,), lambda: data)], store=2, numerics=1, weights=False, runs=[name])
    return path


def test_half_of_a_letter_is_refused_before_anything_is_written(store: Path, tmp_path: Path) -> None:
    """Its record could be written nowhere, and stopped every command that reads it."""
    record = record_of(store)
    bundle = bundle_of(tmp_path / "x.tkz", record["run"], bytes_with_digest({**record, "title": "half \udfff"}))
    with pytest.raises(StoreError, match="is damaged or forged: it is not a record"):
        tk.store.unpack(bundle, store=tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_whole_letters_are_no_halves(store: Path, tmp_path: Path) -> None:
    """JSON writes those beyond 16 bits as two halves."""
    record = {**record_of(store), "title": "\U0001f3ab and \\ud800"}
    assert parse_canonical_record(bytes_with_digest(record), "it") == record
    tk.store.unpack(bundle_of(tmp_path / "x.tkz", record["run"], bytes_with_digest(record)), store=tmp_path / "mine")
    assert record_of(tmp_path / "mine") == record


@pytest.mark.parametrize("doomed", ["run.json", "run.toml"])
def test_ended_beside_a_run_it_goes_on_to_the_same(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doomed: str
) -> None:
    bundle = tk.store.pack((), tmp_path / "all.tkz", store=store).path
    tk.store.unpack(bundle, store=tmp_path / "whole")
    write = packing.write_atomically

    def dying(path: Path, data: bytes) -> None:
        if path.name == doomed:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(packing, "write_atomically", dying)
    with pytest.raises(KeyboardInterrupt):
        tk.store.unpack(bundle, store=tmp_path / "mine")
    assert not list((tmp_path / "mine").glob("runs/*/run.json"))
    monkeypatch.undo()
    tk.store.unpack(bundle, store=tmp_path / "mine")
    mine, whole = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*.*")}
        for root in (tmp_path / "mine", tmp_path / "whole")
    )
    assert mine == whole


def test_nothing_is_deleted_while_it_is_unpacked(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old tensors that nothing names yet, as after an unpacking that was ended, are young once they are looked at."""
    bundle, mine = tk.store.pack((), tmp_path / "all.tkz", store=store, weights=True).path, Store(tmp_path / "mine")
    with Bundle(bundle) as opened:
        for part, data in opened.parts():
            if part.kind == "blob":
                mine.put_bytes(data)
    blobs = list(mine.paths.blob_files())
    for path in blobs:
        os.utime(path, (0, 0))
    write, told = packing.write_atomically, []

    def meanwhile(path: Path, data: bytes) -> None:
        with pytest.raises(StoreError, match="something is being trained"):
            collect_garbage(mine, grace_seconds=0)
        told.append(path)
        write(path, data)

    monkeypatch.setattr(packing, "write_atomically", meanwhile)
    tk.store.unpack(bundle, store=mine.paths.root)
    assert told
    assert blobs
    assert min(path.stat().st_mtime for path in blobs) > 0, "a gc that began before leaves them"
    assert check(mine).is_undamaged


def test_the_file_of_a_run_that_is_missing_is_written(store: Path, tmp_path: Path) -> None:
    """Not of another run of that name, whose record stays."""
    bundle = tk.store.pack((), tmp_path / "all.tkz", store=store).path
    tk.store.unpack(bundle, store=tmp_path / "mine")
    file = next((tmp_path / "mine").glob("runs/*/run.toml"))
    told = file.read_bytes()
    file.unlink()
    assert tk.store.unpack(bundle, store=tmp_path / "mine").new == 0
    assert file.read_bytes() == told
    file.unlink()
    file.with_name("run.json").write_bytes(bytes_with_digest({**record_of(store), "title": "mine"}))
    tk.store.unpack(bundle, store=tmp_path / "mine")
    assert not file.exists()


def test_lists_that_swell_are_refused_before_they_are_made(store: Path, tmp_path: Path) -> None:
    """5 MB of empty lists in 5 KB, of which Python makes 100 MB."""
    bundle, data = tk.store.pack((), tmp_path / "all.tkz", store=store).path, b'{"a":[' + b"[]," * 1_700_000 + b"[]]}"
    swollen, sha256 = zlib.compress(data), hashlib.sha256(data).hexdigest()
    part = {"kind": "run", "name": ["x"], "size": len(data), "packed": len(swollen), "sha256": sha256, "coding": "zlib"}
    repacked(bundle, lambda told: told["parts"].append(part), swollen)
    with pytest.raises(StoreError, match="x would take more than 4 MB once unpacked"):
        tk.store.unpack(bundle, store=tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_a_record_that_compresses_too_well_is_packed_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "_PLAIN_RECORD", 1 << 12)
    data = json.dumps({"a": [0.5] * 1_000}).encode()
    with Bundle(bundle_of(tmp_path / "x.tkz", "x", data)) as opened:
        assert [part.coding for part in opened.contents.parts] == ["whole"]
        assert [found for _, found in opened.parts()] == [data]
