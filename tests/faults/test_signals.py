"""SIGTERM, SIGHUP and SIGQUIT to a command or to one of its workers: it stores what it trains, says so, and goes on."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from faults.searching import QUICK, ForkedSearch, Search, assert_same, searched_here

pytestmark = pytest.mark.skipif("coverage" in sys.modules, reason="coverage handles SIGTERM in its own way")

LONG = ("--recipe.length", "100000it", "--checkpoint-seconds", "0.5")


def told_to_end(search: Search, number: signal.Signals, to: str) -> None:
    """Send it once a network is being trained."""
    assert search.wait_for("partial/*.safetensors")
    time.sleep(0.3)
    if to == "group":
        os.killpg(search.process.pid, number)
    else:
        os.kill(search.process.pid if to == "command" else trainers(search)[0], number)


def trainers(search: Search) -> list[int]:
    """Its worker processes."""
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in search.workers()}
    return sorted(pid for pid, line in lines.items() if b"spawn_main" in line)


def ended_well(search: Search, number: signal.Signals, command: str = "search") -> str:
    """What it tells on standard error."""
    code, out, err = search.finish(timeout=60)
    assert (code, out) == (128 + number, ""), err
    assert "Traceback" not in err, err
    last = err.splitlines()[-1]
    assert ("interrupted" if number == signal.SIGINT else number.name) in last
    assert f"what was trained is stored, and the same command continues from there: ticketry {command}" in last
    return err


@pytest.mark.parametrize(
    ("number", "to", "workers"),
    [
        (signal.SIGTERM, "command", 0),
        pytest.param(signal.SIGHUP, "worker", 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "group", 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGQUIT, "command", 2, marks=pytest.mark.slow),
    ],
)
def test_what_is_trained_is_stored(tmp_path: Path, number: signal.Signals, to: str, workers: int) -> None:
    """Of trainings that would last for minutes."""
    store = tmp_path / "store"
    search = Search(store, *LONG, workers=workers) if workers else ForkedSearch(store, *LONG)
    told_to_end(search, number, to)
    told = re.findall(r"stored as it is: .* at step (\d+) of 100000", ended_well(search, number))
    assert 1 <= len(told) <= max(workers, 1)
    assert {path.stem.split("-")[1] for path in store.glob("partial/*.safetensors")} == set(told)


@pytest.mark.slow  # as after a kill, but for the signal
@pytest.mark.parametrize("to", ["worker", "command", "group"])
def test_it_goes_on_to_the_same(tmp_path: Path, undisturbed: dict[str, Any], to: str) -> None:
    search = Search(tmp_path / "store")
    told_to_end(search, signal.SIGTERM, to)
    ended_well(search, signal.SIGTERM)
    assert_same(searched_here(tmp_path / "store"), undisturbed)


@pytest.mark.slow
def test_nohup_stays_nohup(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    search = Search(tmp_path / "store", limit=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    told_to_end(search, signal.SIGHUP, "group")
    assert_same(search.result(), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
@pytest.mark.parametrize("to", ["command", "worker", "group"])
@pytest.mark.parametrize("name", ["search", "verify", "stability"])
def test_every_command_that_trains(
    tmp_path: Path, undisturbed: dict[str, Any], name: str, number: signal.Signals, to: str
) -> None:
    """Whatever else there is, benchmarks/kills.py --signal tries."""
    if to == "worker" and number == signal.SIGINT:
        pytest.skip("Ctrl-C is the command's")
    ticket = undisturbed["tickets"][0]["path"]
    words = {
        "search": QUICK,
        "verify": ("verify", ticket, "--seeds", "20", "--checkpoint-seconds", "0.05", "--json"),
        "stability": ("stability", *QUICK[1:4], *QUICK[8:], "--densities", "0.5,0.2", "--rewinds", "0,3%,10%"),
    }[name]
    search = Search(tmp_path / "store", quick=words)
    told_to_end(search, number, to)
    ended_well(search, number, name)
