"""Files are there whole or not at all, and what went wrong is told in words."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from ticketry.errors import StoreError
from ticketry.lab.store.files import read_json, write_atomically, write_json

ADVICE = {
    errno.ENOSPC: "no space is left there: free some",
    errno.EFBIG: "larger than the file system or a limit (ulimit -f) allows",
    errno.EACCES: "may not be written: choose another folder with --store",
    errno.EROFS: "may not be written, since the file system is read-only: choose another folder with --store",
    errno.EIO: os.strerror(errno.EIO),
    errno.ENAMETOOLONG: "its name is too long, or it is nested too deeply",
}


def failing(code: int):
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def everything(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_write_and_overwrite(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    for data in (b"one", b"", b"three" * 100_000):
        write_atomically(path, data)
        assert path.read_bytes() == data
        assert everything(tmp_path) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("code", ADVICE, ids=errno.errorcode.get)
def test_a_failed_write_is_told_and_leaves_the_old_file(tmp_path, monkeypatch, code):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    for call in ("fsync", "replace", "chmod"):
        monkeypatch.setattr(os, call, failing(code))
        with pytest.raises(StoreError) as caught:
            write_atomically(path, b"new")
        monkeypatch.undo()
        assert str(caught.value).startswith(f"cannot write {path}: ")
        assert ADVICE[code] in str(caught.value)
        assert path.read_bytes() == b"old"
        assert everything(tmp_path) == [path]


def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"new")
    assert everything(tmp_path) == []


def test_a_file_where_a_folder_is_needed(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        write_atomically(tmp_path / "file" / "inside", b"")


def test_json_round_trip(tmp_path):
    value = {"b": [1, 2.5, None, True], "a": {"ü": "\n"}, "c": 0.1 + 0.2}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert json.loads((tmp_path / "a.json").read_text()) == value
    write_json(tmp_path / "b.json", dict(reversed(value.items())))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_no_json_file(tmp_path):
    (tmp_path / "file").write_text("")
    assert read_json(tmp_path / "absent.json") is None
    assert read_json(tmp_path / "absent" / "a.json") is None
    assert read_json(tmp_path / "file" / "a.json") is None


@pytest.mark.parametrize("data", [b"", b'{"a": 1', b"[1]", b"null", b"\xff\xfe", b'{"a": 1}}'])
def test_damaged_json(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(StoreError, match=r"is damaged.*ticketry store check --repair"):
        read_json(tmp_path / "a.json")
