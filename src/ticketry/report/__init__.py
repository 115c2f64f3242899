"""Show run records and evidence: as a self-contained HTML page, figures, tables and CSV files."""

from __future__ import annotations

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

__all__ = [
    "cost_lines",
    "pruning_moment_lines",
    "read_evidence_about_runs",
    "relative_costs",
    "summary_lines",
    "summary_table",
    "verdict_line",
    "verdict_lines",
    "write_report",
]
