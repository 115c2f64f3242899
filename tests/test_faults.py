"""Faults that a search survives: kill -9, a rival process, damage, a full or read-only disk, NaN, Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from faults import QUICK, Search, control, finished_results, language, metrics, ticket_files

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals and mounts are tested on Linux"),
    pytest.mark.xdist_group("faults"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return Search(tmp_path_factory.mktemp("undisturbed") / "store").result()


def assert_same(result: dict[str, Any], undisturbed: dict[str, Any]) -> None:
    assert ticket_files(result) == ticket_files(undisturbed)
    assert metrics(result) == metrics(undisturbed)


@pytest.mark.parametrize("moments", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments(tmp_path: Path, moments: int) -> None:
    killed_at_random(tmp_path, moments, "--levels", "3", "--recipe.length", f"{500 + 25 * moments}it")


CARRYING = [language, control]


@pytest.mark.parametrize("kind", CARRYING)
def test_kill_9_where_more_than_weights_is_carried(tmp_path: Path, kind: Callable[..., list[str]]) -> None:
    """Once, in the middle of a training, with what it has carried so far."""
    if kind is control:
        pytest.importorskip("gymnasium")
    updates = 800 if kind is control else 120  # a fast machine has done 120 of control's before it is looked at
    quick, store = kind(tmp_path, updates=updates, replicates=1), tmp_path / "store"
    search = Search(store, quick=quick, workers=0)
    assert search.wait_for("partial/*.safetensors"), "it ended before it could be killed"
    search.kill_all()
    assert search.finish()[0] == -signal.SIGKILL
    (partial,) = store.glob("partial/*.safetensors")
    with safe_open(partial, "pt") as tensors:
        assert any("session/" in name for name in tensors.keys())  # noqa: SIM118
    result = Search(store, quick=quick, workers=0).result()
    assert_same(result, Search(tmp_path / "undisturbed", quick=quick, workers=0).result())


@pytest.mark.slow
@pytest.mark.parametrize("kind", CARRYING)
def test_kill_9_ten_times_where_more_than_weights_is_carried(tmp_path: Path, kind: Callable[..., list[str]]) -> None:
    if kind is control:
        pytest.importorskip("gymnasium")
    killed_at_random(tmp_path, 10, quick=kind(tmp_path, updates=600, replicates=2))


def killed_at_random(tmp_path: Path, moments: int, *long: str, quick: Sequence[str] = QUICK) -> None:
    """Kill a search so often, go on each time, and compare with one that nobody killed."""
    store, chance = tmp_path / "store", random.Random(moments)
    finished: dict[str, tuple[int, int]] = {}
    killed = 0
    for attempt in range(moments):
        search = Search(store, *long, quick=quick)
        # A moment of the search, not of Python's start: once its workers are there.
        while search.process.poll() is None and not search.workers():
            time.sleep(0.01)
        time.sleep(chance.uniform(0.3, 2.0))
        running = search.process.poll() is None
        killed += running
        if attempt % 2 and running:
            os.kill(search.process.pid, signal.SIGKILL)  # its workers have to end by themselves
            end = time.monotonic() + 20
            while search.workers() and time.monotonic() < end:
                time.sleep(0.05)
            assert not search.workers(), "workers outlive the search"
        search.kill_all()
        search.finish()
        now = finished_results(store)
        assert finished.items() <= now.items(), "a finished segment was trained, or written, again"
        finished = now
    result = Search(store, *long, quick=quick).result()
    assert finished.items() <= finished_results(store).items()
    assert killed >= 0.75 * moments
    assert_same(result, Search(tmp_path / "undisturbed", *long, quick=quick).result())


def test_two_searches_on_one_store(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    rivals = [Search(tmp_path / "store") for _ in range(2)]
    results = [rival.result() for rival in rivals]
    for result in results:
        assert_same(result, undisturbed)
    steps = [result["now"]["steps_trained"] for result in results]
    assert sum(steps) == undisturbed["now"]["steps_trained"], steps


def test_a_killed_rival_does_not_block(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    store = tmp_path / "store"
    first = Search(store, workers=1)
    assert first.wait_for("partial/*.safetensors")  # it trains, so it holds a lock
    second = Search(store)
    time.sleep(3)
    first.kill_all()
    first.finish()
    assert_same(second.result(), undisturbed)


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_ctrl_c(tmp_path: Path, undisturbed: dict[str, Any], workers: int) -> None:
    store = tmp_path / "store"
    search = Search(store, workers=workers)
    assert search.wait_for("partial/*.safetensors")
    os.kill(search.process.pid, signal.SIGINT)
    code, out, err = search.finish(timeout=60)
    assert code == 130, err
    assert out == ""
    assert err.splitlines()[-1].startswith("ticketry: interrupted; what was trained is stored")
    assert "Traceback" not in err
    assert_same(Search(store).result(), undisturbed)


def test_flipped_byte(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    store = tmp_path / "store"
    folder = Path(Search(store).result()["report"]).parent
    points = json.loads((folder / "run.json").read_text())["points"]
    trajectory, _, step = next(point["key"] for point in points if point["role"] == "ticket").partition("@")
    record = json.loads(next(store.glob(f"results/*/{trajectory}/{step}.json")).read_text())
    (victim,) = store.glob(f"blobs/*/{record['model']}.safetensors")
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    assert Search(store).finish()[0] == 0, "what does not need the file goes on"
    shutil.rmtree(folder / "tickets")  # now it is needed, to write the tickets again
    code, _, err = Search(store).finish()
    assert code == 1
    assert "do not match its digest" in err
    assert "ticketry store check --repair" in err
    assert "Traceback" not in err
    assert _ticketry("store", "check", "--store", str(store)).returncode == 1
    assert _ticketry("store", "check", "--repair", "--store", str(store)).returncode == 0
    assert _ticketry("store", "check", "--store", str(store)).returncode == 0
    assert_same(Search(store).result(), undisturbed)


def test_full_disk(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    with _small_disk(tmp_path, "3m") as disk:
        code, _, err = Search(disk / "store").finish()
        assert code == 1
        assert "no space is left there" in err
        assert "Traceback" not in err
        assert not list(disk.glob("**/.*.tmp")), "a failed write leaves nothing behind"
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        assert _ticketry("store", "check", "--store", str(disk / "store")).returncode == 0
        assert_same(Search(disk / "store").result(), undisturbed)


@pytest.mark.slow  # as a full disk, by another error
def test_quota(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """A limit on the size of a file stands for a quota; needs no rights."""
    limit = 100_000
    search = Search(
        tmp_path / "store", limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)), workers=0
    )
    code, _, err = search.finish()
    assert code == 1
    assert "no space is left there" in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("**/.*.tmp"))
    assert_same(Search(tmp_path / "store").result(), undisturbed)


def test_read_only_store(tmp_path: Path) -> None:
    with _small_disk(tmp_path, "100m") as disk:
        Search(disk / "store").result()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        code, _, err = Search(disk / "store", "--seed", "7").finish()
        assert code == 1
        assert "may not be written" in err
        assert "--store" in err
        assert "Traceback" not in err
        code, _, err = Search(disk / "new").finish()
        assert (code, "may not be written" in err) == (1, True)
        assert _ticketry("list", "runs", "--store", str(disk / "store")).returncode == 0


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--densities", "0"), 2, "0 < density <= 1"),
        (("--densities", "1.5"), 2, "0 < density <= 1"),
        (("--densities", "0.00005"), 1, "layer collapse"),
        (("--recipe.lr", "1e30"), 2, "lr must lie in"),
        (("--recipe.lr", "1e6", "--recipe.optimizer", "sgd"), 1, "the loss is nan"),
        (("--recipe.lr", "much"), 2, "--recipe.lr"),
        (("--task", "sudoku"), 1, "there is no task 'sudoku'"),
        (("--rewind", "soon"), 2, "500it, 2ep, 3%"),
        (("--model", "gpt"), 1, "gpt"),
        (("--controls", "placebo"), 2, "placebo"),
        (("--colour", "red"), 2, "colour"),
        (("--task", "mnist", "--data", "/nowhere"), 1, "/nowhere"),
        (("--config", "/nowhere/run.toml"), 2, "cannot be read"),
    ],
)
def test_bad_input_is_told_in_words(tmp_path: Path, words: tuple[str, ...], code: int, told: str) -> None:
    store = tmp_path / "store"
    found, out, err = Search(store, *words, workers=0).finish()
    assert (found, out) == (code, "")
    assert told in err
    assert "Traceback" not in err
    if store.exists():
        assert _ticketry("store", "check", "--store", str(store)).returncode == 0


def _ticketry(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ticketry", *words], capture_output=True, text=True, timeout=120)


@contextlib.contextmanager
def _small_disk(tmp_path: Path, size: str) -> Iterator[Path]:
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
