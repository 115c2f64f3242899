"""Runs of a store as rows of a table: what tells one from others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ticketry.cli.store import megabytes

if TYPE_CHECKING:
    from ticketry.records.run import RunRecord

NONE = "–"


def told_of(record: RunRecord | None) -> dict[str, Any]:
    """What tells a run from others: method, score, densities of its tickets, and its best mean on the test split."""
    if record is None:
        return {"method": "", "score": "", "densities": [], "best": None, "metric": "", "unit": "", "replicates": 0}
    from ticketry.report.tables.observation import best_tickets
    from ticketry.report.tables.results import Results

    results, metric = Results(record), record.task.metric
    best = best_tickets(results)
    score = record.effective_settings.get("score")
    return {
        "method": record.known_as,
        "score": score if isinstance(score, str) else "",
        "densities": [round(results.any_at(level).density, 6) for level in results.levels],
        "best": None if best is None else best.metric().mean,
        "metric": metric.words,
        "unit": metric.unit,
        "replicates": results.replicates,
    }


def run_lines(rows: Sequence[Mapping[str, Any]], *, sizes: bool) -> list[str]:
    """A table of runs with what tells them apart.

    Args:
        rows: with the keys of `run_row`, and with `sizes` also state, bytes and own_bytes.
        sizes: with the columns that a list of the whole store has.
    """
    from ticketry.core.tables import one_line
    from ticketry.report.wording import aligned

    head = ["run", "method", "score", "weights, %", "best", "n", "changed"]
    table = [[*head[:-1], *(["state", "size", "its own"] if sizes else []), head[-1]]]
    for row in rows:
        best = NONE if row["best"] is None else f"{row['best']:.4g}{row['unit'] and ' ' + row['unit']}"
        cells = [row["run"], row["method"] or NONE, row["score"] or NONE, _densities(row["densities"]), best]
        more = [row["state"], megabytes(row["bytes"]), megabytes(row["own_bytes"])] if sizes else []
        table.append(
            [one_line(str(cell)) for cell in (*cells, row["replicates"] or NONE, *more, ago(row["age_seconds"]))]
        )
    return aligned(table)


_MOST_DENSITIES = 3


def _densities(densities: Sequence[float]) -> str:
    """``20, 10``, and of many levels the first and the last."""
    words = [f"{100 * one:.3g}" for one in densities]
    if len(words) > _MOST_DENSITIES:
        return f"{words[0]} … {words[-1]} ({len(words)} levels)"
    return ", ".join(words) or NONE


def run_row(record: RunRecord, age_seconds: float) -> dict[str, Any]:
    """A row of `run_lines`."""
    return {"run": record.name, **told_of(record), "age_seconds": age_seconds}


def ago(seconds: float) -> str:
    """A time that has gone by, in its largest unit."""
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' * (count > 1)} ago"
    return "just now"
