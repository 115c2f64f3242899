"""ticketry report: the report of a run, or of several in comparison."""

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
from ticketry.errors import StoreError, UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Arguments:
    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of runs, or the beginnings of them (see `ticketry list runs`); the newest if left out. Several are
    compared on one page."""
    all: bool = False
    """All finished runs of the store."""
    store: Path = Path(".ticketry")
    """The store's folder."""
    output: Path | None = None
    """The HTML file; else report.html in the run's folder, or in the store's where there are several runs."""
    export: Path | None = None
    """A folder into which every figure (SVG and PNG) and the data (CSV) are written as well."""
    figures: bool = False
    """Write the figures of each run as SVG files into its folder as well."""
    json: bool = False
    """Print the paths as one JSON object."""


def main(words: Sequence[str]) -> int:
    """Write a report and print a summary of each of its runs."""
    description = (
        "Write one HTML file that works offline: the report of a finished run, or of several in comparison, with the "
        "verifications and studies of stability in the store that name one of them.\n\n"
        "examples: ticketry report; ticketry report iterative-digits-3f --export figures; ticketry report --all"
    )
    arguments = parse(_Arguments, words, prog="ticketry report", description=description)
    if arguments.all and arguments.runs:
        raise UsageError("name runs or give --all, not both")
    known = records(existing(arguments.store))
    chosen = sorted(known, key=_kin) if arguments.all and known else _chosen(known, arguments.runs)
    written = _write(arguments, chosen)
    if arguments.json:
        print(json.dumps({"reports": [written]}))
    return 0


def _chosen(known: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The runs that are meant, each once, in the order of the names; the newest without any."""
    if not known:
        raise StoreError("there is no finished run in this store: run `ticketry search` first")
    chosen: dict[str, dict[str, Any]] = {}
    for name in names:
        record = _named(known, name)
        chosen[str(record["run"])] = record
    return list(chosen.values()) or [known[-1]]


def _kin(record: dict[str, Any]) -> tuple[str, str, float]:
    """An order in which runs that differ little stand together: by task, method and rewind step."""
    step = (record.get("steps") or {}).get("rewind")
    return str(record["task"].get("name")), str(record.get("method")), step if isinstance(step, int) else 0


def _named(known: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The run of that name, or the only one whose name begins so."""
    matching = [record for record in known if str(record["run"]).startswith(name)]
    exact = [record for record in matching if record["run"] == name]
    if not matching:
        raise StoreError(f"no run is called {name!r}; there are {', '.join(str(r['run']) for r in known)}")
    if len(exact or matching) > 1:
        raise UsageError(
            f"{name!r} is the beginning of {len(matching)} runs: {', '.join(str(r['run']) for r in matching)}; "
            "write as much as tells them apart, name each, or give --all"
        )
    return (exact or matching)[0]


def _write(arguments: _Arguments, chosen: list[dict[str, Any]]) -> dict[str, Any]:
    from ticketry.lab.paths import Paths
    from ticketry.report import evidence_of, export, summary_lines, verdict_line, write_report

    paths, names = Paths(arguments.store), [str(record["run"]) for record in chosen]
    folder = paths.run(names[0]) if len(names) == 1 else arguments.store
    evidence = evidence_of(arguments.store, names)
    path = write_report(chosen, arguments.output or folder / "report.html", evidence=evidence)
    exported = export(chosen, arguments.export, evidence=evidence) if arguments.export else []
    drawn = chosen if arguments.figures else []
    figures = [figure for record in drawn for figure in _figures(record, paths.run(record["run"]))]
    if not arguments.json:
        for record in chosen:
            print("\n".join([record["run"]] if len(chosen) > 1 else [*summary_lines(record), ""]))
            print(f"{verdict_line(record)}\n")
        told = [("report", path), *(("figure", figure) for figure in figures), *(("export", file) for file in exported)]
        print("\n".join(f"{what}  {where}" for what, where in told))
    return {
        "run": names[0] if len(names) == 1 else None,
        "runs": names,
        "evidence": [str(record.get("name", "")) for record in evidence],
        "report": str(path),
        "figures": [str(figure) for figure in figures],
        "exported": [str(file) for file in exported],
    }


def _figures(record: dict[str, Any], folder: Path) -> list[Path]:
    """Write a run's figures into its folder."""
    from ticketry.lab.files import write_atomically
    from ticketry.report import figure_svgs

    written = []
    for name, svg in figure_svgs(record).items():
        written.append(folder / f"{name}.svg")
        write_atomically(written[-1], svg.encode())
    return written
