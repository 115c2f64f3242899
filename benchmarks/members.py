"""Cost of training several networks that differ only in start and data order, in two ways.

- one after another, in this process;
- side by side in worker processes, one network and one thread each.

All through `Lab.train_many`, so evaluation and storing are counted; every round trains other seeds. Worker processes,
which are started before, are beside one network after another with two threads, in wall time: nothing else may run on
the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from common import Row, alternating, main, one_thread, parser, ratio_row, timed

import ticketry as tk

ROUNDS, SLOW_ROUNDS, QUICK_ROUNDS = 5, 1, 1
CORES = 2


@dataclass(frozen=True)
class Setting:
    """So many members of a network, in one way beside another."""

    way: str
    task: str
    members: int
    length: str
    target: float | None
    lab: Mapping[str, Any]
    """Seconds of the measured way."""
    base: Mapping[str, Any]
    """Seconds of training one network after another."""
    rounds: int = ROUNDS


def settings() -> list[Setting]:
    side_by_side, in_turn = {"device": "cpu", "workers": CORES}, {"device": "cpu", "threads": CORES}
    return [
        Setting(f"{CORES} workers", "fashion-mnist", 8, "2ep", 0.6, side_by_side, in_turn),
        Setting(f"{CORES} workers", "cifar10", 8, "30it", 0.6, side_by_side, in_turn, rounds=SLOW_ROUNDS),
    ]


def measure(arguments: argparse.Namespace) -> list[Row]:
    one_thread()
    chosen = settings()
    if arguments.only:
        chosen = [setting for setting in chosen if setting.task in arguments.only]
    return [compare(setting, arguments) for setting in chosen]


def compare(setting: Setting, arguments: argparse.Namespace) -> Row:
    """The row of one setting."""
    rounds = QUICK_ROUNDS if arguments.quick else setting.rounds
    task = tk.task(setting.task)
    length = "20it" if arguments.quick else setting.length
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as labs:
        cases = {}
        for name, options in (("way", setting.lab), ("base", setting.base)):
            lab = labs.enter_context(tk.Lab(Path(folder) / name, data=arguments.data, **options))
            started = [lab.segment(task, start=seed, last=1) for seed in range(CORES)]
            lab.train_many(started, measure=False)  # starts the workers, loads the data
            cases[name] = case(lab, task, setting, length)
        seconds = alternating(cases, rounds, warm_up=0)
    device = setting.base["device"]
    threads = setting.base.get("threads", 1)
    how = f"{device}, one after another: {threads} thread(s), wall time, {rounds} x {length} of each member"
    what = (
        f"{setting.members} members {setting.way} / one after another: {getattr(task, 'model', '')} on {setting.task}"
    )
    details = {"members_a_second": setting.members / statistics.median(seconds["way"])}
    return ratio_row(what, seconds["way"], seconds["base"], target=setting.target, how=how, details=details)


def case(lab: tk.Lab, task: tk.Task, setting: Setting, length: str) -> Callable[[], float]:
    """Trains members that were never trained before, whenever it is called; the seconds it takes."""
    recipe, seeds = task.recipe.changed(length=length), count()

    def sample() -> float:
        members = [next(seeds) for _ in range(setting.members)]
        segments = [lab.segment(task, start=seed, order_seed=seed, recipe=recipe) for seed in members]
        return timed(lambda: lab.train_many(segments), time.perf_counter)

    return sample


def options() -> argparse.ArgumentParser:
    made = parser(__doc__ or "")
    made.add_argument("--only", nargs="*", metavar="TASK", help="of the tasks measured, by default all")
    return made


if __name__ == "__main__":
    main("members", measure, options())
