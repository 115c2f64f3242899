"""Kill -9 and Ctrl-C: a search goes on from where it was, and finds the same."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from faults.searching import (
    QUICK,
    SMALL,
    ForkedSearch,
    Search,
    assert_same,
    control,
    finished_results,
    language,
    searched_here,
)


def test_search_continues_after_kill_9(tmp_path: Path) -> None:
    store = tmp_path / "store"
    undisturbed = searched_here(tmp_path / "undisturbed", quick=SMALL)  # and all is imported, also for the fork
    search = ForkedSearch(store, quick=SMALL)
    assert search.wait_for("partial/*.safetensors"), "it ended before it could be killed"
    search.kill_all()
    assert search.finish()[0] == -signal.SIGKILL
    finished = finished_results(store)
    result = searched_here(store, quick=SMALL)
    assert finished.items() <= finished_results(store).items(), "a finished segment was trained, or written, again"
    assert_same(result, undisturbed)


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    killed_at_random(tmp_path, 20, "--levels", "3", "--recipe.length", "1000it")


CARRYING = [language, control]


@pytest.mark.slow
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
    result = searched_here(store, quick=quick)
    assert_same(result, searched_here(tmp_path / "undisturbed", quick=quick))


@pytest.mark.slow
@pytest.mark.parametrize("kind", CARRYING)
def test_kill_9_ten_times_where_more_than_weights_is_carried(tmp_path: Path, kind: Callable[..., list[str]]) -> None:
    if kind is control:
        pytest.importorskip("gymnasium")
    killed_at_random(tmp_path, 10, quick=kind(tmp_path, updates=600, replicates=2))


def killed_at_random(tmp_path: Path, moments: int, *long: str, quick: Sequence[str] = QUICK) -> None:
    """Kill a search so often, continue each time, and compare with an undisturbed one."""
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
    assert killed > moments / 2
    assert_same(result, searched_here(tmp_path / "undisturbed", *long, quick=quick))


@pytest.mark.slow
def test_killed_search_does_not_block_another(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    store = tmp_path / "store"
    first = Search(store, workers=1)
    assert first.wait_for("partial/*.safetensors")  # it trains, so it holds a lock
    second = Search(store, workers=0)
    time.sleep(3)
    first.kill_all()
    first.finish()
    assert_same(second.result(), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
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
    assert_same(searched_here(store), undisturbed)
