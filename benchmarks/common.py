"""Helpers of all benchmarks: alternating timing, rows and tables, the machine, JSON.

A benchmark is a script with a function from its arguments to rows, handed to `main`. Ratios are of times measured in
one process, taken in turns (A B A B …), and summed up as the median and the quartiles of the ratios of each round, so
that a slow phase of the machine slows both sides of a ratio.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Row:
    """One line of a benchmark's table."""

    what: str
    measured: float
    unit: str = ""
    """Unit of the number: s, %, bits; empty for a ratio."""
    low: float | None = None
    """First quartile, where there are repeats."""
    high: float | None = None
    """Third quartile."""
    target: float | None = None
    """Upper bound of the number; None without a target."""
    at_least: float | None = None
    """Lower bound of the number; None without a target."""
    how: str = ""
    """Threads, precision, clock, repeats."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """The numbers behind it, for the JSON."""

    @property
    def reached(self) -> bool | None:
        if self.at_least is not None:
            return self.measured >= self.at_least
        return None if self.target is None else self.measured <= self.target


# -- timing ------------------------------------------------------------------------------------------------------------


def timed(function: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Seconds that a call takes; by default the CPU's, which other processes on the machine do not add to."""
    began = clock()
    function()
    return clock() - began


def alternating(cases: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: int = 1) -> dict[str, list[float]]:
    """The seconds of each case in each round; every round runs every case once, in turn.

    A case times itself and returns seconds, so that what it does before and after is not counted.
    """
    for _ in range(warm_up):
        for case in cases.values():
            case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            seconds[name].append(case())
    return seconds


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; three times the value if there is one."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third


def ratio_row(what: str, seconds: Sequence[float], base: Sequence[float], **row: Any) -> Row:
    """The median over rounds of seconds / base, taken in the same round."""
    low, median, high = quartiles([one / other for one, other in zip(seconds, base, strict=True)])
    details = {
        "seconds": statistics.median(seconds),
        "base_seconds": statistics.median(base),
        "all_seconds": list(seconds),
        "all_base_seconds": list(base),
    }
    return Row(what, median, low=low, high=high, details=details | row.pop("details", {}), **row)


def seconds_row(what: str, seconds: Sequence[float], **row: Any) -> Row:
    """The median of seconds."""
    low, median, high = quartiles(seconds)
    return Row(what, median, "s", low, high, details={"all_seconds": list(seconds)} | row.pop("details", {}), **row)


# -- other processes ---------------------------------------------------------------------------------------------------


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """The function's result in a new interpreter, where nothing is loaded or cached yet."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def user_environment() -> dict[str, str]:
    """The environment for commands that are timed: byte code is written, as for an installed package."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def ticketry_command() -> list[str]:
    """Return the installed command of this interpreter, else the module."""
    script = Path(sys.executable).with_name("ticketry")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "ticketry"]


def finished(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Return the standard output of a command; exit with its errors if it failed."""
    done = subprocess.run(command, env=environment or user_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with code {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout


# -- the machine -------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Return processor, threads and versions of this measurement."""
    from ticketry.lab.process import processor_name
    from ticketry.version import __version__

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor_name(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "safetensors")},
        "ticketry": __version__,  # also where it runs from its folder
        "commit": commit(),
        "load": load_average(),
    }


def load_average() -> float | None:
    """Processes that wanted a core during the last minute: above 1, a measurement of one thread was not alone."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def commit() -> str | None:
    """Return the commit of this repository, with a + if its sources have changed since."""
    try:
        head = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, stderr=subprocess.DEVNULL)
        changed = subprocess.check_output(["git", "status", "--porcelain", "--", "../src"], cwd=HERE)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.decode().strip() + ("+" if changed.strip() else "")


def short_processor(name: str) -> str:
    """The processor's name as part of a file's name."""
    name = re.sub(r"\((?:r|tm)\)|\bcpu\b|\bprocessor\b|\b\d+-core\b|@.*|,.*", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-") or "unknown"


def network_and_task(asked: str, options: Sequence[str]) -> Any:
    """The task of words such as resnet-20:cifar10, with that network and options such as size=16."""
    from ticketry.tasks import catalogue

    network, _, name = asked.partition(":")
    return catalogue.get(name, model=network, options=dict(option.split("=", 1) for option in options))


def one_thread() -> None:
    """Let torch compute with one thread in this process."""
    import torch

    torch.set_num_threads(1)


# -- telling -----------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row | Mapping[str, Any]]) -> str:
    """Format rows as a Markdown table with aligned columns."""
    lines = [("what", "measured", "quartiles", "to reach", "reached", "how")]
    for row in rows:
        one = row if isinstance(row, Row) else Row(**row)
        spread = "" if one.low is None or one.high is None else f"{one.low:.4g} … {one.high:.4g}"
        target = "" if one.target is None else f"≤ {_with_unit(one.target, one.unit)}"
        if one.at_least is not None:
            target = f"≥ {_with_unit(one.at_least, one.unit)}"
        reached = {True: "yes", False: "no", None: ""}[one.reached]
        lines.append((one.what, _with_unit(one.measured, one.unit), spread, target, reached, one.how))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    texts.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(texts)


def machine_line(facts: Mapping[str, Any]) -> str:
    """The machine in a sentence."""
    load = facts["load"] if facts.get("load_after") is None else f"{facts['load']} → {facts['load_after']}"
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['system']}; Python {facts['python']}, torch"
        f" {facts['torch']}, ticketry {facts['ticketry']} ({facts['commit']}); load {load}"
    )


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    made = argparse.ArgumentParser(description=description.strip().partition("\n")[0])
    made.add_argument("--json", type=Path, metavar="FILE", help="write the rows and what is behind them to this file")
    made.add_argument("--quick", action="store_true", help="few repeats: shows that it works, measures nothing")
    made.add_argument("--data", type=Path, help="folder of data sets (or set $TICKETRY_DATA)")
    return made


def main(name: str, measure: Callable[[argparse.Namespace], list[Row]], options: argparse.ArgumentParser) -> None:
    """Measure, print the table, write the JSON."""
    arguments = options.parse_args()
    facts = machine()
    began = time.monotonic()
    rows = measure(arguments)
    facts["load_after"] = load_average()
    record = {
        "benchmark": name,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "quick": arguments.quick,
        "machine": facts,
        "seconds": round(time.monotonic() - began, 1),
        "rows": [asdict(row) for row in rows],
    }
    print(f"# {name}{' (quick: not a measurement)' if arguments.quick else ''}\n{machine_line(facts)}\n")
    print(table(rows), flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _with_unit(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".strip()
