"""Show run records and evidence: as a self-contained HTML page, figures, tables and CSV files."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ticketry.report.subject import read_evidence_about_runs
from ticketry.report.tables.terminal import (
    cost_lines,
    pruning_moment_lines,
    relative_costs,
    summary_lines,
    summary_table,
    verdict_line,
    verdict_lines,
)
from ticketry.report.writing import write_report

if TYPE_CHECKING:
    from ticketry.report.exporting import export
    from ticketry.report.figures import figure_svgs
    from ticketry.report.figures.evidence import time_by_density_svg

__all__ = [
    "cost_lines",
    "export",
    "figure_svgs",
    "pruning_moment_lines",
    "read_evidence_about_runs",
    "relative_costs",
    "summary_lines",
    "summary_table",
    "time_by_density_svg",
    "verdict_line",
    "verdict_lines",
    "write_report",
]

_DRAWING = {
    "export": "ticketry.report.exporting",
    "figure_svgs": "ticketry.report.figures",
    "time_by_density_svg": "ticketry.report.figures.evidence",
}
"""Modules of the functions that need matplotlib; they are imported late, since matplotlib imports slowly."""


def __getattr__(name: str) -> Any:
    """Return the drawing function `name`, and import the function's module at the first use."""
    if name not in _DRAWING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_DRAWING[name]), name)
