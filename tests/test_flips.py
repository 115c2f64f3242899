"""Flipped bits and damaged files: each is found, none is silently read wrong, and a repair leaves a sound store.

`benchmarks/bit_flips.py` flips many more.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flips import FILES, flip, make_store, nothing_is_wrong, trials
from ticketry.cli import main


def test_flipped_bits_are_found_and_repaired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, whole = make_store(tmp_path / "store"), tmp_path / "whole"
    shutil.copytree(store, whole)
    assert main(["store", "check", "--store", str(store)]) == 0
    for pattern in FILES:
        for path, position, bit in trials(store, pattern, count=1, seed=0):
            before = flip(path, position, bit)
            assert nothing_is_wrong(store, path), (path, position, bit)
            capsys.readouterr()
            assert main(["store", "check", "--store", str(store)]) == 1, (path, position, bit)
            printed = capsys.readouterr()
            assert str(path if "tickets" not in path.parts else path.parent) in printed.out + printed.err
            path.write_bytes(before)
    for number, pattern in enumerate(FILES):
        store = shutil.copytree(whole, tmp_path / str(number))
        flip(*next(trials(store, pattern, count=1, seed=1)))
        assert main(["store", "check", "--repair", "--store", str(store)]) == 0
        assert "damaged" in capsys.readouterr().out
        assert main(["store", "check", "--store", str(store)]) == 0, (pattern, capsys.readouterr().out)
        assert any((store / "damaged").rglob("*")), "nothing is deleted"


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("fuzz_readers.py", "--inputs", "300"), marks=pytest.mark.slow),
        pytest.param(("fuzz_files.py", "--inputs", "8"), marks=pytest.mark.slow),
        pytest.param(("repairs.py", "--flips", "12", "--folder", "work"), marks=pytest.mark.slow),
    ],
    ids=lambda words: words[0],
)
def test_fuzzers_find_nothing(tmp_path: Path, words: tuple[str, ...]) -> None:
    """In a separate process, whose memory is limited."""
    script = Path(__file__).parents[1] / "benchmarks" / words[0]
    command = [sys.executable, str(script), *words[1:], "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
