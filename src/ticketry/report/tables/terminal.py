"""Format the results of a run for the terminal, as plain lines or as a rich table."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ticketry.records.network import DENSE, TICKET, ratio_or_none
from ticketry.records.run import RunValues, read_run
from ticketry.records.verdict import LevelVerdict
from ticketry.report.tables.frontier import measure_limited_by_budget, relative_call_cost
from ticketry.report.tables.observation import describe_highlighted_level
from ticketry.report.tables.results import Group, Results, results_of
from ticketry.report.wording import (
    NONE,
    Style,
    align_columns,
    metric_label,
    percent,
    printable,
    probability_text,
    summary_label,
)

if TYPE_CHECKING:
    from rich.table import Table


def verdict_line(record: RunValues) -> str:
    """Return one or two sentences about a run's means (its observation), as a single line."""
    return describe_highlighted_level(results_of(record)).text


def summary_lines(record: RunValues) -> list[str]:
    """Return a plain-text table of the test results as lines: a title, the header, and a line for each level."""
    title, header, rows = summary_cells(record)
    return [title, *align_columns([header, *rows], str.rjust)]


def summary_cells(record: RunValues) -> tuple[str, list[str], list[list[str]]]:
    """Return the table of test results as title, header, and cells of each level."""
    results = results_of(record)
    return _table_title(results), *_table_cells(results)


def summary_table(record: RunValues, width: int | None = None) -> Table:
    """Return the table of test results for a rich console; columns beyond `width` are only named below the table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text  # Text is not parsed as rich's markup

    results = results_of(record)
    header, rows = _table_cells(results)
    # Tight, with headers on two lines: tickets, three controls and dense fit into 80 columns, beside one for the
    # remaining weights or, for a budget, the remaining cost.
    if (place := header.index(_WEIGHTS)) > 1:
        for row in (header, *rows):
            del row[place]
    header, rows, omitted = _drop_wide_columns(header, rows, width)
    table = Table(
        title=Text(_table_title(results)), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=0
    )
    for name in header:
        table.add_column(Text(name.replace(" ", "\n")), justify="right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    if omitted:
        table.caption, table.caption_justify = Text(f"no room for: {', '.join(omitted)}"), "left"
    return table


def _drop_wide_columns(
    header: list[str], rows: list[list[str]], width: int | None
) -> tuple[list[str], list[list[str]], list[str]]:
    """Omit columns until the table fits, controls from the last to the first, then dense.

    Return the header, the rows, and the names of the omitted columns.
    """
    every = header
    for name in (*reversed(header[header.index("tickets") + 1 : -1]), header[-1]):
        cells = zip(*rows, strict=True)
        widths = [max(map(len, (*title.split(), *column))) for title, column in zip(header, cells, strict=True)]
        if width is None or sum(widths) + len(widths) - 1 <= width:
            break
        at = header.index(name)
        header, *rows = [[*row[:at], *row[at + 1 :]] for row in (header, *rows)]
    return header, rows, [name for name in every if name not in header]


def verdict_lines(record: RunValues) -> list[str]:
    """Return a plain-text table of the verdicts, with a line for each level; empty without verdicts."""
    results = results_of(record)
    verdicts = results.run.verdicts
    if not verdicts:
        return []
    style, first = Style.for_results(results), verdicts[0]
    head = (
        *("level", "weights remaining", "verdict", "minus dense", f"{percent(first.confidence, 0)} % interval"),
        *(f"P(> {style.format_number(-first.margin)})", "replicates needed"),
    )
    table = [
        (
            *(str(one.level), f"{percent(one.density)} %", one.verdict),
            *(style.format_number(one.difference, sign=True), style.format_interval(one.interval)),
            *(probability_text(one.probability), _replicates_needed(one)),
        )
        for one in verdicts
    ]
    title = f"verdicts, corrected for {len(verdicts)} level{'s' if len(verdicts) > 1 else ''}"
    return [title, *align_columns([head, *table], str.rjust)]


def _replicates_needed(one: LevelVerdict) -> str:
    """Return how many replicates in total would likely decide a level; a dash if it is decided."""
    if one.decided:
        return NONE
    return "too many" if one.more_seeds is None else f"about {one.n + one.more_seeds}"


def pruning_moment_lines(record: RunValues) -> list[str]:
    """Return a line for each level that says when each replicate was pruned: ``level 1 at step 118 (detected)``."""
    levels: dict[int, list[str]] = {}
    for point in sorted(read_run(record).points, key=lambda point: point.replicate):
        if point.moment:
            how = "detected" if point.moment.detected else "the latest allowed"
            levels.setdefault(point.level, []).append(f"{point.moment.step} ({how})")
    return [f"level {level} at step {', '.join(steps)}" for level, steps in sorted(levels.items())]


def _table_title(results: Results) -> str:
    count = f", n = {results.replicates}" if results.run.points else ""
    return f"{metric_label(results.run.task.metric)} on the test set: {summary_label(results.run.task.metric)}{count}"


def _table_cells(results: Results) -> tuple[list[str], list[list[str]]]:
    style = Style.for_results(results)
    roles = [TICKET, *results.controls]
    asked = measure_limited_by_budget(results)
    controls = [printable(role).replace("_", " ") for role in roles[1:]]
    header = ["level", *([_HEADERS[asked.name]] if asked else []), _WEIGHTS, "tickets", *controls, "dense"]
    usual = results.replicates
    dense = _summary_text(style, results.dense, usual)
    rows = []
    for level in results.levels:
        cells = [_summary_text(style, results.group(level, role), usual) for role in roles]
        shown = results.tickets_or_control_at(level)
        cost = relative_call_cost(results, shown, asked) if asked else None
        share = [NONE if cost is None else f"{percent(cost)} %"] if asked else []
        rows.append([str(level), *share, f"{percent(shown.density)} %", *cells, dense])
    return header, rows or [["0", *(["100.0 %"] if asked else []), "100.0 %", *([NONE] * len(roles)), dense]]


_WEIGHTS = "weights remaining"
_HEADERS = {"time": "time", "multiplications": "FLOPs"}
"""Table headers of the cost of a call relative to the dense network, by measure."""


def _summary_text(style: Style, group: Group | None, usual: int) -> str:
    """Format a group's mean and spread: ``96.23 ± 0.41``; add the number of replicates if it is not `usual`."""
    if group is None:
        return NONE
    summary = group.metric()
    return style.format_summary(summary) + (f" ({summary.n})" if summary.n != usual else "")


