"""Mutation testing: whether the tests notice small wrong changes in the modules that everything rests on.

Each mutant runs in a fork of a process that has imported torch and pytest already, with the tests that reach the
changed line, the quickest first, until one fails. One that they let live has to pass all tests of its module before it
counts as survived. Results are kept as they come (results/MODULE.json), so that a run may be stopped at any time and
goes on later; those of a module whose source has changed are made anew.

mutmut leaves functions with decorators alone, which half of the functions here are; cosmic-ray starts Python, torch and
pytest anew for each mutant, which takes ten times as long.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT / "src"), str(HERE)]

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import scipy.stats  # noqa: E402, F401  # slow to import: forks have it
import torch  # noqa: E402, F401
from mutants import Mutant, mutants  # noqa: E402
from page import page  # noqa: E402

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VERSION = 1
"""Version of the kinds of mutants: raised when they change, so that everything is measured again."""
SECONDS = 20.0
"""CPU time that a mutant may take beside five times what its tests take; one that takes longer is killed by that."""


# -- in a fork ---------------------------------------------------------------------------------------------------------


class Changed(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from a changed syntax tree."""

    def __init__(self, path: Path, tree: Any) -> None:
        name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        self.name, self.path, self.tree = name.removesuffix(".__init__"), path, tree

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        inside = [str(self.path.parent)] if self.path.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            fullname, self.path, loader=self, submodule_search_locations=inside
        )

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = compile(self.tree, str(self.path), "exec")
        return code

    def get_filename(self, fullname: str) -> str:
        return str(self.path)

    def get_data(self, path: str | bytes) -> bytes:
        return Path(os.fsdecode(path)).read_bytes()

    def exec_module(self, module: ModuleType) -> None:
        exec(self.get_code(self.name), module.__dict__)


