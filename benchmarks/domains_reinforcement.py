"""Deep Q-learning: its steps beside CleanRL's, poles that are balanced, and trainings that are killed.

CleanRL (https://github.com/vwxyzjn/cleanrl, MIT) is not part of this repository: give a clone of it, or a bare one,
with --cleanrl, or set $CLEANRL. Its `cleanrl/dqn.py` runs unchanged in this process, with a writer of logs that does
nothing in place of tensorboard's, which saves it time. Both then have the same network, batch, optimiser, size of
memory, steps between updates and share of random actions; of CleanRL's time what precedes its first update is taken
off. CleanRL has one environment: the first row has one on both sides, the second ours with as many side by side as
there are steps between updates, so that the network is asked once for all.

CleanRL asks for Gymnasium 0.29.1, whose NumPy is older than torch's. With today's, an environment resets in a separate
step, without an action, which costs it nothing here.
"""

from __future__ import annotations

import argparse
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from common import Row, alternating, finished, main, one_thread, parser, ratio_row, ticketry_command, user_environment
from peers import as_script, unpacked

FASTER, SOLVED, KILLS = 1.2, 475.0, 10
SEEDS = range(10, 20)
"""Seeds for CartPole; its settings were tuned on seeds 0 to 9."""
_FREQUENCY, _WARMUP, _EXPLORE = 10, 1_000, 0.05
_FILES = ("cleanrl/dqn.py", "cleanrl_utils/__init__.py", "cleanrl_utils/buffers.py")


def rows(arguments: argparse.Namespace) -> list[Row]:
    """All rows; what needs CleanRL is left out where it is not given."""
    chosen: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
        "steps": steps_rows,
        "cartpole": cartpole_rows,
        "kill": kill_rows,
    }
    return [row for name in arguments.only or chosen for row in chosen[name](arguments)]