def relative_costs(record: RunValues) -> list[dict[str, Any]]:
    """Return a dict of costs for each ticket with recorded training phases; search and dense training are included.

    ``replicate`` and ``level`` identify the ticket. Its costs are ``steps``, ``flops``, ``memory`` (the peak over all
    training steps; scoring is not measured), ``own_memory`` (the peak with the ticket's own mask) and ``seconds``. All
    but ``seconds`` are relative to the dense training of the same replicate. An unknown cost is None.
    """
    points = read_run(record).points
    dense = {point.replicate: point.phases.dense for point in points if point.role == DENSE and point.phases}
    found = []
    for point in points:
        if point.role == TICKET and point.phases and point.replicate in dense:
            whole, base, sparse = point.phases.total, dense[point.replicate], point.phases.sparse
            found.append(
                {
                    "replicate": point.replicate,
                    "level": point.level,
                    "steps": ratio_or_none(whole.steps, base.steps),
                    "flops": ratio_or_none(whole.flops, base.flops),
                    "memory": ratio_or_none(whole.memory, base.memory),
                    "own_memory": ratio_or_none(sparse.memory or None, base.memory),
                    "seconds": None if whole.seconds is None else round(whole.seconds, 3),
                }
            )
    return found


def cost_lines(record: RunValues) -> list[str]:
    """Return a plain-text table of mean `relative_costs`, with a line for each level; empty without costs."""
    found = relative_costs(record)
    if not found:
        return []
    densities: dict[int, list[float]] = {}
    for point in read_run(record).points:
        if point.role == TICKET:
            densities.setdefault(point.level, []).append(point.density)
    table: list[tuple[str, ...]] = [("level", "weights remaining", "steps", "FLOPs", "memory", "its own", "seconds")]
    for level, several in sorted(densities.items()):
        own = [one for one in found if one["level"] == level]
        times = [
            _mean_with_unit([one[name] for one in own], " x") for name in ("steps", "flops", "memory", "own_memory")
        ]
        table.append(
            (
                str(level),
                f"{percent(fmean(several))} %",
                *times,
                _mean_with_unit([one["seconds"] for one in own], ""),
            )
        )
    title = "costs of tickets, search included (x: of dense; memory: peak of training steps)"
    return [title, *align_columns(table, str.rjust)]


def _mean_with_unit(values: Sequence[float | None], unit: str) -> str:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return NONE
    mean = sum(known) / len(known)
    return f"{mean:,.0f}{unit}" if mean >= 100 else f"{mean:.2f}{unit}"
