"""Workers and schedulers of other machines at fault: another version, a full disk, an end. Nothing is damaged, and the
error says which."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from faults.searching import small_disk
from lab.runners import elsewhere
from ticketry.errors import RunnerError, StoreError
from ticketry.lab.lab import Lab
from ticketry.lab.store.maintenance import check

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

OTHER_VERSION = """
import ticketry.version
ticketry.version.__version__ = "0.0.9"
"""


class Dask:
    """A scheduler, and workers with environments of their own."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        port = elsewhere.free_port()
        self.address = f"127.0.0.1:{port}"
        self.scheduler = self._start(["scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"], {})
        elsewhere.wait_for_port(port)

    def worker(self, **environment: str) -> subprocess.Popen[bytes]:
        words = ["worker", self.address, "--nthreads", "1", "--no-dashboard", "--no-nanny"]
        return self._start(words, environment)

    def _start(self, words: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command = [sys.executable, "-m", f"distributed.cli.dask_{words[0]}", *words[1:]]
        process = subprocess.Popen(command, env={**os.environ, **environment}, cwd=tempfile.gettempdir(), **quiet)
        self._stack.callback(elsewhere.ended, process)
        return process


@pytest.fixture
def dask() -> Iterator[Dask]:
    pytest.importorskip("distributed", reason="Dask is not installed: pip install 'ticketry[dask]'")
    with contextlib.ExitStack() as stack:
        yield Dask(stack)


def test_a_worker_of_another_version(dask: Dask, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(OTHER_VERSION)
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    old = dask.worker(PYTHONPATH=path)
    with (
        Lab(tmp_path / "store", device="cpu", runner=f"dask:{dask.address}") as lab,
        pytest.raises(RunnerError, match=rf"worker .*process {old.pid}.* has ticketry 0\.0\.9, and the search"),
    ):
        elsewhere.searched(lab)
    assert check(lab.store).is_undamaged
    elsewhere.ended(old)
    dask.worker()
    _goes_on(dask, tmp_path, tmp_path / "store")


def test_a_worker_whose_disk_is_full(dask: Dask, tmp_path: Path) -> None:
    """Its mirror of the shared store; the driver's own disk has room."""
    store = f"file://{tmp_path}/shared"
    with small_disk(tmp_path, "64k") as disk:
        full = dask.worker(TICKETRY_CACHE=str(disk))
        with (
            Lab(store, device="cpu", runner=f"dask:{dask.address}") as lab,
            pytest.raises(StoreError, match=rf"(?s)no space is left there.*worker .*process {full.pid}"),
        ):
            elsewhere.searched(lab)
        elsewhere.ended(full)
    assert check(lab.store).is_undamaged
    dask.worker()
    _goes_on(dask, tmp_path, store)


def test_a_scheduler_that_ends(dask: Dask, tmp_path: Path) -> None:
    """The command ends soon, and says so in one line: what Dask's client logs of it, with traces, is not shown."""
    dask.worker()
    words = ["search", "iterative", "--task", "digits", "--levels", "1", "--replicates", "1", "--controls", "none"]
    words += ["--recipe.length", "100000it", "--on", f"dask:{dask.address}", "--store", "store"]
    command = [sys.executable, "-m", "ticketry", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 200
    while not any((tmp_path / "store" / "live").glob("*/*.json")) and time.monotonic() < end:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    assert any((tmp_path / "store" / "live").glob("*/*.json")), "no worker has begun"
    dask.scheduler.kill()
    told = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert f"ticketry: the connection to Dask's scheduler, {dask.address}, was lost: it has ended" in told
    assert "Traceback" not in told


def _goes_on(dask: Dask, folder: Path, store: str | Path) -> None:
    """The same search on the same store, with a sound worker: as one that nothing disturbed."""
    with (
        Lab(store, device="cpu", runner=f"dask:{dask.address}") as lab,
        Lab(folder / "undisturbed", device="cpu") as here,
    ):
        assert elsewhere.searched(lab) == elsewhere.searched(here)
        assert check(lab.store).is_undamaged
