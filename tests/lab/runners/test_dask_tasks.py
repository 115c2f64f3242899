"""Tasks of Dask on workers of this machine."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from ticketry.lab.lab import Lab

pytestmark = pytest.mark.timeout(240)


def _is_daemon() -> bool:
    return multiprocessing.current_process().daemon


def test_local_workers_give_equal_bits_and_may_start_processes(tmp_path: Path, lab: Lab, digits: Any) -> None:
    """Processes that read examples, and ranks, are started by workers; also by one that replaces a lost one."""
    pytest.importorskip("distributed", reason="Dask is not installed: pip install 'ticketry[dask]'")
    import dask

    segment = lab.segment(digits, start=0, last=9)
    with Lab(tmp_path / "store", device="cpu", runner="dask:local,workers=1,memory=4GB") as other:
        assert other.train(segment).model == lab.train(segment).model
        runner: Any = other._runner
        client = runner._pool.client
        client.restart()
        assert client.submit(_is_daemon, pure=False).result(timeout=60) is False
    assert dask.config.get("distributed.worker.daemon")
