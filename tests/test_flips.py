"""Bits flipped in every file of a store, in tickets and model files: none is silently wrong, each is found and mended.

A sample of what `benchmarks/bit_flips.py` does by thousands.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flips import FILES, flip, made, nothing_is_wrong, trials
from ticketry.cli import main


@pytest.mark.parametrize("pattern", FILES)
def test_a_flipped_bit_is_found_and_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str], pattern: str) -> None:
    store = made(tmp_path / "store")
    assert main(["store", "check", "--store", str(store)]) == 0
    for path, position, bit in trials(store, pattern, count=6, seed=0):
        before = flip(path, position, bit)
        assert nothing_is_wrong(store, path), (path, position, bit)
        assert main(["store", "check", "--store", str(store)]) == 1, (
            f"bit {bit} of byte {position} of {path} is not found"
        )
        told = capsys.readouterr()
        assert str(path if "tickets" not in path.parts else path.parent) in told.out + told.err
        path.write_bytes(before)


def test_repairing_leaves_a_sound_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, pattern in enumerate(FILES):
        store = made(tmp_path / str(number))
        ((path, position, bit),) = trials(store, pattern, count=1, seed=1)
        flip(path, position, bit)
        assert main(["store", "check", "--repair", "--store", str(store)]) == 0
        assert "damaged" in capsys.readouterr().out
        assert main(["store", "check", "--store", str(store)]) == 0, (path, capsys.readouterr().out)
        assert any((store / "damaged").rglob("*")), "nothing is deleted"


@pytest.mark.parametrize(
    "words",
    [("fuzz_readers.py", "--inputs", "1150"), pytest.param(("fuzz_files.py", "--inputs", "8"), marks=pytest.mark.slow)],
)
def test_files_changed_in_every_way_end_in_words(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A sample of what the fuzzers do by thousands; a process of its own has a limit of memory."""
    script = Path(__file__).parents[1] / "benchmarks" / words[0]
    command = [sys.executable, str(script), *words[1:], "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_commands_after_a_repair_give_what_they_gave(tmp_path: Path) -> None:
    """One flip in each kind of file that a search and a verification leave."""
    script = Path(__file__).parents[1] / "benchmarks" / "repairs.py"
    command = [sys.executable, str(script), "--flips", "12", "--seed", "1", "--folder", str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
