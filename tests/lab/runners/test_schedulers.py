"""Real clusters on this machine, each skipped where it is not installed: Ray, Dask, and submitit's jobs."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lab.runners import elsewhere, slurm_here
from ticketry.errors import RunnerError
from ticketry.lab.lab import Lab

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="clusters are tested on Linux"),
]


@contextlib.contextmanager
def _ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Three nodes of one core each, small."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ticketry[ray]'")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 by default: beside other tests they would hardly run
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        yield f"ray:{cluster.address},cpus=1"
    finally:
        cluster.shutdown()


@contextlib.contextmanager
def _dask(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A scheduler and two workers, processes of their own."""
    pytest.importorskip("distributed", reason="Dask is not installed: pip install 'ticketry[dask]'")
    python, quiet = sys.executable, {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes: list[Any] = []
    port = elsewhere.free_port()
    address = f"127.0.0.1:{port}"
    with contextlib.ExitStack() as stack:
        words = [
            ["scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
            *[["worker", address, "--nthreads", "1", "--no-dashboard", "--memory-limit", "2GB"]] * 2,
        ]
        for one in words:
            process = subprocess.Popen([python, "-m", "distributed.cli.dask_" + one[0], *one[1:]], **quiet)
            stack.callback(elsewhere.ended, process)
            processes.append(process)
        elsewhere.wait_for_port(port)
        yield f"dask:{address}"


@contextlib.contextmanager
def _local_jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'ticketry[slurm]'")
    yield "slurm:local,jobs=2"


@contextlib.contextmanager
def _slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'ticketry[slurm]'")
    with slurm_here.slurm(monkeypatch, Path.cwd() / "slurm"):
        yield "slurm:partition=all,time=30"


CLUSTERS = {"ray": _ray, "dask": _dask, "slurm-local": _local_jobs, "slurm": _slurm}


@pytest.fixture(scope="module", params=list(CLUSTERS))
def on(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The words of --on for a cluster that runs."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    with CLUSTERS[request.param](monkeypatch) as found:
        yield found
    monkeypatch.undo()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab that trains in this process."""
    with Lab(tmp_path_factory.mktemp("here") / "store", device="cpu") as lab:
        yield lab


def test_a_search_gives_the_same_bits(on: str, here: Lab, tmp_path: Path) -> None:
    jobs = set(Path(".ticketry-slurm").glob("*_submitted.pkl"))
    with Lab(tmp_path / "store", device="cpu", runner=on) as lab:
        assert elsewhere.searched(lab) == elsewhere.searched(here)
        assert lab.ledger.segments_trained == 6
    begun = set(Path(".ticketry-slurm").glob("*_submitted.pkl")) - jobs
    assert (1 <= len(begun) <= 2) == on.startswith("slurm"), "a job trains one segment after another"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_worker_that_is_killed_or_told_to_end(on: str, here: Lab, tmp_path: Path, number: signal.Signals) -> None:
    began = time.monotonic()
    found, told, lab = elsewhere.disturbed(tmp_path / "store", number, runner=on)
    assert found == elsewhere.trained(here)
    assert len(told.killed) == 1, f"{number.name} never came, after {time.monotonic() - began:.0f} s"
    assert lab.ledger.steps_trained < 4000 or "lost" not in told.kinds, "what was stored was not trained again"


def test_a_stop_and_going_on(on: str, here: Lab, tmp_path: Path) -> None:
    def make(store: Path, **options: Any) -> Lab:
        return Lab(store, device="cpu", runner=on, **options)

    assert elsewhere.stopped_and_gone_on(tmp_path / "store", make) == elsewhere.trained(here)


def test_ctrl_c_of_the_driver(on: str, tmp_path: Path) -> None:
    """The command stores what its workers train, and ends in bounded time with the code of Ctrl-C."""
    code, seconds, told = elsewhere.interrupted_command(tmp_path, on)
    assert code == 130, told
    assert seconds < 60
    assert any((tmp_path / "store" / "partial").glob("*.safetensors")), told
    assert not any((tmp_path / "store" / "live").glob("*/*")), told


def test_a_job_that_is_pre_empted_goes_back_into_the_queue(on: str, here: Lab, tmp_path: Path) -> None:
    """By the signal that says that its time is over: it stores its state, and is not sent again by the driver."""
    if not on.startswith("slurm"):
        pytest.skip("jobs alone are put back")
    found, told, lab = elsewhere.disturbed(tmp_path / "store", signal.SIGUSR2, runner=on)
    assert found == elsewhere.trained(here)
    assert len(told.killed) == 1
    assert "lost" not in told.kinds, "submitit has put it back"
    assert lab.ledger.steps_trained < 4000


@pytest.mark.parametrize("on", ["ray:127.0.0.1:{}", "dask:127.0.0.1:{}"])
def test_an_address_that_nobody_answers(on: str, tmp_path: Path, digits: Any) -> None:
    name = {"ray": "ray", "dask": "distributed"}[on.partition(":")[0]]
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    address = on.format(elsewhere.free_port())
    began = time.monotonic()
    with (
        Lab(tmp_path / "store", runner=address) as lab,
        pytest.raises(RunnerError, match="no server answers at the addr"),
    ):
        lab.train(lab.segment(digits, start=0, last=3))
    assert time.monotonic() - began < 20


STARTED_HERE = """
import sys, threading, time
from ticketry import Lab
from ticketry.tasks import catalogue

task = catalogue.get("digits")
with Lab(sys.argv[1], runner="ray", device="cpu") as lab:
    train = lambda start: lab.train(lab.segment(task, start=start, last=3))
    first = threading.Thread(target=train, args=[0])
    first.start()
    first.join()
    time.sleep(1)
    print(train(1).segment.last)
"""


def test_a_cluster_that_was_started_here_outlives_the_thread_that_trained_first(tmp_path: Path) -> None:
    """Each replicate of a search has a thread of its own, and one is done before the others."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ticketry[ray]'")
    words = [sys.executable, "-c", STARTED_HERE, str(tmp_path / "store")]
    told = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert (told.returncode, told.stdout.split()) == (0, ["3"]), told.stderr[-2000:]
