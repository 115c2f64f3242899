"""What the weights of a run's masks are removed by: one by one, in groups of rows, N of M, in channels."""

from __future__ import annotations

from collections.abc import Sequence

from ticketry.report.aggregate import Results
from ticketry.report.record import TICKET
from ticketry.report.subject import labels_of
from ticketry.report.wording import clean

UNSTRUCTURED = "unstructured"


def granularity(results: Results) -> str:
    """In words, from what the tickets or the settings tell; ``unstructured`` where nothing is told."""
    for group in results.of_role(TICKET):
        for point in group.points.values():
            if point.structure is not None:
                return clean(point.structure.name)
    settings = results.run.settings
    if settings.get("structured") is True:
        return "channels in the search"
    pattern = settings.get("pattern")
    return f"pattern {clean(pattern)}" if isinstance(pattern, str) and pattern != UNSTRUCTURED else UNSTRUCTURED


def series_names(runs: Sequence[Results]) -> tuple[str, ...]:
    """A name of each run: its granularity, and what tells it from others where several have the same."""
    kinds = [granularity(results) for results in runs]
    if len(set(kinds)) == len(kinds):
        return tuple(kinds)
    labels = labels_of(runs)
    return tuple(
        kind if kinds.count(kind) == 1 else f"{kind} ({label})" for kind, label in zip(kinds, labels, strict=True)
    )
