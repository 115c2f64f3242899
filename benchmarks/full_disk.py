"""A really full disk at every write of a command, each in turn: a clear error, then the same result.

    python benchmarks/full_disk.py --positions 100 --counts full-disk.json        (needs the right to mount)

Each command works on a small tmpfs. Before its k-th write the disk is filled up to the last byte, or to the last few
pages. The command has to fail with a clear message and leave no partial file. Then there is room again, and the same
command has to reach the result of an undisturbed run: records without timings, tickets and tensors to the last byte.
k runs from the first write to the last: checkpoints, tensors, results, remembered answers, tickets, records, the page.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from faults.disturbed import CASES, Case, Child, difference, finished, fresh, left_behind, preloaded, undisturbed
from ticketry.files import write_atomically

_PAGE = 4096
_FREE_PAGES = (0, 0, 1, 40)
"""Free pages at the k-th write, in turn: none, or too few for tensors, so that a later write fails."""

_SELDOM = ("--checkpoint-seconds", "0.3")
"""Else most positions would be checkpoints."""


@contextlib.contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[None]:
    """A tmpfs; `SystemExit` where mounting is not allowed."""
    place.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    if (done := subprocess.run(words, capture_output=True, text=True, check=False)).returncode:
        raise SystemExit(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def full_at(position: int, ballast: Path, free_pages: int, told: Path) -> Callable[[], None]:
    """For a child: fill the disk before its write number `position`, and note which file that is."""

    def begin() -> None:
        count = itertools.count(1)

        def before(write: Any) -> Any:
            def instead(self: Path, *arguments: Any, **named: Any) -> Any:
                if next(count) == position:
                    told.write_text(str(self))
                    fill(ballast, free_pages)
                return write(self, *arguments, **named)

            return instead

        for name in ("write_bytes", "write_text"):
            setattr(pathlib.Path, name, before(getattr(pathlib.Path, name)))

    return begin


def fill(ballast: Path, free_pages: int) -> None:
    """Until nothing is left but so many pages."""
    left = os.statvfs(ballast.parent)
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, left.f_bfree * left.f_frsize)
        os.truncate(file.fileno(), max(left.f_bfree * left.f_frsize - free_pages * _PAGE, 0))


def kind_of(path: str) -> str:
    """Return the kind of the file that could not be written."""
    if "/tickets/" in path:
        return "ticket"
    for part in ("blobs", "results", "memo", "partial", "runs", "evidence"):
        if f"/{part}/" in path or path.startswith(f"store/{part}/"):
            return part
    return Path(path).name.strip(".").partition(".")[0]


def one(case: Case, place: Path, position: int, wanted: Mapping[str, str]) -> Counter[str]:
    """One position; nothing is counted where the command has no such write."""
    work = fresh(place / "disk")
    ballast, told = place / "disk" / "ballast", place / "told"
    told.unlink(missing_ok=True)
    free_pages = _FREE_PAGES[position % len(_FREE_PAGES)]
    child = Child(case.words, work, full_at(position, ballast, free_pages, told), logs=place)
    child.wait()
    if not told.exists():
        return Counter()
    counts = Counter({"positions": 1, f"full at {kind_of(told.read_text())}": 1})
    out, err = child.read_output()
    wrong = [f"left over: {path}" for path in work.rglob(".*.tmp")]
    ballast.unlink(missing_ok=True)
    if child.code == 0:
        counts["there was room enough"] += 1  # for a small file in the last pages, and no write after it
    elif child.code != 1 or not re.search("[Nn]o space (is )?left", err) or "Traceback" in err or out:
        wrong.append(f"code {child.code}: {err[-600:]}")
    child = Child(case.words, work)
    child.wait()
    wrong += [child.read_output()[1][-500:]] if child.code else difference(left_behind(work), wanted)
    if (work / "store").exists():
        finished(["store", "check", "--store", "store"], work)
    if wrong:
        counts["wrong"] += 1
        print(f"WRONG at {position} of {' '.join(case.words)} ({told.read_text()}): {wrong[:4]}", flush=True)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=100, help="of each command; fewer if it writes less often")
    parser.add_argument("--counts", type=Path, default=Path("full-disk.json"), help="where they are kept")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/full-disk"), help="where the disk is mounted")
    parser.add_argument("--megabytes", type=int, default=96, help="of the disk")
    parser.add_argument("--only", nargs="*", default=["search iterative", "verify"], help="commands")
    arguments = parser.parse_args()
    preloaded()
    counts = json.loads(arguments.counts.read_text()) if arguments.counts.exists() else {}
    for name in arguments.only:
        place = arguments.folder / name.replace(" ", "-")
        with small_disk(place / "disk", arguments.megabytes):
            case = replace(CASES[name], words=(*CASES[name].words, *_SELDOM))
            known = undisturbed(case, place / "disk")[1]
            for position in range(counts.get(name, {}).get("positions", 0) + 1, arguments.positions + 1):
                found = one(case, place, position, known)
                if not found:
                    break
                counts[name] = dict(Counter(counts.get(name, {})) + found)
                write_atomically(arguments.counts, (json.dumps(counts, indent=1, sort_keys=True) + "\n").encode())
        print(f"{name:28} {counts.get(name)}", flush=True)


if __name__ == "__main__":
    main()
