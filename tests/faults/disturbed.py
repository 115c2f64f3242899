"""Commands that are killed, starved or interrupted, and the files that they must leave.

A command is run in a fork of a process that has everything imported, so that nearly all of its time is the command's
own. It works in a folder that is always called the same, since records name their store.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import pkgutil
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ticketry

TINY = [
    *("--task", "digits", "--replicates", "1", "--controls", "shuffled", "--recipe.length", "150it"),
    *("--checkpoint-seconds", "0.01", "--workers", "0", "--store", "store", "--json"),
]
TWO = ["--density", "0.5,0.2"]
NORMS = ["--task", "norms_task:norms", "--rounds", "3"]
TICKET = "store/runs/*/tickets/replicate-0-level-02"


@dataclass(frozen=True)
class Case:
    """A command, and the one that makes what it works on."""

    words: tuple[str, ...]
    before: tuple[str, ...] = ()

    @property
    def trains(self) -> bool:
        return self.words[0] in ("search", "verify", "stability")


def _search(method: str, *words: str) -> Case:
    return Case(("search", method, *TINY, *words))


def _of_a_ticket(*words: str) -> Case:
    return Case(words, before=_search("iterative", "--levels", "2", "--rewind", "3it").words)


_LAB = ["--workers", "0", "--checkpoint-seconds", "0.01", "--store", "store", "--json"]
CASES: dict[str, Case] = {
    "search iterative": _search("iterative", "--levels", "2", "--rewind", "3it"),
    "search iterative, regrouped": _search("iterative", "--levels", "1", "--structure", "regroup:4", "--rewind", "3it"),
    "search oneshot": _search("oneshot", *TWO),
    "search gradual": _search("gradual", *TWO, "--frequency", "5it"),
    "search dynamic": _search("dynamic", *TWO, "--frequency", "5it"),
    "search acdc": _search("acdc", *TWO, "--warmup", "6it", "--phase", "8it", "--end", "30it"),
    "search early": _search("early", *TWO),
    "search early, structured": _search("early", *TWO, "--structure", "channels"),
    "search regularised": _search("regularised", *TWO),
    "search l0": _search("l0", *TWO),
    "search continuous": _search("continuous", "--rounds", "2", "--gate-lr", "10", "--rewind", "10%"),
    "search stochastic": _search("stochastic", "--rounds", "2", "--gate-lr", "10"),
    "search concrete": _search("concrete", *TWO, "--objective", "loss", "--mask-length", "16it"),
    "search decorators": _search("decorators", "--density", "0.8", *NORMS),
    "verify": _of_a_ticket("verify", TICKET, "--seeds", "3", "--controls", "shuffled", *_LAB),
    "stability": Case(("stability", *TINY, "--rewinds", "0,10%", "--densities", "0.5", "--points", "3")),
    "structure": _of_a_ticket("structure", TICKET, "--to", "regroup", "--rows", "4", "-o", "structured", "--json"),
    "compile": _of_a_ticket("compile", TICKET, "-o", "model.tk", "--json"),
    "export": _of_a_ticket("export", TICKET, "--format", "pt2", "-o", "model.pt2", "--json"),
    "bench": _of_a_ticket("bench", TICKET, "--batch", "1", "--rounds", "3", "--against", "eager", "--json"),
    "report": _of_a_ticket("report", "--all", "--store", "store", "--json"),
    "store check": _of_a_ticket("store", "check", "--repair", "--store", "store", "--json"),
    "store gc": _of_a_ticket("store", "gc", "--grace-seconds", "0", "--store", "store", "--json"),
}


def preloaded() -> None:
    """Import all modules that commands import; no thread may run in a process that forks."""
    for name in ("torch.export", "torch._dynamo", "sklearn.datasets", "rich.live", "tyro"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for module in pkgutil.walk_packages(ticketry.__path__, "ticketry."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(Exception):  # of an extra that is not installed
                importlib.import_module(module.name)
    importlib.import_module("torch").set_num_threads(1)
    if threading.active_count() > 1:
        raise SystemExit("a thread runs: the process cannot be forked safely")


# -- running -----------------------------------------------------------------------------------------------------------


class Child:
    """A command in a new process group, whose output is kept in `logs`; `begin` is called in it first."""

    def __init__(
        self, words: Sequence[str], folder: Path, begin: Callable[[], None] = lambda: None, logs: Path | None = None
    ) -> None:
        self.folder, self.logs = folder, logs or folder.parent
        (self.logs / "began").unlink(missing_ok=True)
        self.began = time.monotonic()
        self.code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            self._become(list(words), begin)

    def _become(self, words: list[str], begin: Callable[[], None]) -> None:
        code = 1
        try:
            os.setsid()
            os.chdir(self.folder)
            for name, number in (("out", 1), ("err", 2)):
                os.dup2(os.open(self.logs / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            from ticketry.cli import main
            from ticketry.report import page

            (self.logs / "began").touch()
            if words[0] != "report":  # three quarters of a tiny command's time, and none of its results
                page.draw_figures = lambda makers: {}
            begin()
            code = main([str(next(iter(Path().glob(word)), word)) if "*" in word else word for word in words])
            sys.stdout.flush()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)

    def wait(self, seconds: float = 600) -> bool:
        """Whether it has ended by then; `code` is as of subprocess."""
        end = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= end:
                return False
            else:
                time.sleep(0.002)
        return True

    def signal_all(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def began_its_work(self) -> bool:
        """Whether it heeds signals by now: a fork begins without handlers."""
        return (self.logs / "began").exists()

    def read_output(self) -> tuple[str, str]:
        """Standard output and standard error."""
        return (self.logs / "out").read_text(), (self.logs / "err").read_text()


def finished(words: Sequence[str], folder: Path) -> float:
    """Run a command to its end, which must be a good one; its seconds."""
    child = Child(words, folder)
    if not child.wait():
        child.signal_all(signal.SIGKILL)
        raise AssertionError(f"{words} did not end")
    if child.code != 0:
        raise AssertionError(f"{' '.join(words)}: code {child.code}\n{child.read_output()[1]}")
    return time.monotonic() - child.began


def undisturbed(case: Case, place: Path) -> tuple[float, dict[str, str]]:
    """Prepare a case in `place`/work, keep a copy as `place`/base, run it; its seconds, and what it leaves behind."""
    work = fresh(place)
    if case.before:
        finished(case.before, work)
    shutil.rmtree(place / "base", ignore_errors=True)
    shutil.copytree(work, place / "base")
    seconds = finished(case.words, work)
    return seconds, left_behind(work)


def fresh(place: Path) -> Path:
    """An empty folder for a command, or one with what the case begins with."""
    work = place / "work"
    shutil.rmtree(work, ignore_errors=True)
    if (place / "base").exists():
        shutil.copytree(place / "base", work)
    else:
        work.mkdir(parents=True)
    return work


# -- comparing ------------------------------------------------------------------------------------------------------

# Values that differ between runs (memory, by a profiler that differs by 8 bytes now and then), and
# the seals over it.
_VARIES = re.compile(
    r"seconds|energy|created|^sha256$|^now$|^segments_|^steps_trained$|^steps_asked$|^environment$|^cost$|^memory$"
)


def left_behind(work: Path) -> dict[str, str]:
    """Every file by its path, with the digest of its content without timings; but locks, checkpoints and remains."""
    found = {}
    for path in sorted(work.rglob("*")):
        name = str(path.relative_to(work))
        if (
            path.is_dir()
            or any(is_remains(one) for one in (path, *path.parents))
            or path.name == "lock"
            or "/partial/" in name
            or "/memo/memory/" in name
        ):
            continue
        found[_plain(name)] = _digest(path)
    return found


def is_remains(path: Path) -> bool:
    """Temporary files of a killed writer."""
    return path.name.startswith(".") and path.suffix in (".tmp", ".old")


def _plain(name: str) -> str:
    """Without the moment that is in the names of some records."""
    return re.sub(r"\d{8}-\d{6}|\d{4}-\d\d-\d\d\w*", "TIME", name)


def _digest(path: Path) -> str:
    data = path.read_bytes()
    if path.name.startswith("bench-"):
        data = b""
    elif path.suffix == ".json":
        text = json.dumps(without_times(json.loads(data)), sort_keys=True)
        text = re.sub(r"--store [^ \"]+", "--store S", text)
        data = re.sub(r"--workers \d+", "--workers N", text).encode()  # records contain their command
    elif path.suffix in (".html", ".svg"):  # pages contain timings too, and are rendered from the record
        data = b""
    elif path.suffix in (".tk", ".pt2"):
        data = b""  # of these it is compared only that they are there
    return hashlib.sha256(data).hexdigest()


def without_times(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: without_times(one) for key, one in value.items() if not _VARIES.search(str(key))}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def without_pages(found: Mapping[str, str]) -> dict[str, str]:
    """Leave out HTML pages, which are neither shared nor copied: they can be written again from the records."""
    return {name: digest for name, digest in found.items() if not name.endswith(".html")}


def difference(left: Mapping[str, str], right: Mapping[str, str]) -> list[str]:
    """The files that are not alike."""
    return sorted(name for name in {*left, *right} if left.get(name) != right.get(name))
