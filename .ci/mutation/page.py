"""The page research/mutation.md, from results."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

HEAD = """# Mutation testing

`make mutation` makes small wrong changes (mutants) in the modules that everything rests on, one at a time: a comparison
turned round or moved by one, `and` for `or`, another operator, a number one up or down, an argument or a decorator left
out, a statement left out, a result of None. A mutant is *killed* if a test of the module then fails, or takes five
times as long and {seconds:g} s. One that *survived* shows what no test checks, or a change that changes nothing.

Not mutated: annotations, docstrings, imports, and the words of errors. The modules and the tests that go with each are
in `.ci/mutation/config.toml`, results in `.ci/mutation/results/`; a run goes on where the last one was stopped, and
begins a module anew whose source has changed. `make mutation ONLY=core/mask MINUTES=30` does a part, `SAMPLE=60` tries
so many of each module, drawn at random, `AGAIN=--again` tries what survived once more. Why some need not be noticed is
in `.ci/mutation/survivors.toml`.
"""


class Module(Protocol):
    """The figures of a module that the page shows."""

    fates: dict[str, str]
    date: str

    @property
    def name(self) -> str: ...

    def all(self) -> Sequence[Any]: ...


def page(modules: Iterable[Module], reasons: Sequence[dict[str, str]], *, seconds: float, version: int) -> str:
    """Markdown: a row for each module, then the survivors.

    Args:
        reasons: rows of ``module``, ``change`` (a part of the mutant's words) and ``why`` nothing needs to notice it.
        seconds: what a mutant may take beside five times the tests' own time.
        version: of the kinds of mutants.
    """
    rows, lists, sums = [], [], Counter[str]()
    for module in modules:
        made = len(module.all())
        counts = Counter(module.fates.values())
        alive = {title: fate for title, fate in module.fates.items() if fate in ("survived", "unreached")}
        told = {title: why for title in alive if (why := _reason(module.name, title, reasons))}
        sums.update(made=made, tried=len(module.fates), killed=counts["killed"] + counts["late"], told=len(told))
        rows.append(_row(f"`{module.name}`", made, len(module.fates), len(alive), len(told), module.date))
        if alive:
            lines = [f"- line {title}: {told.get(title) or fate}" for title, fate in alive.items()]
            lists.append("\n".join([f"### `{module.name}`", "", *lines, ""]))
    whole = _row("together", sums["made"], sums["tried"], sums["tried"] - sums["killed"], sums["told"], "")
    table = [
        "| module | mutants | tried | killed | survived | of these, without harm | killed, of those with harm | date |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        whole,
    ]
    measured = f"Driver version {version}, Python {platform.python_version()}."
    parts = [HEAD.format(seconds=seconds), measured, "", *table, "", "## Survivors", "", *lists]
    return "\n".join(parts).rstrip() + "\n"


def _row(name: str, made: int, tried: int, alive: int, told: int, date: str) -> str:
    killed, harmful = tried - alive, tried - told
    share = f"{100 * killed / harmful:.0f} %" if harmful else ""
    return f"| {name} | {made} | {tried} | {killed} | {alive} | {told} | {share} | {date} |"


def _reason(module: str, title: str, reasons: Sequence[dict[str, str]]) -> str:
    return next((r["why"] for r in reasons if r["module"] in (module, "*") and r["change"] in title), "")
