"""The folder of a driver's jobs: its own while it lives, and nobody's once it was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ticketry.lab.runners.job_folder import JobFolder

DRIVER = """
import sys, time
from pathlib import Path
from ticketry.lab.runners.job_folder import JobFolder
held = JobFolder(Path(sys.argv[1]))
(held.path / "0").mkdir()
print(held.path, flush=True)
time.sleep(100)
"""


def test_of_a_driver_that_lives_and_of_one_that_was_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        theirs = Path(driver.stdout.readline().strip())
        assert theirs.parent == tmp_path
        JobFolder(tmp_path).remove()
        assert (theirs / "0").is_dir(), "its driver lives"
        driver.kill()
    ours = JobFolder(tmp_path)
    assert list(tmp_path.iterdir()) == [ours.path]
    ours.remove()
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_lock_stays(tmp_path: Path) -> None:
    """Of a version that held none: its driver may live."""
    (tmp_path / "search-of-old").mkdir()
    JobFolder(tmp_path).remove()
    assert [path.name for path in tmp_path.iterdir()] == ["search-of-old"]
