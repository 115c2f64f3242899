"""ticketry report: a run's report again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ticketry.cli.arguments import parse
from ticketry.cli.listing import records
from ticketry.cli.store import existing
from ticketry.errors import StoreError


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Arguments:
    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of runs, or the beginnings of them (see `ticketry list runs`); the newest if left out."""
    store: Path = Path(".ticketry")
    """The store's folder."""
    figures: bool = False
    """Write the figures as SVG files beside each report as well."""
    json: bool = False
    """Print the paths as one JSON object."""


def main(words: Sequence[str]) -> int:
    """Write reports and print a summary of each."""
    description = (
        "Write the report (one HTML file that works offline) of finished runs again.\n\n"
        "examples: ticketry report; ticketry report iterative-digits --figures"
    )
    arguments = parse(_Arguments, words, prog="ticketry report", description=description)
    found = _chosen(records(existing(arguments.store)), arguments.runs)
    written = [_write(arguments, record) for record in found]
    if arguments.json:
        print(json.dumps({"reports": written}))
    return 0


def _chosen(known: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    if not known:
        raise StoreError("there is no finished run in this store: run `ticketry search` first")
    chosen = []
    for name in names:
        matching = [record for record in known if str(record["run"]).startswith(name)]
        if not matching:
            raise StoreError(f"no run is called {name!r}; there are {', '.join(str(r['run']) for r in known)}")
        chosen += matching
    return chosen or [known[-1]]


def _write(arguments: _Arguments, record: dict[str, Any]) -> dict[str, Any]:
    from ticketry.lab.files import write_atomically
    from ticketry.lab.paths import Paths
    from ticketry.report import figure_svgs, summary_lines, verdict_line, write_report

    folder = Paths(arguments.store).run(record["run"])
    path = write_report(record, folder / "report.html")
    figures = []
    for name, svg in figure_svgs(record).items() if arguments.figures else ():
        figures.append(folder / f"{name}.svg")
        write_atomically(figures[-1], svg.encode())
    if not arguments.json:
        lines = [*summary_lines(record), "", verdict_line(record), "", f"report  {path}"]
        print("\n".join([*lines, *(f"figure  {figure}" for figure in figures)]))
    return {"run": record["run"], "report": str(path), "figures": [str(figure) for figure in figures]}
