"""What a run tells of the trainings with gates that its masks come from."""

from __future__ import annotations

from typing import Any

from ticketry.lab.found import Found
from ticketry.lab.lab import Result


class GateRounds:
    """The rows of a record's ``rounds``: one for each round of each replicate, those tried in vain among them."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, str], dict[str, Any]] = {}

    def add(self, replicate: int, found: Found) -> None:
        """Take note of what a ticket's mask comes from; calls of one replicate come one after another."""
        for result in found.searched:
            key = (replicate, result.segment.key)
            if result.segment.gates is not None and key not in self._rows:
                self._rows[key] = {"replicate": replicate, "level": found.level, **_row(result)}
            if key in self._rows and result is found.searched[-1]:
                self._rows[key]["used"] = True

    def rows(self) -> list[dict[str, Any]]:
        """In the order of replicates and levels."""
        return sorted(self._rows.values(), key=lambda row: (row["replicate"], row["level"]))


def _row(result: Result) -> dict[str, Any]:
    gates, told = result.segment.gates, result.record["gating"]
    assert gates is not None
    total = told.get("weights") or sum(told["histogram"])
    return {
        "used": False,
        "round": told["round"],
        "kind": gates.kind,
        "init": gates.init,
        "penalty": gates.penalty,
        "steps": result.segment.steps,
        "seconds": result.train_seconds,
        "density": told["density"],
        "soft_density": told["soft_density"],
        "ties": told["ties"],
        "validation": result.metrics["validation"],
        "soft_validation": result.record["soft_metrics"]["validation"],
        "path": [[row[0], sum(row[1:]) / total] for row in told["kept"]],
        "histogram": told["histogram"],
        "key": result.segment.key,
    }
