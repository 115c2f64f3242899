"""The report: run records and evidence as one self-contained HTML page, as figures, tables and CSV files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ticketry.errors import StoreError
from ticketry.report.evidence_files import evidence_of
from ticketry.report.export import export
from ticketry.report.figures import figure_svgs
from ticketry.report.figures.saved import time_by_density_svg
from ticketry.report.identity import has, identity_of
from ticketry.report.page import render
from ticketry.report.relative import cost_lines, relative_costs
from ticketry.report.subject import subject_of
from ticketry.report.terminal import moment_lines, summary_lines, summary_table, verdict_line

__all__ = [
    "cost_lines",
    "evidence_of",
    "export",
    "figure_svgs",
    "moment_lines",
    "relative_costs",
    "summary_lines",
    "summary_table",
    "time_by_density_svg",
    "verdict_line",
    "write_report",
]


def write_report(
    records: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    path: Path,
    *,
    evidence: Iterable[Mapping[str, Any]] = (),
) -> Path:
    """Write the page of one run record (`run.json` as a dict) or several to `path` and return it; whole or not at all.

    The folder is made if it is missing. The same records give the same bytes; a page that shows them already is left.

    Args:
        records: a run record, or a list of them, which are then compared.
        path: the HTML file.
        evidence: records of verifications, of stability and of what tickets save, which are shown with the runs.

    Raises:
        UsageError: if there is no run record, or the same run twice.
        StoreError: if a record is malformed, or the file cannot be written.
    """
    evidence = list(evidence)
    subject, made_of = subject_of(records, evidence), identity_of(records, evidence)
    if has(path, made_of):
        return path
    text = render(subject, made_of)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8", newline="\n")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write the report {path}: {error.strerror}; choose another place for it") from error
    return path
