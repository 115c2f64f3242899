"""A bit flipped in a store, `store check --repair`, and the same commands again: is all as if nothing had happened?

    python benchmarks/repairs.py --flips 2000 --counts repairs.json

A search and a verification are done once. Then, again and again, in a copy of their store one bit of one file is
flipped, each kind of file in turn. `store check` has to find it, `store check --repair` to leave a sound store or to
name the file (of another format, as a flipped number says), and the same search and verification to end with what they
came to at first: records without timings, tickets and tensors to the last byte. A repair of a file leaves the same
store for any flipped bit: on stores whose files are alike to the last byte (but for what was set aside,
which no command reads) the search and the verification run once, which is nearly all of the time. These run in forks,
which saves the seconds of importing; checks and repairs in this process. The counts are kept after each flip: the same
command resumes and adds to them.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from faults.disturbed import CASES, difference, finished, fresh, left_behind, preloaded
from flips import FILES, flip
from ticketry.cli import main as main_of_commands
from ticketry.files import write_atomically

CHECK = ["store", "check", "--store", "store"]


COMMANDS = tuple(
    tuple("60" if before == "--checkpoint-seconds" else word for before, word in zip(("", *words), words, strict=False))
    for words in (CASES["verify"].before, CASES["verify"].words)
)
"""A search and a verification, without the checkpoint at each step that they have where they are killed."""


class Trials:
    """Flips in copies of one store, and what the commands came to after repairs that left the same files."""

    def __init__(self, place: Path, wanted: dict[str, str], seed: int) -> None:
        self.place, self.wanted, self.draw = place, wanted, random.Random(seed)
        self.became: dict[str, list[str]] = {}
        """Digest of a repaired store -> what was wrong after the commands, each run once per such store."""

    def flip(self, pattern: str) -> tuple[Counter[str], list[str]]:
        """Flip one bit in a file of a kind; what was counted, and what was wrong."""
        counts, work = Counter({"flips": 1}), linked(self.place)
        path = self.draw.choice(sorted((work / "store").glob(pattern)))
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
        flip(path, self.draw.randrange(path.stat().st_size), self.draw.randrange(8))
        words = ("store", "check", "--store", str(work / "store"))
        counts["found by check"] += run_command(*words)[0] == 1
        code, text = run_command(*words, "--repair")
        if code:  # such as a store of another format: unchanged, and the error names the file
            named = path.name in text and "Traceback" not in text
            counts["named by --repair"] += named
            return counts, [] if named else [f"{path.relative_to(work)}: {text[-500:]}"]
        state = digest_of_files(work)
        if state not in self.became:
            counts["repaired stores that the commands ran on"] += 1
            self.became[state] = self.commands(work)
        wrong = self.became[state]
        counts["identical"] += not wrong
        return counts, [f"{path.relative_to(work)}: {one}" for one in wrong]

    def commands(self, work: Path) -> list[str]:
        """Return the errors after the check, the search and the verification."""
        try:
            for words in (CHECK, *COMMANDS):
                finished(words, work)
        except AssertionError as error:
            return [str(error)]
        shutil.rmtree(work / "store" / "damaged", ignore_errors=True)  # what was set aside
        return difference(left_behind(work), self.wanted)


def linked(place: Path) -> Path:
    """The working folder with what the base has: the same files under other names. Commands write by renaming."""
    work = place / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(place / "base", work, copy_function=os.link)
    return work


def run_command(*words: str) -> tuple[int, str]:
    """The exit code of a command, and what it prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        return main_of_commands(list(words)), text.getvalue()


def digest_of_files(folder: Path) -> str:
    """Return a digest of the names and contents of all files: commands on equal folders do the same.

    But of those that were set aside, which differ by the bit, and which nothing reads.
    """
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_relative_to(folder / "store" / "damaged"):
            found.update(f"{path.relative_to(folder)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=2000, help="in all, those counted before among them")
    parser.add_argument("--counts", type=Path, default=Path("repairs.json"), help="where they are kept")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/repairs"), help="where commands work; in memory")
    parser.add_argument("--seed", type=int, default=os.getpid())
    arguments = parser.parse_args()
    preloaded()
    place = arguments.folder
    counts = json.loads(arguments.counts.read_text()) if arguments.counts.exists() else {}
    shutil.rmtree(place, ignore_errors=True)
    for words in COMMANDS:
        finished(words, fresh(place) if words is COMMANDS[0] else place / "work")
    wanted = left_behind(place / "work")
    shutil.copytree(place / "work", place / "base")
    base = digest_of_files(place / "base")
    kinds = [pattern for pattern in FILES if any((place / "base" / "store").glob(pattern))]
    trials = Trials(place, wanted, arguments.seed)
    while sum(one["flips"] for one in counts.values()) < arguments.flips:
        kind = min(kinds, key=lambda one: counts.get(one, {}).get("flips", 0))
        more, wrong = trials.flip(kind)
        counts[kind] = dict(Counter(counts.get(kind, {})) + more)
        write_atomically(arguments.counts, (json.dumps(counts, indent=1, sort_keys=True) + "\n").encode())
        if wrong:
            print(f"NOT IDENTICAL {wrong[:5]}", flush=True)
    if digest_of_files(place / "base") != base:
        raise SystemExit("a command wrote into a file that was there, and so into the base of all trials")
    total: Counter[str] = sum((Counter(one) for one in counts.values()), Counter())
    for kind, one in counts.items():
        print(f"{kind:40} {one}")
    print(f"{'all':40} {dict(total)}")
    return 0 if total["identical"] + total["named by --repair"] == total["flips"] else 1


if __name__ == "__main__":
    sys.exit(main())
