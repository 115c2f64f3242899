"""Commands on separate machines that share only a store: each has a cache by its name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ticketry.lab.store.store import open_remote


def start_command(folder: Path, machine: str, *words: str) -> subprocess.Popen[str]:
    """Start a command in the folder ``work``."""
    known = {**os.environ, "TICKETRY_LEASE_SECONDS": "4", "TICKETRY_CACHE": str(folder / machine)}
    (folder / "work").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "ticketry", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder / "work", env=known, text=True, **pipes)


def result(process: subprocess.Popen[str], seconds: float = 280) -> Any:
    """Return its JSON output; it has to succeed."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    return json.loads(out)


def wait_for_state(url: str, process: subprocess.Popen[str]) -> None:
    """Wait until a state from inside a training is in the shared store, while the process runs."""
    limit, remote = time.monotonic() + 250, open_remote(url)
    while not list(remote.list("partial/")):
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.05)
