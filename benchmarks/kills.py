"""Commands killed (kill -9) at random moments until they finish: are all results those of undisturbed runs?

    python benchmarks/kills.py --kills 1000 --counts kills.json
    python benchmarks/kills.py --kills 300 --counts sigterm.json --signal SIGTERM

Each command of `disturbed.CASES` is begun, killed with all its processes at a moment drawn from the time that it takes
undisturbed, and begun again on what is left. When it comes to its end, everything that it left behind has to be what an
undisturbed run left: records without timings, tickets and tensors to the last byte. Then `store check` has to find the
store sound, and another trial begins. Told to end by a signal that can be heeded, the command has to end with 128 + its
number; the longest that it took is kept. Every tenth trial of a command that trains is of real processes with two
workers; all others run in a fork, which saves the seconds of importing. The counts are kept after each trial: the same
command resumes and adds to them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from faults.disturbed import (
    CASES,
    Case,
    Child,
    difference,
    finished,
    fresh,
    is_remains,
    left_behind,
    preloaded,
    undisturbed,
)
from ticketry.files import write_atomically

_MOST_KILLS = 12
"""Most kills of one trial; then the command may finish."""
_SPAN = 0.35
"""The latest moment of a kill, of the time that the command takes undisturbed: it needs several attempts."""
_IN_TURN = 10
"""One trial of so many is of real processes."""


def trial(
    case: Case,
    place: Path,
    seconds: float,
    wanted: Mapping[str, str],
    draw: random.Random,
    *,
    real: bool,
    number: signal.Signals,
) -> Counter[str]:
    """Kill one command until it is done; what was counted."""
    counts, work, processes = Counter[str](), fresh(place), RealProcesses if real else Child
    wrong: list[str] = []
    while True:
        child = processes(case.words, work)
        moment = draw.uniform(0, seconds * _SPAN) + (_START if real else 0)
        if child.wait(moment if counts["kills"] < _MOST_KILLS else 600):
            break
        child.signal_all(number)
        asked = time.monotonic()
        child.wait()
        counts["kills"] += 1
        if number != signal.SIGKILL:
            counts[LONGEST] = max(counts[LONGEST], round(1000 * (time.monotonic() - asked)))
            counts["told what is stored"] += "stored as it is" in child.read_output()[1]
            counts["before it could heed"] += child.code == -number
            if child.code not in (128 + number, 0, -number) and (real or child.began_its_work()):
                wrong.append(f"code {child.code}: {child.read_output()[1][-500:]}")
        if not real and _training(child):
            counts["kills while it trained"] += 1
    counts["trials"] += 1
    wrong += (
        [f"code {child.code}: {child.read_output()[1][-500:]}"] if child.code else difference(left_behind(work), wanted)
    )
    if (work / "store").exists():
        try:
            finished(["store", "check", "--store", "store"], work)
            finished(["store", "gc", "--grace-seconds", "0", "--store", "store"], work)
        except AssertionError as error:
            wrong.append(str(error))
        wrong += [f"left over: {path}" for path in (work / "store").rglob(".*") if is_remains(path)]
    if wrong:
        counts["not identical"] += 1
        print(f"NOT IDENTICAL {' '.join(case.words)}: {wrong[:5]}", flush=True)
        shutil.copytree(work, place / f"not-identical-{time.time_ns()}")
    return counts


LONGEST = "milliseconds to the end, at most"
_START = 2.5
"""Seconds of a real process before its command does anything, about."""


def _training(child: Child) -> bool:
    """Whether it had a checkpoint inside a training when it was killed."""
    return any((child.folder / "store" / "partial").glob("*.safetensors"))


class RealProcesses(Child):
    """A command in a new interpreter with two workers."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        self.folder, self.logs, self.code = folder, folder.parent, None
        found = [str(next(iter(folder.glob(word)), word)) if "*" in word else word for word in words]
        found = [word.replace(f"{folder}/", "") for word in found]
        found[found.index("--workers") + 1] = "2"
        with open(folder.parent / "out", "w") as out, open(folder.parent / "err", "w") as err:
            command = [sys.executable, "-m", "ticketry", *found]
            self.process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=err, start_new_session=True)
        self.pid = self.process.pid

    def wait(self, seconds: float = 600) -> bool:
        try:
            self.code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="in all, those counted before among them")
    parser.add_argument("--counts", type=Path, default=Path("kills.json"), help="where they are kept")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/kills"), help="where commands work; in memory")
    parser.add_argument("--only", default="", help="commands whose names have this in them")
    parser.add_argument("--signal", default="SIGKILL", help="or SIGTERM, SIGHUP, SIGQUIT, SIGINT")
    parser.add_argument("--seed", type=int, default=os.getpid())
    arguments = parser.parse_args()
    number = signal.Signals[arguments.signal]
    preloaded()
    draw = random.Random(arguments.seed)
    counts = json.loads(arguments.counts.read_text()) if arguments.counts.exists() else {}
    cases = {name: case for name, case in CASES.items() if arguments.only in name}
    known: dict[str, tuple[float, dict[str, str]]] = {}
    while sum(one.get("kills", 0) for one in counts.values()) < arguments.kills:
        name = min(cases, key=lambda one: counts.get(one, {}).get("kills", 0))
        case, place = cases[name], arguments.folder / name.replace(" ", "-").replace(",", "")
        if name not in known:
            shutil.rmtree(place, ignore_errors=True)
            known[name] = undisturbed(case, place)
        so_far = Counter(counts.get(name, {}))
        real = case.trains and so_far["trials"] % _IN_TURN == _IN_TURN - 1
        more = trial(case, place, *known[name], draw, real=real, number=number)
        longest = {LONGEST: max(so_far[LONGEST], more[LONGEST])} if more[LONGEST] else {}
        counts[name] = {**(so_far + more), **longest}
        if real:
            counts[name]["trials of real processes"] = so_far["trials of real processes"] + 1
        write_atomically(arguments.counts, (json.dumps(counts, indent=1, sort_keys=True) + "\n").encode())
        print(f"{name:28} {counts[name]}", flush=True)
    total: Counter[str] = sum((Counter(one) for one in counts.values()), Counter())
    print(f"{'all':28} {dict(total)}")


if __name__ == "__main__":
    main()
