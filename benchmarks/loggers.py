"""What `--log` costs: a LeNet search on Fashion-MNIST logged by each library, and by none, in turns.

Each search is in one process of its own, with an empty store: the library is imported, and MLflow makes its database.
Processor time is that of the process, its threads and its children. Beside it stands what threads other than the first
one took, which trains, less what they take where nothing is logged: loggers work in a thread of their own, so that this
is theirs, without the noise of the training.

    python benchmarks/loggers.py --rounds 3
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import Row, in_fresh_process, main, one_thread, parser, quartiles, ratio_row

LOGGERS = ("trackio", "mlflow", "tensorboard")
MOST = 1.02


def measure(arguments: argparse.Namespace) -> list[Row]:
    cases = ["none", *arguments.loggers]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    levels, rounds = (1, 1) if arguments.quick else (arguments.levels, arguments.rounds)
    length = "100it" if arguments.quick else arguments.length
    for number in range(rounds):
        for name in cases[number % len(cases) :] + cases[: number % len(cases)]:  # none of them is always the first
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(in_fresh_process(searched, folder, name, levels, length, arguments.data))
    base = found["none"]
    how = f"one thread, {rounds} rounds, {base[0]['networks']} networks of {length}"
    rows = [row for name in arguments.loggers for row in rows_of(name, found[name], base, how)]
    models = {name: {tuple(one["models"]) for one in results} for name, results in found.items()}
    same = all(models[name] == models["none"] and len(models[name]) == 1 for name in cases)
    return [*rows, Row("searches with other bits than without a logger", 0 if same else 1, target=0)]


def rows_of(name: str, found: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]], how: str) -> list[Row]:
    """Against no logger in the same round."""
    apart = [
        100 * (one["beside"] - other["beside"]) / other["processor"] for one, other in zip(found, base, strict=True)
    ]
    low, median, high = quartiles(apart)
    return [
        *(
            ratio_row(
                f"{name}: {clock} time", [one[key] for one in found], [one[key] for one in base], target=MOST, how=how
            )
            for clock, key in (("processor", "processor"), ("wall", "wall"))
        ),
        Row(f"{name}: processor time beside training", median, "% of the search", low, high, target=2.0, how=how),
    ]


def searched(folder: str, logger: str, levels: int, length: str, data: Path | None) -> dict[str, Any]:
    """One search in this process; what it took, in seconds, and what came of it."""
    os.environ.update(
        TRACKIO_DIR=f"{folder}/trackio", MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db", WANDB_MODE="offline"
    )
    os.chdir(folder)  # libraries that write where they are write there
    import ticketry as tk
    from ticketry.experiments.request import request_of
    from ticketry.experiments.search import execute
    from ticketry.search import method

    one_thread()
    iterative = method("iterative")
    request = request_of(
        iterative, "fashion-mnist", iterative.Settings(levels=levels), replicates=1, recipe={"length": length}
    )
    began, before, own = time.perf_counter(), _processor(), time.thread_time()
    with tk.Lab(Path(folder) / "store", data=data, workers=0, loggers=[logger]) as lab:
        record = execute(lab, request)
    processor, wall = _processor() - before, time.perf_counter() - began
    return {
        "processor": processor,
        "beside": processor - (time.thread_time() - own),
        "wall": wall,
        "networks": lab.ledger.segments_trained,
        "models": sorted(str((point.role, point.level, point.validation, point.test)) for point in record.points),
    }


def _processor() -> float:
    """Of this process, its threads and the children that have ended."""
    told = os.times()
    return time.process_time() + told.children_user + told.children_system


def options() -> argparse.ArgumentParser:
    made = parser(__doc__ or "")
    made.add_argument("--loggers", nargs="+", default=list(LOGGERS))
    made.add_argument("--levels", type=int, default=3)
    made.add_argument("--length", default="4ep", help="of each training")
    made.add_argument("--rounds", type=int, default=3)
    return made


if __name__ == "__main__":
    main("loggers", measure, options())