class Plugin:
    """Hypothesis draws the same examples for each mutant and does not shrink failures."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        shared = hypothesis.settings.get_profile("shared")
        hypothesis.settings.register_profile("mutants", parent=shared, phases=phases, derandomize=True, database=None)
        hypothesis.settings.load_profile("mutants")


class Reach(Plugin):
    """Which lines of some modules each test reaches, and how long it takes."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = {str(path) for path in paths}
        self.lines: dict[str, dict[str, set[int]]] = {}
        """By test, then by module; "" is what importing reaches."""
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self.now = self._begin("")
        sys.settrace(self._call)

    def _begin(self, test: str) -> dict[str, set[int]]:
        return self.lines.setdefault(test, {path: set() for path in self.paths})

    def _call(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        return self._line if frame.f_code.co_filename in self.paths else None

    def _line(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
        self.now[frame.f_code.co_filename].add(frame.f_lineno)
        return self._line

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.now = self._begin(item.nodeid)
        begin = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - begin
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(f"{report.nodeid}: {str(report.longrepr)[-2000:]}")


def forked(work: Callable[[], int], cpu_seconds: float) -> int:
    """The status that `work` ends with in a fork; the number of a signal, negative, if it was ended by one."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            limit = int(cpu_seconds) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
            resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
            nothing = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nothing, stream)
            code = work()
        finally:
            os._exit(code)
    end = time.monotonic() + 15 * cpu_seconds + 60  # one that waits uses no CPU time
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.01)


def tests(arguments: Sequence[str], plugin: object) -> int:
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = os.environ["PYTEST_DEBUG_TEMPROOT"] = folder
        options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
        return int(pytest.main([*options, "-m", "not slow", *arguments], plugins=[plugin]))


@functools.cache
def reach(paths: tuple[Path, ...], wanted: tuple[str, ...]) -> dict[str, Any]:
    """Run the tests of the unchanged modules, which must pass, and return what `Reach` recorded."""
    with tempfile.TemporaryDirectory(prefix="reach-") as folder:
        told = Path(folder) / "told"

        def work() -> int:
            plugin = Reach(paths)
            code = tests(wanted, plugin)
            lines = {
                name: {path: sorted(each) for path, each in found.items() if each}
                for name, found in plugin.lines.items()
            }
            told.write_text(json.dumps({"lines": lines, "seconds": plugin.seconds, "failed": plugin.failed}))
            return code

        code = forked(work, 3600)
        found: dict[str, Any] = json.loads(told.read_text()) if told.exists() else {}
        if code != 0:
            why = "\n".join(found.get("failed", []))
            sys.exit(f"{', '.join(wanted)}: tests fail without any mutant (status {code})\n{why}")
        return found


# -- a module ----------------------------------------------------------------------------------------------------------


@dataclass
class Module:
    """A module, its tests, and what has become of its mutants so far."""

    path: Path
    tests: list[str]
    together: tuple[Path, ...]
    """The modules with the same tests, itself among them."""
    fates: dict[str, str] = field(default_factory=dict)
    """Mutant's title -> killed, late (killed by its time), survived or unreached (no test reaches it)"""
    date: str = ""

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT / "src" / "ticketry"))

    @property
    def results(self) -> Path:
        return HERE / "results" / (self.name.removesuffix(".py").replace("/", ".") + ".json")

    @property
    def state(self) -> str:
        """Digest of the source and of the kinds of mutants: where it differs, results are of no use."""
        return hashlib.sha256(f"{VERSION}\n{self.path.read_text(encoding='utf-8')}".encode()).hexdigest()[:16]

    def load(self) -> None:
        if self.results.exists():
            known = json.loads(self.results.read_text(encoding="utf-8"))
            if known["state"] == self.state:
                made = {mutant.title for mutant in self.all()}
                self.fates = {title: fate for title, fate in known["fates"].items() if title in made}
                self.date = known["date"]

    def save(self) -> None:
        self.date = datetime.date.today().isoformat()
        self.results.parent.mkdir(exist_ok=True)
        whole = {"module": self.name, "state": self.state, "date": self.date, "fates": self.fates}
        new = self.results.with_suffix(".new")
        new.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        new.replace(self.results)

    def all(self) -> list[Mutant]:
        return list(mutants(self.path.read_text(encoding="utf-8")))

    def run(self, again: bool, deadline: float, sample: int | None = None) -> None:
        """Try what was not tried yet; with `again` what survived first; with `sample` until so many are tried in all.

        A sample is drawn at random, from the module's name, so that one that goes on is the larger sample.
        """
        alive = [mutant for mutant in self.all() if self.fates.get(mutant.title) in ALIVE] if again else []
        new = [mutant for mutant in self.all() if mutant.title not in self.fates]
        if sample is not None:
            random.Random(self.name).shuffle(new)
            new = new[: max(0, sample - len(self.fates))]
        left = [*alive, *new]
        if not left or time.monotonic() > deadline:
            return
        reached_by = reach(self.together, tuple(self.tests))
        for number, mutant in enumerate(left):
            if time.monotonic() > deadline:
                return
            self.fates[mutant.title] = fate = self._fate(mutant, reached_by)
            self.save()
            if fate in ALIVE:
                print(f"{self.name} {number + 1}/{len(left)} {fate}: {mutant.title}", flush=True)

    def _fate(self, mutant: Mutant, reached_by: dict[str, Any]) -> str:
        seconds: dict[str, float] = reached_by["seconds"]
        wanted, path = set(range(mutant.line, mutant.last + 1)), str(self.path)
        lines = {name: wanted & set(found.get(path, ())) for name, found in reached_by["lines"].items()}
        reached = sorted((name for name in seconds if lines[name]), key=lambda name: seconds[name])
        at_import = bool(lines[""])
        finder = Changed(self.path, mutant.tree)

        def work(names: Sequence[str]) -> Callable[[], int]:
            def run() -> int:
                sys.meta_path.insert(0, finder)
                return tests(names, Plugin())

            return run

        if not reached and not at_import:
            return "unreached"
        rounds = [reached, self.tests] if reached else [self.tests]
        for names in rounds:
            known = sum(seconds[name] for name in names if name in seconds) or sum(seconds.values())
            code = forked(work(names), 5 * known + SECONDS)
            if code < 0:
                return "late"
            if code != 0:
                return "killed"
        return "survived"


ALIVE = {"survived", "unreached"}


def modules() -> Iterator[Module]:
    """The modules of config.toml."""
    rows = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))["module"]
    paths = [(path, row["tests"]) for row in rows for path in sorted(ROOT.glob(row["path"]))]
    for path, wanted in paths:
        found = Module(path, wanted, tuple(other for other, its in paths if its == wanted))
        found.load()
        yield found


# -- the command -------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="modules, by a part of their paths; all if left out")
    parser.add_argument("--again", action="store_true", help="try what survived once more, after tests were added")
    parser.add_argument("--sample", type=int, help="try this many of each module's, drawn at random")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time")
    asked = parser.parse_args()
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = str(ROOT / "src")
    deadline = time.monotonic() + 60 * asked.minutes
    for module in modules():
        if not asked.only or any(part in module.name for part in asked.only):
            module.run(asked.again, deadline, asked.sample)
    reasons = tomllib.loads((HERE / "survivors.toml").read_text(encoding="utf-8"))["survivor"]
    text = page(modules(), reasons, seconds=SECONDS, version=VERSION)
    (ROOT / "research" / "mutation.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
