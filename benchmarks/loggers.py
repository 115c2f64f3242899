"""Cost of `--log`: a LeNet search on Fashion-MNIST logged by each library, and by none, alternating.

Each search runs in a separate process with an empty store. Before it a search of twenty steps is logged in the same
process: then the library is imported, and MLflow has made its database. That time is a separate row.
Processor time is that of the process, its threads and its children. Beside it stands what threads other than the first
one took, which trains, less what they take where nothing is logged: loggers work in a separate thread, so that this
is theirs, without the noise of the training. The last row of a logger adds both up for a search as `ticketry search
iterative --task fashion-mnist` makes it without another option.

    python benchmarks/loggers.py --rounds 3

With --turns both searches of a pair run in one process, one after the other: what differs from one process to the next
(memory addresses alone make up to a fifth) is then in both. What a logger takes once a process is not in it.

    python benchmarks/loggers.py --turns 6 --levels 1 --length 2ep --loggers trackio
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

import ticketry as tk

LOGGERS = ("trackio", "mlflow", "tensorboard")
MOST = 1.02
_NETWORKS, _EPOCHS = 33, 10
"""Number of networks of the default search: three replicates of eleven levels, without controls."""
_DEFAULTS = f"{_NETWORKS} networks of {_EPOCHS} epochs"
_STEPS = 430
"""In an epoch."""


def measure(arguments: argparse.Namespace) -> list[Row]:
    if arguments.turns:
        return [row for name in arguments.loggers for row in _rows_of_turns(name, arguments)]
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
    pairs = list(zip(found, base, strict=True))
    apart = quartiles([100 * (one["beside"] - other["beside"]) / other["processor"] for one, other in pairs])
    once = quartiles([one["once"] - other["once"] for one, other in pairs])
    whole = quartiles([_share_of_default(one, other) for one, other in pairs])
    return [
        *(
            ratio_row(
                f"{name}: {clock} time", [one[key] for one in found], [one[key] for one in base], target=MOST, how=how
            )
            for clock, key in (("processor", "processor"), ("wall", "wall"))
        ),
        _row(f"{name}: processor time beside training", apart, "% of the search", how, target=2.0),
        _row(f"{name}: once a process, in a folder where nothing was logged", once, "s", how),
        _row(f"{name}: both, of a search on defaults", whole, "%", _DEFAULTS, target=2.0),
    ]


def _rows_of_turns(name: str, arguments: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        found = in_fresh_process(
            turned, folder, name, arguments.levels, arguments.length, arguments.data, arguments.turns
        )
    how = f"one process, {arguments.turns} turns, {found[name][0]['networks']} networks of {arguments.length}"
    clocks = {"processor": MOST, "wall": MOST, "training": None}
    same = len({tuple(one["models"]) for case in found.values() for one in case}) == 1
    return [
        *(
            ratio_row(
                f"{name}: {clock}{'' if clock == 'wall' else ' time'}",
                [one[clock] for one in found[name]],
                [one[clock] for one in found["none"]],
                target=most,
                how=how if clock != "training" else "of the thread that trains",
            )
            for clock, most in clocks.items()
        ),
        Row(f"{name}: searches with other bits", 0 if same else 1, target=0),
    ]


def _row(name: str, spread: tuple[float, float, float], unit: str, how: str, target: float | None = None) -> Row:
    low, median, high = spread
    return Row(name, median, unit, low, high, target=target, how=how)


def _share_of_default(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Per cent: what a logger takes once, and for each network, of what a search on defaults trains."""
    each = (one["beside"] - other["beside"]) / other["networks"]
    training = other["processor"] / other["networks"] * _EPOCHS / other["epochs"]
    return 100 * (one["once"] - other["once"] + _NETWORKS * each) / (_NETWORKS * training)


def searched(folder: str, logger: str, levels: int, length: str, data: Path | None) -> dict[str, Any]:
    """One search in this process; what it took, in seconds, and what came of it."""
    _in(folder)
    first = _search(f"{folder}/first", logger, 1, "20it", data)
    return {
        **_search(f"{folder}/store", logger, levels, length, data),
        "once": first["beside"],
        "epochs": tk.Step.parse(length).iterations(per_epoch=_STEPS) / _STEPS,
    }


def turned(
    folder: str, logger: str, levels: int, length: str, data: Path | None, turns: int
) -> dict[str, list[dict[str, Any]]]:
    """Searches with and without a logger in turns, all in this process: once a process nothing is counted."""
    _in(folder)
    cases = ("none", logger)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    for turn in range(-1, turns):
        for name in cases[:: 1 if turn % 2 else -1]:
            one = _search(f"{folder}/{name}-{turn}", name, levels, length if turn >= 0 else "20it", data)
            if turn >= 0:
                found[name].append(one)
    return found


def _in(folder: str) -> None:
    os.environ.update(
        TRACKIO_DIR=f"{folder}/trackio", MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db", WANDB_MODE="offline"
    )
    os.chdir(folder)  # libraries that write where they are write there
    one_thread()


def _search(store: str, logger: str, levels: int, length: str, data: Path | None) -> dict[str, Any]:
    from ticketry.experiments.request import build_request
    from ticketry.experiments.search import execute
    from ticketry.search import method

    iterative = method("iterative")
    request = build_request(
        iterative, "fashion-mnist", iterative.Settings(levels=levels), replicates=1, recipe={"length": length}
    )
    began, before, own = time.perf_counter(), _processor(), time.thread_time()
    with tk.Lab(Path(store), data=data, workers=0, loggers=[logger]) as lab:
        record = execute(lab, request)
    processor, wall, training = _processor() - before, time.perf_counter() - began, time.thread_time() - own
    return {
        "processor": processor,
        "training": training,
        "beside": processor - training,
        "wall": wall,
        "networks": lab.ledger.segments_trained,
        "models": sorted(str((point.role, point.level, point.validation, point.test)) for point in record.points),
    }


def _processor() -> float:
    """Return the processor seconds of this process, its threads and its finished children."""
    told = os.times()
    return time.process_time() + told.children_user + told.children_system


def options() -> argparse.ArgumentParser:
    made = parser(__doc__ or "")
    made.add_argument("--loggers", nargs="+", default=list(LOGGERS))
    made.add_argument("--levels", type=int, default=3)
    made.add_argument("--length", default="4ep", help="of each training")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--turns", type=int, default=0, help="with and without in turns in one process, so many times")
    return made


if __name__ == "__main__":
    main("loggers", measure, options())
