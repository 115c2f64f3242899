"""Cost of `ticketry report --watch` while ten searches run, and the age of its page.

Ten searches on digits, each in a separate process, all in one store; beside them the command. Its processor time is
that of its process, from the first renewal on; the age of the page is that of the file that it loads, looked at every
50 ms.

    python benchmarks/watching.py --searches 10 --seconds 60
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import Row, main, parser


def measure(arguments: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        searches = [_search(store, seed) for seed in range(arguments.searches)]
        try:
            while len(list(store.glob("live/*/progress.json"))) < arguments.searches:
                if any(search.poll() is not None for search in searches):
                    raise SystemExit("a search has ended before all had begun")
                time.sleep(0.2)
            return _watched(store, arguments)
        finally:
            for search in searches:
                search.kill()
                search.wait()


def _search(store: Path, seed: int) -> subprocess.Popen[bytes]:
    words = ["search", "iterative", "--task", "digits", "--levels", "12", "--recipe.length", "1000it", "--workers", "0"]
    more = ["--seed", str(1000 * seed), "--store", str(store)]
    command = [sys.executable, "-m", "ticketry", *words, *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _watched(store: Path, arguments: argparse.Namespace) -> list[Row]:
    command = [sys.executable, "-m", "ticketry", "report", "--watch", "--store", str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        time.sleep(3)
        told, ages = store / "watch.js", []
        before, began = _processor(watching.pid), time.monotonic()
        while time.monotonic() < began + arguments.seconds:
            ages.append(time.time() - told.stat().st_mtime)
            time.sleep(0.05)
        share = (_processor(watching.pid) - before) / (time.monotonic() - began)
        watching.kill()
    how = f"{arguments.searches} searches, {arguments.seconds:g} s"
    return [
        Row("processor of report --watch", 100 * share, "% of a core", how=how),
        Row("age of what the page loads", max(ages), "s", how=f"the oldest; median {statistics.median(ages):.2f}"),
    ]


def _processor(pid: int) -> float:
    """Seconds of processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--searches", type=int, default=10)
    options.add_argument("--seconds", type=float, default=60.0)
    main("watching", measure, options)
