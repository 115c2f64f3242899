"""Tasks of Dask on workers of this machine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ticketry.lab.lab import Lab

pytestmark = pytest.mark.timeout(240)


def _is_daemon() -> bool:
    return multiprocessing.current_process().daemon


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Lab]:
    pytest.importorskip("distributed", reason="Dask is not installed: pip install 'ticketry[dask]'")
    with Lab(tmp_path / "store", device="cpu", runner="dask:local,workers=1,memory=4GB") as lab:
        yield lab


def _client(lab: Lab) -> Any:
    runner: Any = lab._runner
    return runner._pool.client


def test_local_workers_give_equal_bits_and_may_start_processes(local: Lab, lab: Lab, digits: Any) -> None:
    """Workers start processes that read examples, and ranks."""
    segment = lab.segment(digits, start=0, last=9)
    assert local.train(segment).model == lab.train(segment).model
    assert _client(local).submit(_is_daemon, pure=False).result(timeout=60) is False


@pytest.mark.slow
def test_a_worker_that_replaces_a_lost_one_may_start_processes(local: Lab, lab: Lab, digits: Any) -> None:
    local.train(lab.segment(digits, start=0, last=9))
    _client(local).restart()
    assert _client(local).submit(_is_daemon, pure=False).result(timeout=60) is False
