"""Searches on executors of others, `tk.Lab(runner=executor)`: the bits of a search in this process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from lab.runners import elsewhere
from ticketry.lab.lab import Lab
from ticketry.lab.runners.runner import Event

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


POOLS: dict[str, Callable[[Path], Executor]] = {"processes": _processes, "executorlib": _executorlib, "parsl": _parsl}


@pytest.mark.slow
@pytest.mark.parametrize("kind", POOLS)
def test_a_search_gives_the_same_bits(tmp_path: Path, lab: Lab, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where Parsl's programs are installed.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    events: list[Event] = []
    with (
        POOLS[kind](tmp_path) as pool,
        Lab(tmp_path / "other", device="cpu", on_event=events.append, executor=pool) as other,
    ):
        assert elsewhere.searched(other) == elsewhere.searched(lab)
        assert other.ledger.segments_trained == 6
        assert pool.submit(os.path.basename, "a/b").result() == "b", "it stays the user's"
    assert not any((tmp_path / "other" / "live").iterdir())
    assert {"started", "finished"} <= {event.kind for event in events}


MPI = """
import sys
from mpi4py.futures import MPIPoolExecutor
from lab.runners import elsewhere
from ticketry import Lab

if __name__ == "__main__":
    with MPIPoolExecutor() as pool, Lab(sys.argv[1], device="cpu", runner=pool) as lab:
        elsewhere.searched(lab)
        print(pool.num_workers, lab.ledger.segments_trained)
"""


@pytest.mark.slow
def test_a_search_on_ranks_of_mpi_gives_the_same_bits(tmp_path: Path, lab: Lab) -> None:
    """A pool of mpi4py, whose ranks are started by MPI: one that hands out, and two that train."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install mpi4py")
    if (mpirun := shutil.which("mpirun")) is None:
        pytest.skip("there is no mpirun: apt-get install openmpi-bin")
    script = tmp_path / "searching.py"
    script.write_text(MPI)
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment = {**os.environ, **as_root, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    words = [mpirun, "--oversubscribe", "-n", "3", sys.executable, "-m", "mpi4py.futures", script, tmp_path / "other"]
    told = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert (told.returncode, told.stdout.split()) == (0, ["2", "6"]), told.stderr[-2000:]
    with Lab(tmp_path / "other", device="cpu") as other:
        assert elsewhere.searched(other) == elsewhere.searched(lab)
        assert other.ledger.segments_trained == 0