def options(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options of these rows."""
    clone = os.environ.get("CLEANRL")
    made.add_argument("--cleanrl", type=Path, default=clone, metavar="DIR", help="a clone of CleanRL (or $CLEANRL)")
    made.add_argument("--only", nargs="*", choices=("steps", "cartpole", "kill"), help="only these rows")
    made.add_argument("--workers", type=int, default=2, help="networks that are trained side by side")
    return made


# -- environment steps a second ----------------------------------------------------------------------------------------


def steps_rows(arguments: argparse.Namespace) -> list[Row]:
    """CleanRL's seconds / ours for the same environment steps: the ratio of steps a second."""
    if not arguments.cleanrl:
        print("CleanRL is not given (--cleanrl, $CLEANRL): its row is left out", file=sys.stderr)
        return []
    one_thread()
    count = 2_000 if arguments.quick else 10_000
    with tempfile.TemporaryDirectory() as folder:
        script = unpacked(arguments.cleanrl, _FILES, Path(folder))
        cases = {
            "one": lambda: _ours(count, 1),
            "several": lambda: _ours(count, _FREQUENCY),
            "cleanrl": lambda: _theirs(script, count),
        }
        seconds = alternating(cases, 2 if arguments.quick else 9)
    how = f"CartPole, an update each {_FREQUENCY} steps, batch 128, mlp-120-84, one thread, process time"
    return [
        ratio_row(
            f"DQN: our environment steps a second / CleanRL's, {words}",
            seconds["cleanrl"],
            seconds[name],
            at_least=FASTER,
            how=how,
            details={"steps": count, "steps_a_second": {side: count / median(seconds[side]) for side in seconds}},
        )
        for name, words in (("one", "one environment"), ("several", f"{_FREQUENCY} of ours side by side"))
    ]


def _ours(count: int, copies: int) -> float:
    """Process seconds of so many environment steps with their updates, by the lab's loop."""

    from lab_loop import start_loop

    from ticketry.lab.training.precision import Arithmetic
    from ticketry.lab.training.segment import Segment, Start
    from ticketry.tasks import catalogue

    learning = {
        "copies": copies,
        "moves": _FREQUENCY // copies,
        "memory": 10_000,
        "warmup": _WARMUP,
        "explore": _EXPLORE,
        "explore_for": 0.0,
        "period": 500 // _FREQUENCY,
        "loss": "squared",
    }
    task = catalogue.get("cartpole", options={name: str(value) for name, value in learning.items()})
    recipe = task.recipe.changed(length="1000000it", batch=128, lr=2.5e-4, schedule="constant", clip=0.0)
    updates = count // _FREQUENCY
    segment = Segment(
        task=task,
        recipe=recipe,
        start=Start(seed=1),
        first=0,
        last=updates + 1,
        total=1_000_000,
        per_epoch=1,
        order_seed=1,
        arithmetic=Arithmetic(),
    )
    loop = start_loop(segment, task.course())
    loop.train_until(1, lambda: None)  # the warm-up is not counted
    began = time.process_time()
    loop.train_until(updates + 1, lambda: None)
    return time.process_time() - began


def _theirs(script: Path, count: int) -> float:
    """Process seconds of so many environment steps behind the first update, by CleanRL's own script."""
    common = ["--env-id", "CartPole-v1", "--no-cuda", "--start-e", str(_EXPLORE), "--end-e", str(_EXPLORE)]
    common += ["--learning-starts", str(_WARMUP), "--train-frequency", str(_FREQUENCY)]
    writer: Any = types.ModuleType("torch.utils.tensorboard")
    writer.SummaryWriter = _NoWriter
    marks = []
    for total in (_WARMUP + 1, _WARMUP + 1 + count):
        words = [*common, "--total-timesteps", str(total)]
        with as_script(script, words, script.parents[1], {writer.__name__: writer}):
            began = time.process_time()
            runpy.run_path(str(script), run_name="__main__")
            marks.append(time.process_time() - began)
    return marks[1] - marks[0]


class _NoWriter:
    """A log writer that ignores everything."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def add_text(self, *_: object) -> None:
        pass

    def add_scalar(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass


# -- poles that are balanced -------------------------------------------------------------------------------------------


def cartpole_rows(arguments: argparse.Namespace) -> list[Row]:
    """How many of ten seeds balance the pole, by the task's own recipe, and how long one takes."""
    import ticketry as tk

    task = tk.task("cartpole")
    recipe = task.recipe.changed(length="200it") if arguments.quick else task.recipe
    seeds = SEEDS[:2] if arguments.quick else SEEDS
    with tempfile.TemporaryDirectory() as folder, tk.Lab(folder, workers=arguments.workers) as lab:
        found = lab.train_many([lab.segment(task, start=seed, order_seed=seed, recipe=recipe) for seed in seeds])
    returns = [one.metrics["test"]["return"] for one in found]
    seconds = sorted(one.train_seconds for one in found)
    solved = sum(value >= SOLVED for value in returns)
    how = f"mean return of 100 episodes at the end of {recipe.length}; {arguments.workers} workers"
    details = {"returns": returns, "seconds": [one.train_seconds for one in found]}
    return [
        Row(
            f"CartPole solved (>= {SOLVED:g}), of the seeds {seeds[0]} to {seeds[-1]}",
            solved,
            at_least=9,
            how=how,
            details=details,
        ),
        Row("CartPole: seconds of a training", seconds[len(seconds) // 2], "s", seconds[0], seconds[-1], how=how),
    ]


# -- trainings that are killed -----------------------------------------------------------------------------------------


def kill_rows(arguments: argparse.Namespace) -> list[Row]:
    """Kill a search on LunarLander ten times (SIGKILL, at random) and count the results that differ by a bit."""
    kills = 2 if arguments.quick else KILLS
    words = ["search", "gradual", "--task", "lunarlander", "--replicates", "1", "--controls", "none"]
    words += ["--density", "0.2", "--workers", "0", "--checkpoint-seconds", "0.1", "--json"]
    words += ["--recipe.length", "300it" if arguments.quick else "3000it"]
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, killed = Path(folder) / "undisturbed", Path(folder) / "killed"
        began = time.monotonic()
        finished([*ticketry_command(), *words, "--store", str(undisturbed)])
        length = time.monotonic() - began
        drawn = random.Random(0)
        for _ in range(kills):
            _killed(killed, drawn.uniform(0.0, 0.06) * length, [*words, "--store", str(killed)])
        finished([*ticketry_command(), *words, "--store", str(killed)])
        one, other = _results(undisturbed), _results(killed)
        different = len(one.items() ^ other.items())
    how = f"{len(one)} stored results by their digests; gradual pruning, {words[-1]}"
    return [Row(f"LunarLander killed {kills} times: results that differ", different, target=0, how=how)]


def _killed(store: Path, seconds: float, words: list[str]) -> None:
    """Run the command, and kill it `seconds` after its first checkpoint."""
    before = _checkpoints(store)
    process = subprocess.Popen(
        [*ticketry_command(), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=user_environment(),
        start_new_session=True,
    )
    while not _checkpoints(store) - before and process.poll() is None:
        time.sleep(0.01)
    time.sleep(seconds)
    if process.poll() is not None:
        sys.exit("the search ended before it was killed: give it more steps")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _checkpoints(store: Path) -> set[str]:
    return {path.name for path in (store / "partial").glob("*")}


def _results(store: Path) -> dict[str, tuple[Any, ...]]:
    """Trajectory and step -> digests of weights and state, and the metrics."""
    from ticketry.lab.store.files import read_json

    found = {}
    for path in sorted((store / "results").rglob("*.json")):
        record = read_json(path) or {}
        metrics = str(record.get("metrics"))
        found[str(path.relative_to(store))] = (record["model"], record["training"], metrics, str(record["loss"]))
    return found


if __name__ == "__main__":
    main("reinforcement", rows, options(parser(__doc__)))
