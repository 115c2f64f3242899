"""Kernels are compiled once, kept in the cache, and made anew when the cache is damaged or cannot be written to."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from probes import Constant
from ticketry_engine.kernels import jit
from ticketry_engine.kernels.emitter import StateSlot
from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.target import Target, target
from ticketry_engine.support import files


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path))


def _result(address: int) -> int:
    """What a `Constant` at an address adds to 0."""
    place, state, op = np.zeros(1, np.int64), np.zeros(64, np.int64), np.zeros(1, np.int64)
    state[StateSlot.EXTERNAL] = place.ctypes.data
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(address)(state.ctypes.data, op.ctypes.data)
    return int(place[0])


def _results(library: Library, numbers: list[int]) -> list[int]:
    return [_result(address) for address in library.addresses([Constant(number) for number in numbers])]


def _files() -> list[Path]:
    return sorted(files.private_cache_folder("kernels").iterdir())


def test_each_kernel_is_compiled_once_and_found_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(target())
    assert _results(library, [3, 5, 3]) == [3, 5, 3]
    assert library.compiled == 2
    assert _results(library, [5, 7]) == [5, 7]
    assert library.compiled == 3
    assert len(_files()) == 3
    library = Library(target())
    assert _results(library, [3, 5, 9]) == [3, 5, 9]
    assert library.compiled == 1
    narrow = Library(Target("narrow", target().triple, target().cpu, target().features, lanes=4, registers=16))
    assert _results(narrow, [3]) == [3]
    assert narrow.compiled == 1, "of another target"
    monkeypatch.setattr(jit, "_source_digest", lambda: "others")
    library = Library(target())
    _results(library, [3])
    assert library.compiled == 1, "of another generator"


@pytest.mark.parametrize("damage", ["empty", "torn", "flipped", "renamed", "a folder"])
def test_a_damaged_object_is_made_anew(damage: str) -> None:
    _results(Library(target()), [3, 5])
    first, second = _files()
    data = bytearray(first.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    first.unlink()
    if damage == "a folder":
        first.mkdir()
    else:
        made = {"empty": b"", "torn": data[: len(data) // 2], "renamed": second.read_bytes()}
        first.write_bytes(made.get(damage, data))
    for compiled in (1, 1 if damage == "a folder" else 0):
        library = Library(target())
        assert _results(library, [3, 5]) == [3, 5]
        assert library.compiled == compiled


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_code_that_others_may_have_written_is_not_run() -> None:
    """A digest tells damage, and whoever writes a file there can make it agree."""
    assert _results(Library(target()), [3]) == [3]
    (file,) = _files()
    assert file.stat().st_mode & 0o077 == 0
    assert file.parent.stat().st_mode & 0o077 == 0
    file.chmod(0o666)
    library = Library(target())
    assert _results(library, [3]) == [3]
    assert library.compiled == 1
    assert file.stat().st_mode & 0o077 == 0, "it was made anew"


def test_a_cache_that_cannot_be_written_to_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path / "file"))
    library = Library(target())
    assert _results(library, [3]) == [3]
    assert library.compiled == 1


def test_a_full_disk_leaves_no_litter(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert _results(Library(target()), [3]) == [3]
    assert _files() == []


def _in_a_process(numbers: list[int]) -> list[int]:
    return _results(Library(target()), numbers)


def test_threads_and_processes_may_fill_one_cache_at_once() -> None:
    wanted = [list(range(6)) for _ in range(3)]
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(_in_a_process, wanted) == wanted
    library, wanted = Library(target()), [list(range(start, start + 6)) for start in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda numbers: _results(library, numbers), wanted)) == wanted
    assert library.compiled == 13 - 6


def test_a_kernel_that_is_no_valid_ir_is_told() -> None:
    @dataclass(frozen=True)
    class Wrong:
        def emit(self, name: str, target: Target) -> str:
            return f"define void @{name}(ptr %state, ptr %op) {{ nonsense }}"

    with pytest.raises(RuntimeError, match="LLVM"):
        Library(target()).addresses([Wrong()])
