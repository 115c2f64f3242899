"""What `ticketry search` tells of a run that is done."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ticketry.cli.screen.next_verification import needs_trust, next_lines
from ticketry.cli.screen.timing import show
from ticketry.cli.screen.verification import summarise_verification
from ticketry.experiments.options import LabOptions
from ticketry.experiments.run_file import read_run_file
from ticketry.records.network import TICKET
from ticketry.records.schema import as_json

if TYPE_CHECKING:
    from ticketry.experiments.run import Run
    from ticketry.records.run import RunRecord

_NO_WINNER = "{}  no level looks like a winner on the validation split, so no ticket was {}"
_NAME_ONE = "; ticketry verify {} --density D{} does it for one that you name"


def tell(run: Run, report: Path) -> None:
    """Its levels, verdict and costs, and where to go from here."""
    from rich.console import Console

    from ticketry.report import (
        cost_lines,
        moment_lines,
        summary_lines,
        summary_table,
        verdict_line,
        verdict_lines,
    )

    console, record, folder = Console(), run.record, run.path
    if console.is_terminal:
        console.print(summary_table(record, console.width))
        console.print(verdict_line(record), markup=False, highlight=False)
    else:  # rich would cut the table to 80 columns
        print("\n".join([*summary_lines(record), "", verdict_line(record)]))
    if verdicts := verdict_lines(record):
        print("\n".join(["", *verdicts]))
    if costs := cost_lines(record):
        print("\n".join(["", *costs]))
    tickets, where = _tickets(run)
    lines = [
        "",
        *(f"left out {one.role} at level {one.level}: {one.why}" for one in record.left_out),
        *(f"pruned   {line}" for line in moment_lines(record)),
        *(f"cut      {line}" for line in _cut(record)),
        f"tickets  {where}",
        f"report   {report}",
        *(f"log      {line}" for line in run.logs),
        f"again    {_again(folder / 'run.toml', record)}",
        *next_lines(record, folder / "run.toml"),
        f"next     ticketry list tickets{_beside(record.store)}" + (", or in Python:" if tickets else ""),
        *(f"         tk.Ticket.load({path!r}).apply(model, 'trained')" for path in tickets[-1:]),
    ]
    print("\n".join(lines))
    sys.stdout.flush()


def tell_more(run: Run, *, verified: bool, timed: bool) -> None:
    """What a verification and a timing found, where they were asked for."""
    if verified:
        none = _NO_WINNER.format("verdict", "verified") + _NAME_ONE.format(run.name, _beside(run.record.store))
        print("\n".join(summarise_verification(run.verification) if run.verification else [none]))
    if timed and run.timing:
        print()
        show(as_json(run.timing), layers=False)
    elif timed:
        print(_NO_WINNER.format("speed  ", "timed"))


def _cut(record: RunRecord) -> list[str]:
    """A line for each ticket of gates whose mask was cut to the requested density."""
    return [
        f"replicate {one.replicate} level {one.level}: no s0 leaves {100 * one.cut_to:.3g} %; the nearest leaves"
        f" {100 * one.density:.3g} %, and the gates with the largest values were kept"
        for one in record.rounds
        if one.cut_to is not None
    ]


def _tickets(run: Run) -> tuple[list[str], str]:
    """The folders of a run's tickets, and what is said of them: a bundle without weights leaves them out."""
    found = sorted(str(point.ticket) for point in run.record.points if point.role == TICKET and point.ticket)
    folders = f"{len(found)} folder{'' if len(found) == 1 else 's'}"
    missing = len(run.tickets) - len(found)
    if not missing:
        return found, f"{run.path / 'tickets'} ({folders})"
    why = f"{missing} without weights, which a bundle left out: ticketry store pack --weights packs them"
    return found, f"{run.path / 'tickets'} ({folders}; {why})" if found else f"none in a folder ({why})"


def _beside(store: str) -> str:
    """What has to be said to a command that is to look there."""
    return "" if store == str(LabOptions.store) else f" --store {shlex.quote(store)}"


def _again(file: Path, record: RunRecord) -> str:
    """The command that answers from the store what was just trained."""
    arithmetic = {name: record.environment.get(name) for name in ("kernels", "precision", "device")}
    arithmetic["threads"] = record.environment.get("threads_per_segment")
    left_out = {"device": "cpu", "threads": 1}  # by a run file too
    said = read_run_file(file)  # of an older version it does not say them
    chosen = "".join(
        f" --{name} {word}"
        for name, word in arithmetic.items()
        if word and name not in said and word != left_out.get(name)
    )
    place, named = shlex.quote(record.store), shlex.quote(str(file))
    trust = " --trust" if needs_trust(file, record.store) else ""
    return f"ticketry search --config {named} --store {place}{chosen}{trust}"
