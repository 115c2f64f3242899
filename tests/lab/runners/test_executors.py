"""Searches on executors of others, `tk.Lab(runner=executor)`: the bits of a search in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from lab.runners import elsewhere
from ticketry.lab.lab import Lab
from ticketry.lab.runners.events import Event

pytestmark = pytest.mark.timeout(500)


def _processes(folder: Path) -> Executor:
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"))


def _executorlib(folder: Path) -> Executor:
    """Processes that it starts one for each call; functions of one core need no MPI."""
    executorlib = pytest.importorskip("executorlib", reason="executorlib is not installed: pip install executorlib")
    return executorlib.SingleNodeExecutor(max_workers=2, hostname_localhost=True)


def _parsl(folder: Path) -> Executor:
    """Two worker processes of its executor for clusters, which it starts itself on this machine."""
    pytest.importorskip("parsl", reason="Parsl is not installed: pip install parsl")
    from parsl import Config, HighThroughputExecutor
    from parsl.concurrent import ParslPoolExecutor
    from parsl.providers import LocalProvider

    pool = HighThroughputExecutor(
        address="127.0.0.1",
        max_workers_per_node=2,
        encrypted=False,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    return ParslPoolExecutor(Config(executors=[pool], run_dir=str(folder / "parsl"), initialize_logging=False))


POOLS: dict[str, Callable[[Path], Executor]] = {
    "processes": _processes,
    "executorlib": _executorlib,
    "parsl": _parsl,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", POOLS)
def test_a_search_gives_the_same_bits(tmp_path: Path, lab: Lab, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where Parsl's programs are installed.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    events: list[Event] = []
    with (
        POOLS[kind](tmp_path) as pool,
        Lab(tmp_path / "other", device="cpu", on_event=events.append, runner=pool) as other,
    ):
        assert elsewhere.searched(other) == elsewhere.searched(lab)
        assert other.ledger.segments_trained == 6
        assert pool.submit(os.path.basename, "a/b").result() == "b", "it stays the user's"
    assert not any((tmp_path / "other" / "live").iterdir())
    assert {"started", "finished"} <= {event.kind for event in events}
