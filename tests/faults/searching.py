"""Real searches in real processes, to be killed, starved and damaged."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from a_text import write_text_file
from cli.calling import printed
from forked import Fork
from ticketry.cli import main

ITERATIVE, HOW_FAR = ("search", "iterative", "--task", "digits"), ("--rate", "0.5", "--levels", "2")
QUICK = [
    *(*ITERATIVE, *HOW_FAR, "--rewind", "10%"),
    *("--replicates", "2", "--controls", "shuffled", "random_reinit", "--recipe.length", "300it"),
    *("--checkpoint-seconds", "0.05", "--json"),
]
"""14 networks, a few seconds of training in all."""
SMALL = [
    *(*ITERATIVE, "--rate", "0.5", "--levels", "1", "--rewind", "10%", "--replicates", "1", "--controls", "shuffled"),
    *("--recipe.length", "200it", "--checkpoint-seconds", "0.01", "--json"),
]
"""Three networks."""


def language(folder: Path, *, updates: int, replicates: int) -> list[str]:
    """Gradual pruning of a language model that carries hidden states: through checkpoints, cuts and stored states.

    Its text is written to `folder`.
    """
    return [
        *("search", "gradual", "--task", f"text:{write_text_file(folder)}", "--model", "lstm-tied@0.1"),
        *("--option", "time=8"),
        *("--recipe.batch", "4", "--recipe.optimizer", "adam", "--recipe.lr", "0.003", "--recipe.clip", "1"),
        *_cut_gradually(updates, replicates),
    ]


def control(folder: Path, *, updates: int, replicates: int) -> list[str]:
    """A search with deep Q-learning: memory, target network, environments and exploration go through all of it.

    Nothing is written to `folder`.
    """
    return [
        *("search", "gradual", "--task", "cartpole", "--model", "mlp-24-24", "--recipe.batch", "16"),
        *("--option", "copies=4", "warmup=200", "memory=1000", "period=20"),
        *_cut_gradually(updates, replicates),
    ]


def _cut_gradually(updates: int, replicates: int) -> list[str]:
    return [
        *("--density", "0.5,0.25", "--replicates", str(replicates), "--controls", "shuffled"),
        *("--recipe.length", f"{updates}it", "--checkpoint-seconds", "0.05", "--json"),
    ]


class Search:
    """A search in a separate process."""

    process: Any

    def __init__(
        self, store: Path, *words: str, workers: int = 2, limit: Any = None, quick: Sequence[str] = QUICK
    ) -> None:
        command = [sys.executable, "-m", "ticketry", *quick, "--store", str(store), "--workers", str(workers), *words]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=limit,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.store = store

    def finish(self, timeout: float = 240) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        finally:
            self.kill_all()
        return self.process.returncode, out, err

    def result(self) -> dict[str, Any]:
        """The JSON of a search that must succeed."""
        code, out, err = self.finish()
        assert code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    def wait_for(self, pattern: str, timeout: float = 60) -> bool:
        """Wait until a file of this form is in the store; False if the search ended before."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if any(self.store.glob(pattern)):
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.01)
        raise AssertionError(f"no {pattern} after {timeout} s")

    def workers(self) -> list[int]:
        """Process numbers of the search's session, itself not included."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != self.process.pid:
                try:
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[3]) == self.process.pid and fields[0] != "Z":
                    found.append(int(folder.name))
        return found

    def kill_all(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


class ForkedSearch(Search):
    """A search in a fork of this process, which has imported everything; it trains without workers."""

    def __init__(self, store: Path, *words: str, quick: Sequence[str] = QUICK) -> None:
        self.store = store
        words = (*quick, "--store", str(store), "--workers", "0", *words)
        self.process = Fork(store.parent, self._call, [*words])

    @staticmethod
    def _call(words: list[str]) -> int:
        sys.argv = ["ticketry", *words]
        return main(words)


def searched_here(store: Path, *words: str, quick: Sequence[str] = QUICK) -> dict[str, Any]:
    """The JSON of a search in this process, which nothing disturbs: so it needs no checkpoints."""
    undisturbed = ("--store", str(store), "--workers", "0", "--checkpoint-seconds", "60")
    found: dict[str, Any] = json.loads(printed(*quick, *undisturbed, *words))
    return found


def assert_same(result: dict[str, Any], undisturbed: dict[str, Any]) -> None:
    """Tickets to the last byte, and every network's metrics."""
    assert ticket_files(result) == ticket_files(undisturbed)
    assert metrics(result) == metrics(undisturbed)


def finished_results(store: Path) -> dict[str, tuple[int, int]]:
    """Every stored result with what changes if it is written again."""
    return {
        str(path.relative_to(store)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in store.glob("results/*/*/*.json")
    }


def ticket_files(result: dict[str, Any]) -> dict[str, bytes]:
    """Every file of every ticket, by ticket and name."""
    return {
        f"{Path(ticket['path']).name}/{path.name}": path.read_bytes()
        for ticket in result["tickets"]
        for path in Path(ticket["path"]).iterdir()
    }


def metrics(result: dict[str, Any]) -> list[tuple[int, int, str, dict[str, float], dict[str, float]]]:
    """Every network's metrics, from the run's record."""
    record = json.loads((Path(result["report"]).parent / "run.json").read_text())
    return [
        (point["replicate"], point["level"], point["role"], point["validation"], point["test"])
        for point in record["points"]
    ]


@contextlib.contextmanager
def small_disk(tmp_path: Path, size: str) -> Iterator[Path]:
    """A tmpfs of this size in a test's folder; a test without the right to mount one is skipped."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs rights that are not to be had here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
