"""A node of Ray that vanishes: all its processes stop at once, nothing is closed, nobody is told. As a machine without
power, or one that its cloud has taken back."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lab.runners import elsewhere
from ticketry.lab.lab import Lab
from ticketry.lab.runners.runner import Event
from ticketry.lab.store.maintenance import check

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SOON = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
"""When Ray takes a node for dead: after some seconds in place of half a minute."""


class Nodes:
    """A head without cores, where the search itself is, and nodes of one core with caches of their own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from ray.cluster_utils import Cluster

        self._folder, self._monkeypatch, self._caches = folder, monkeypatch, 0
        head = {"num_cpus": 0, "object_store_memory": 80 << 20, "_system_config": SOON}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.stopped: list[int] = []

    def add(self) -> Any:
        """A node; its workers inherit the environment in which it begins."""
        self._caches += 1
        with self._monkeypatch.context() as patch:
            patch.setenv("TICKETRY_CACHE", str(self._folder / f"node-{self._caches}"))
            return self.cluster.add_node(num_cpus=1, object_store_memory=80 << 20)

    def vanish(self, node: Any) -> None:
        """Every process of it, and what these have started."""
        mine = [info.process.pid for infos in node.all_processes.values() for info in infos]
        self.stopped = [*mine, *(pid for one in mine for pid in descendants(one))]
        for pid in self.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def end(self) -> None:
        for pid in self.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.shutdown()


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ticketry[ray]'")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("TICKETRY_LEASE_SECONDS", "3")  # the vanished machine's lease of the training
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path / "driver"))
    found = Nodes(tmp_path, monkeypatch)
    yield found
    found.end()


def test_a_node_that_vanishes(nodes: Nodes, tmp_path: Path) -> None:
    """Its training goes on at a node that comes later, from the last state that was uploaded, to the same bits."""
    first = nodes.add()
    events: list[Event] = []
    options: dict[str, Any] = {"device": "cpu", "checkpoint_seconds": 0.2, "on_event": events.append}
    with (
        Lab(f"file://{tmp_path}/shared", runner=f"ray:{nodes.cluster.address},cpus=1", **options) as lab,
        Lab(tmp_path / "here", device="cpu") as here,
        ThreadPoolExecutor(1) as beside,
    ):
        found = beside.submit(elsewhere.trained, lab)
        end = time.monotonic() + 200
        while not (any(event.step > 500 for event in events) and state_is_uploaded(tmp_path / "shared")):
            assert time.monotonic() < end
            assert not found.done(), found.result()
            time.sleep(0.1)
        nodes.vanish(first)
        nodes.add()
        assert found.result(timeout=300) == elsewhere.trained(here)
        assert "lost" in [event.kind for event in events]
        assert lab.ledger.steps_trained < 4000, "it went on from a state"
        assert check(lab.store).is_undamaged


def state_is_uploaded(store: Path) -> bool:
    """By what the store knows of the training."""
    return any(b'"partial":[' in one.read_bytes() for one in (store / "trajectories").glob("*/*.json@*"))
