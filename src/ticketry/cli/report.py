"""ticketry report: write the report of a run, or a report that compares several runs."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ticketry.choices import did_you_mean
from ticketry.cli.arguments import parse
from ticketry.cli.listing import describe_run, format_runs, read_record, run_record_files
from ticketry.cli.store import require_store
from ticketry.errors import StoreError, UsageError
from ticketry.records.run import RunRecord

_LISTED = 30
"""Largest number of runs that an error message lists to choose from."""
_NAMED = 8
"""Largest number of run names that an error message names in a sentence."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Arguments:
    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of runs, or beginnings of names (see `ticketry list runs`); by default the newest run. Several runs are
    compared on one page."""
    all: bool = False
    """All finished runs of the store."""
    store: Path = Path(".ticketry")
    """The store's folder."""
    output: Path | None = None
    """The HTML file; by default report.html in the run's folder, or in the store's folder for several runs."""
    export: Path | None = None
    """Folder into which every figure (SVG and PNG) and the data (CSV) are written too."""
    figures: bool = False
    """Also write the figures of each run as SVG files into the run's folder."""
    watch: bool = False
    """Write a page that shows what the store's searches and campaigns are doing, and renew it every two seconds until
    Ctrl-C; open it in a browser."""
    json: bool = False
    """Print the paths as one JSON object."""


def main(words: Sequence[str]) -> int:
    """Run `ticketry report`: write a report, print a summary of each of its runs, and return 0."""
    description = (
        "Write one HTML file that works offline: the report of a finished run, or of several in comparison, with the "
        "verifications and studies of stability in the store that name one of them.\n\n"
        "examples: ticketry report; ticketry report iterative-digits-3f --export figures; ticketry report --all; "
        "ticketry report --watch"
    )
    arguments: _Arguments = parse(_Arguments, words, prog="ticketry report", description=description)
    if arguments.all and arguments.runs:
        raise UsageError("name runs or give --all, not both")
    if arguments.watch:
        if given := [name for name in ("runs", "all", "export", "figures", "json") if getattr(arguments, name)]:
            raise UsageError(f"--watch shows all that the store is doing: leave out {', '.join(given)}")
        return _rewrite_page_while_training(require_store(arguments.store), arguments.output)
    known = run_record_files(require_store(arguments.store))
    if not known:
        raise StoreError("there is no finished run in this store: run `ticketry search` first")
    named = list(dict.fromkeys(_find_run(known, name) for name in arguments.runs)) or [known[-1]]
    chosen = [read_record(path) for path in (known if arguments.all else named)]
    if arguments.all:  # similar runs together
        chosen.sort(key=lambda run: (run.task.name, run.method, run.steps.rewind or 0))
    written = _write_report(arguments, chosen)
    if arguments.json:
        print(json.dumps({"reports": [written]}))
    return 0


def _rewrite_page_while_training(store: Path, page: Path | None) -> int:
    """Write a report page, rewrite the page's data every two seconds until Ctrl-C, and return 0."""
    from ticketry.files import write_atomically
    from ticketry.lab.store.files import read_with_digest
    from ticketry.lab.store.store import open_store
    from ticketry.records.run import PROGRESS_FILE, PROGRESS_SECONDS
    from ticketry.report.page import render_watch
    from ticketry.report.watching import Watch, write_state

    paths = open_store(store).paths  # of a shared store: of its mirror, for what this machine does
    page = page or paths.root / "watch.html"
    script = page.with_suffix(".js")
    looking = Watch(
        lambda: paths.live_files(PROGRESS_FILE), paths.run_records, paths.campaign_records, read_with_digest
    )
    try:
        write_state(script, looking.current_state())
        write_atomically(page, render_watch(f"Searches in {paths.root.resolve().name}", script.name).encode())
        print(f"watch  {page}\nrenewed every {PROGRESS_SECONDS:g} s until Ctrl-C; open it in a browser", flush=True)
        while True:
            time.sleep(PROGRESS_SECONDS)
            write_state(script, looking.current_state())
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        raise StoreError(f"cannot write {page}: {error.strerror}; choose another place with --output") from error


def _find_run(known: Sequence[Path], name: str) -> Path:
    """Return the record file of the run with this name, or of the only run whose name starts with it."""
    matching = [path for path in known if path.parent.name.startswith(name)]
    exact = [path for path in matching if path.parent.name == name]
    if not matching:
        names = [path.parent.name for path in known]
        others = f" and {len(known) - _NAMED} older ones" if len(known) > _NAMED else ""
        near = did_you_mean(name, names)
        raise StoreError(f"no run is called {name!r}; {near}there are {', '.join(names[-_NAMED:])}{others}")
    if len(exact or matching) > 1:
        rows, unreadable = [], []
        for path in matching[-_LISTED:]:
            try:
                record, age = read_record(path), time.time() - path.stat().st_mtime
                rows.append({"run": record.name, **describe_run(record), "age_seconds": age})
            except StoreError:  # a damaged record does not hide the other candidates
                unreadable.append(f"{path.parent.name}  (its record cannot be read)")
        more = [f"and {len(matching) - _LISTED} older ones"] if len(matching) > _LISTED else []
        choice = "\n".join([*(format_runs(rows, sizes=False) if rows else []), *unreadable, *more])
        raise UsageError(
            f"{len(matching)} runs have a name that begins with {name!r}. Give one or several names, as much of each as"
            f" tells it apart, or --all:\n{choice}"
        )
    return (exact or matching)[0]


def _write_report(arguments: _Arguments, runs: list[RunRecord]) -> dict[str, Any]:
    from ticketry.cli.results import suggestion_lines
    from ticketry.evidence.level_verdicts import recompute_verdicts
    from ticketry.lab.store.paths import Paths
    from ticketry.report import read_evidence_about_runs, summary_lines, verdict_line, verdict_lines, write_report

    paths, names = Paths(arguments.store), [run.name for run in runs]
    folder = paths.run(names[0]) if len(names) == 1 else arguments.store
    evidence = read_evidence_about_runs(arguments.store, names)
    path = write_report(runs, arguments.output or folder / "report.html", evidence=evidence)
    exported = []
    if arguments.export:
        from ticketry.report.exporting import export

        exported = export(runs, arguments.export, evidence=evidence)
    drawn = runs if arguments.figures else []
    figures = [figure for run in drawn for figure in _write_figures(run, paths.run(run.name))]
    if not arguments.json:
        for run in runs:
            shown = recompute_verdicts(run)
            lines = [*verdict_lines(shown), *suggestion_lines(shown, paths.run(run.name) / "run.toml")]
            print("\n".join([run.name] if len(runs) > 1 else [*summary_lines(run), ""]))
            print("\n".join([verdict_line(run), *(["", *lines] if lines else []), ""]))
        files = [
            ("report", path),
            *(("figure", figure) for figure in figures),
            *(("export", file) for file in exported),
        ]
        print("\n".join(f"{what}  {where}" for what, where in files))
    return {
        "run": names[0] if len(names) == 1 else None,
        "runs": names,
        "evidence": [str(record.get("name", "")) for record in evidence],
        "report": str(path),
        "figures": [str(figure) for figure in figures],
        "exported": [str(file) for file in exported],
    }


def _write_figures(run: RunRecord, folder: Path) -> list[Path]:
    """Write a run's figures as SVG files into `folder`, and return their paths."""
    from ticketry.files import join_inside
    from ticketry.lab.store.files import write_atomically
    from ticketry.report.figures import figure_svgs

    written = []
    for name, svg in figure_svgs(run).items():
        written.append(join_inside(folder, f"{name}.svg"))
        write_atomically(written[-1], svg.encode())
    return written
