"""Tasks of Dask on workers of this machine."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from ticketry.lab.lab import Lab

distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install 'ticketry[dask]'")

LOCAL = "dask:local,workers=1,memory=4GB"


def test_tasks_give_equal_bits(tmp_path: Path, lab: Lab, digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In threads of this process; tests/lab/runners/test_schedulers.py has worker processes."""
    start = distributed.LocalCluster
    monkeypatch.setattr(distributed, "LocalCluster", lambda **named: start(**{**named, "processes": False}))
    segment = lab.segment(digits, start=0, last=9)
    with Lab(tmp_path / "dask", device="cpu", runner=LOCAL) as other:
        assert other.train(segment).model == lab.train(segment).model


def _is_daemon() -> bool:
    return multiprocessing.current_process().daemon


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_workers_may_start_processes(tmp_path: Path, digits: Any) -> None:
    """They start readers of examples, and ranks; so does a worker that replaces a lost one."""
    with Lab(tmp_path / "store", device="cpu", runner=LOCAL) as lab:
        lab.train(lab.segment(digits, start=0, last=9))
        runner: Any = lab._runner
        client = runner._pool.client
        for _ in range(2):
            assert client.submit(_is_daemon, pure=False).result(timeout=60) is False
            client.restart()
