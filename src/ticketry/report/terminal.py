"""The results of a run as a table for the terminal: plain lines, or a table of rich."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ticketry.report.aggregate import Group, Results
from ticketry.report.observation import observe
from ticketry.report.record import TICKET, read
from ticketry.report.wording import NONE, Style, clean, metric_label, percent, summary_label

if TYPE_CHECKING:
    from rich.table import Table


def verdict_line(record: Mapping[str, Any]) -> str:
    """What was observed, in plain sentences on one line.

    Raises:
        StoreError: if the record is malformed.
    """
    return observe(Results(read(record))).text


def summary_lines(record: Mapping[str, Any]) -> list[str]:
    """A plain-text table of the test results: a line that says what is shown, the header, then a line a level.

    Raises:
        StoreError: if the record is malformed.
    """
    results = Results(read(record))
    header, rows = _cells(results)
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = ["  ".join(map(str.rjust, row, widths)) for row in (header, *rows)]
    return [_title(results), *lines]


def summary_table(record: Mapping[str, Any]) -> Table:
    """The table of `summary_lines` for a rich console.

    Raises:
        StoreError: if the record is malformed.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text  # as Text, no cell is read as rich's markup

    results = Results(read(record))
    header, rows = _cells(results)
    # Tight, with headers on two lines: tickets, three controls and dense fit into 80 columns.
    table = Table(title=Text(_title(results)), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for name in header:
        table.add_column(Text(name.replace(" ", "\n")), justify="right", no_wrap=True, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def moment_lines(record: Mapping[str, Any]) -> list[str]:
    """When a detector let each network be pruned, a line a level: ``level 1 at step 118 (detected), 236 (latest)``."""
    levels: dict[int, list[str]] = {}
    for point in sorted(record["points"], key=lambda point: point["replicate"]):
        if moment := point.get("moment"):
            how = "detected" if moment["detected"] else "the latest allowed"
            levels.setdefault(point["level"], []).append(f"{moment['step']} ({how})")
    return [f"level {level} at step {', '.join(steps)}" for level, steps in sorted(levels.items())]


def _title(results: Results) -> str:
    count = f", n = {_usual(results)}" if results.run.points else ""
    return f"{metric_label(results.run.task.metric)} on the test set: {summary_label(results.run.task.metric)}{count}"


def _usual(results: Results) -> int:
    """How many replicates there are of whatever is complete."""
    return len({point.replicate for point in results.run.points})


def _cells(results: Results) -> tuple[list[str], list[list[str]]]:
    style = Style.of(results)
    roles = [TICKET, *results.controls]
    header = ["level", "weights remaining", "tickets", *(clean(role).replace("_", " ") for role in roles[1:]), "dense"]
    usual = _usual(results)
    dense = _cell(style, results.dense, usual)
    rows = []
    for level in results.levels:
        cells = [_cell(style, results.group(level, role), usual) for role in roles]
        rows.append([str(level), f"{percent(results.any_at(level).density)} %", *cells, dense])
    return header, rows or [["0", "100.0 %", *([NONE] * len(roles)), dense]]


def _cell(style: Style, group: Group | None, usual: int) -> str:
    """``96.23 ± 0.41``: mean and standard deviation; with ``(2)`` where other than the usual number of replicates."""
    if group is None:
        return NONE
    summary = group.metric()
    return style.summary(summary) + (f" ({summary.n})" if summary.n != usual else "")
