"""Finding the evidence of a store that belongs to the runs shown."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ticketry.report.speed_record import KINDS


def evidence_of(store_root: Path, run_names: Collection[str]) -> list[dict[str, Any]]:
    """The records in `<store>/evidence` that name one of the runs, by file name.

    Raises:
        StoreError: if a file there cannot be read or is damaged.
    """
    from ticketry.lab.files import read_json

    wanted, found = set(run_names), []
    for path in sorted((store_root / "evidence").glob("*.json")):
        record = read_json(path)
        if record is None:  # it went away just now
            continue
        if record.get("kind") in ("verify", "stability", *KINDS) and wanted & _runs(record):
            found.append(record)
    return found


def _runs(record: dict[str, Any]) -> set[str]:
    several = record.get("runs")
    named = [record.get("run"), *(several if isinstance(several, list) else [])]
    return {name for name in named if isinstance(name, str) and name}
