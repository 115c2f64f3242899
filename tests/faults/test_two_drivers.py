"""Two searches at once on one store, on two runners: each segment is trained once, whatever their clocks say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from faults.disturbed import without_times
from faults.machines import result

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SEARCH = [
    *("search", "iterative", "--task", "digits", "--replicates", "2", "--levels", "2", "--rewind", "3it", "--json"),
    *("--controls", "shuffled", "--recipe.length", "300it", "--checkpoint-seconds", "0.1"),
]
WRONG_CLOCK = """
import time
_right = time.time
time.time = lambda: _right() + float({seconds})
"""


def begun(folder: Path, machine: str, words: Sequence[str], clock: float = 0.0) -> subprocess.Popen[str]:
    """A command on a machine of its own (its cache), whose clock is off by so many seconds, in its workers too."""
    site = folder / f"site-{machine}"
    site.mkdir()
    (site / "sitecustomize.py").write_text(WRONG_CLOCK.format(seconds=clock))
    known = {**os.environ, "TICKETRY_CACHE": str(folder / machine), "TICKETRY_LEASE_SECONDS": "20"}
    known["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    work = folder / f"work-{machine}"
    work.mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "ticketry", *SEARCH, *words],
        cwd=work,
        env=known,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("shared", "clock"),
    [("folder", 0.0), ("leases", 3600.0), ("leases", -3600.0)],
    ids=["locks", "leases, a clock an hour ahead", "leases, a clock an hour behind"],
)
def test_two_drivers_on_two_runners_train_every_segment_once(tmp_path: Path, shared: str, clock: float) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'ticketry[slurm]'")
    store = str(tmp_path / "shared") if shared == "folder" else f"file://{tmp_path}/shared"
    usual = result(begun(tmp_path, "alone", ["--store", str(tmp_path / "alone-store"), "--workers", "0"]), 800)
    drivers = [
        begun(tmp_path, "jobs", ["--store", store, "--on", "slurm:local,jobs=1"]),
        begun(tmp_path, "processes", ["--store", store, "--on", "processes:1"], clock),
    ]
    told = [result(driver, 800) for driver in drivers]
    for name in ("segments_trained", "steps_trained"):
        assert sum(one["now"][name] for one in told) == usual["now"][name], name
    measured = {"path": "", "relative_cost": None}  # by who trained it
    plain = [without_times([{**one, **measured} for one in each["tickets"]]) for each in (*told, usual)]
    assert plain[0] == plain[1] == plain[2]
