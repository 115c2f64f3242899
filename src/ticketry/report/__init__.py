"""The report: a run record as one self-contained HTML page, as figures and as a table for the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ticketry.errors import StoreError
from ticketry.report.aggregate import Results
from ticketry.report.figures import figure_svgs
from ticketry.report.page import render
from ticketry.report.record import read
from ticketry.report.terminal import summary_lines, summary_table, verdict_line

__all__ = ["figure_svgs", "summary_lines", "summary_table", "verdict_line", "write_report"]


def write_report(record: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a run record (`run.json` as a dict) to `path` and return it; whole or not at all.

    The folder is made if it is missing. The same record gives the same bytes.

    Raises:
        StoreError: if the record is malformed, or the file cannot be written.
    """
    text = render(Results(read(record)))
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
