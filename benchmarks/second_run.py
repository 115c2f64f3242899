"""Time the command `ticketry search …` when the search is already done, from start to report.

The report that the first run wrote shows the same, so it is not rewritten; for comparison it is removed before the run.

It times the runs after the first one. They must train nothing: no file of the store's results may be new or
changed. With --store and --config it is the search of that run file on that store (which must be finished, or this
finishes it first); else a search on scikit-learn's digits is made, of 14 levels, 3 replicates and all controls.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import Row, finished, main, parser, seconds_row, ticketry_command

TARGET = 3.0
REPEATS = 5


def measure(arguments: argparse.Namespace) -> list[Row]:
    if arguments.config and arguments.store:
        return measure_store(arguments.store, ["--config", str(arguments.config)], arguments)
    if arguments.config or arguments.store:
        sys.exit("--store and --config go together: a store, and the run.toml of a search in it")
    levels, replicates = (2, 1) if arguments.quick else (14, 3)
    # How long each network was trained does not matter to a run that trains none.
    words = ["iterative", "--task", "digits", f"--levels={levels}", f"--replicates={replicates}", "--recipe.length=2ep"]
    with tempfile.TemporaryDirectory() as folder:
        return measure_store(Path(folder) / "store", words, arguments)


def measure_store(store: Path, words: Sequence[str], arguments: argparse.Namespace) -> list[Row]:
    command = [*ticketry_command(), "search", *words, "--store", str(store), "--json"]
    if arguments.data:
        command += ["--data", str(arguments.data)]
    first = json.loads(finished(command))
    wall, cpu, drawn = [], [], []
    for number in range(2 * (2 if arguments.quick else REPEATS)):
        if anew := number % 2:
            Path(first["report"]).unlink()
        seconds, processor, result = second_run(command, store)
        (drawn if anew else wall).append(seconds)
        if not anew:
            cpu.append(processor)
        if result["tickets"] != first["tickets"]:
            sys.exit("a second run gave other tickets than the first")
    cost = first["cost"]
    networks = f"{first['task']['name']}, {len(first['tickets'])} tickets, {cost['segments_asked']} segments asked for"
    how = f"default threads and workers, {len(wall)} runs, no step trained"
    details = {"cost": cost, "tickets": len(first["tickets"])}
    return [
        seconds_row(
            f"second run of a search ({networks})", wall, target=TARGET, how=f"wall time, {how}", details=details
        ),
        seconds_row("… of which CPU time", cpu, how=how),
        seconds_row("… where the report has to be drawn anew", drawn, how=f"wall time, {how}"),
    ]


def second_run(command: Sequence[str], store: Path) -> tuple[float, float, dict[str, Any]]:
    """Wall seconds, CPU seconds and the JSON of a command that must train nothing and name its report."""
    before, used = results(store), _cpu_of_children()
    start = time.perf_counter()
    result: dict[str, Any] = json.loads(finished(command))
    seconds = time.perf_counter() - start
    if results(store) != before:
        sys.exit("a second run stored results: it trained")
    report = Path(result["report"])
    if not report.is_file():
        sys.exit(f"a second run left no report at {report}")
    return seconds, _cpu_of_children() - used, result


def results(store: Path) -> dict[str, int]:
    """Return every stored result and its modification time; each training adds one."""
    return {str(path): path.stat().st_mtime_ns for path in (store / "results").rglob("*.json")}


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    options = parser(__doc__ or "")
    options.add_argument(
        "--store", type=Path, help="a store with a finished search, such as 14 levels on Fashion-MNIST"
    )
    options.add_argument("--config", type=Path, help="that search's run.toml")
    main("second_run", measure, options)
