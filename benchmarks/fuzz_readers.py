"""Files changed by structure and by bytes, and given to the functions that commands read them by: thousands a second.

    python benchmarks/fuzz_readers.py --inputs 1000000 --counts readers.json

`fuzz_files.py` runs whole commands, a few dozen per second. Here each input goes to the one function that
commands read such a file by, and then to what is made of it at once (the task, tables, a page's lines). A quarter is
changed by bytes, the others by structure, with matching digests, as a forger would add.

A failure is anything but an error of the library: another exception, the end of the process, more than ten
seconds of a processor for one input, more memory than there is, and a silently different result. The last is looked for
in two ways. What was changed by bytes and is read all the same has to say what the good file says, if the format has a
digest. What was changed by structure has to say the same when it is read again, or written and read again.

Inputs are read in a fork, by turns of each format; a fork that ends or hangs is reported with the number of its input,
and the next fork continues after it. An input follows from its format, its number and the seed. The counts are kept
after each turn: the same command resumes and adds to them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import mmap
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "engine" / "ir"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import psutil
import torch
from fuzz_formats import Format, formats

from ticketry.errors import TicketryError
from ticketry.files import write_atomically

SECONDS = 10
"""Limit of processor seconds for one input."""
MEMORY = 6 << 30
"""Address space of a fork in bytes; its libraries take more than 1 GB of it."""
TURN = 2000
"""Inputs of a format by turns."""
_COUNTED = ("inputs", "read", "refused", "failed")


def attempt(one: Format, number: int, seed: int) -> str:
    """Return the outcome for an input: ``read``, ``refused``, or the failure."""
    draw = Random((seed << 64) ^ (zlib.crc32(one.name.encode()) << 32) ^ number)
    by_bytes = draw.random() < 0.25
    try:
        one.put(draw, by_bytes)
        found = one.summary(one.read())
        if by_bytes and one.has_digest:
            return "read" if found == one.good else f"another result in silence: {found:.300}"
        again = one.summary(one.read())
        return "read" if found == again else f"another result when read again: {found:.300} / {again:.300}"
    except TicketryError:
        return "refused"
    except Exception as error:
        return "".join(traceback.format_exception(error)[-3:])


def in_a_fork(one: Format, first: int, end: int, seed: int, counts: np.ndarray[Any, Any], log: Path) -> int:
    """Read inputs from `first` on in a fork; return the number of the first that was not read."""
    counts[:] = 0
    pid = os.fork()
    if not pid:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            for number in range(first, end):
                became = attempt(one, number, seed)
                counts[0] += 1
                counts[_COUNTED.index(became) if became in _COUNTED else 3] += 1
                if became not in _COUNTED:
                    failed(log, one, number, became)
            code = 0
        finally:
            os._exit(code)
    why = watched(pid, counts)
    if why:
        counts[0] += 1
        counts[3] += 1
        failed(log, one, first + int(counts[0]) - 1, why)
    return first + int(counts[0])


def watched(pid: int, counts: np.ndarray[Any, Any]) -> str:
    """Wait for a fork; empty if it came to its end, else why it did not."""
    process, at, used = psutil.Process(pid), -1, 0.0
    while True:
        for _ in range(50):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return "" if code == 0 else f"the process ended with {code}"
            time.sleep(0.02)
        with contextlib.suppress(psutil.Error):
            spent = sum(process.cpu_times()[:2])
            if int(counts[0]) != at:
                at, used = int(counts[0]), spent
            elif spent - used > SECONDS:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return f"more than {SECONDS} s"


def failed(log: Path, one: Format, number: int, why: str) -> None:
    """Write down a failure, with the number of its input."""
    with log.open("a") as file:
        file.write(f"--- {one.name} {number}: {why.strip()}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all formats, those counted before among them")
    parser.add_argument("--counts", type=Path, default=Path("readers.json"), help="where they are kept")
    parser.add_argument("--only", default="", help="formats whose names have this in them")
    parser.add_argument("--seed", type=int, default=0, help="other inputs")
    parser.add_argument("--number", type=int, help="read this one input of the one format, and show what becomes of it")
    arguments = parser.parse_args()
    logging.getLogger("ticketry").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        chosen = [one for one in formats(Path(folder)) if arguments.only in one.name]
        if arguments.number is not None:
            print(attempt(chosen[0], arguments.number, arguments.seed))
            return 0
        return by_turns(chosen, arguments)


def by_turns(chosen: list[Format], arguments: argparse.Namespace) -> int:
    """Read inputs of each format in turns until there are as many as asked for."""
    path, log = arguments.counts, arguments.counts.with_suffix(".failures.txt")
    kept: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    counts: np.ndarray[Any, Any] = np.frombuffer(mmap.mmap(-1, 8 * len(_COUNTED)), np.int64)
    while sum(one["inputs"] for one in kept.values()) < arguments.inputs:
        one = min(chosen, key=lambda one: kept.get(one.name, {}).get("inputs", 0))
        known, began = Counter(kept.get(one.name, {})), time.process_time() + _of_children()
        first = int(known["inputs"])
        end = first + min(TURN, -(-arguments.inputs // len(chosen)))
        while first < end:
            first = in_a_fork(one, first, end, arguments.seed, counts, log)
            known.update(dict(zip(_COUNTED, map(int, counts), strict=True)))
        known["seconds"] = round(known["seconds"] + time.process_time() + _of_children() - began, 2)  # type: ignore[assignment]
        kept[one.name] = dict(known)
        write_atomically(path, (json.dumps(kept, indent=1, sort_keys=True) + "\n").encode())
        print(f"{one.name:24} {dict(known)}", flush=True)
    total: Counter[str] = sum((Counter(one) for one in kept.values()), Counter())
    print(f"{'all':24} {dict(total)}")
    return 1 if total["failed"] else 0


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
