"""What tickets cost, relative to the dense training beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ticketry.report.wording import NONE, percent

PHASES = ("dense", "search", "sparse")


def relative_costs(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each ticket of a run's record that tells its costs, search and dense steps included.

    ``steps``, ``flops``, ``memory`` (the highest of all training steps; that of scoring is not measured) and
    ``own_memory`` (of the training with its own mask) relative to the dense training of its replicate, and ``seconds``;
    None for what is not known. ``replicate`` and ``level`` tell whose they are.
    """
    rows = [row for row in record["points"] if "cost" in row]
    dense = {row["replicate"]: row["cost"]["dense"] for row in rows if row["role"] == "dense"}
    tickets = [row for row in rows if row["role"] == "ticket" and row["replicate"] in dense]
    return [_relative(row, dense[row["replicate"]]) for row in tickets]


def cost_lines(record: Mapping[str, Any]) -> list[str]:
    """A plain table of `relative_costs`, a line a level, means over the replicates; empty if none is told."""
    found = relative_costs(record)
    if not found:
        return []
    density = {row["level"]: row["density"] for row in record["points"] if row["role"] == "ticket"}
    table: list[tuple[str, ...]] = [("level", "weights remaining", "steps", "FLOPs", "memory", "its own", "seconds")]
    for level in sorted(density):
        own = [one for one in found if one["level"] == level]
        times = [_cell([one[name] for one in own], " x") for name in ("steps", "flops", "memory", "own_memory")]
        table.append((str(level), f"{percent(density[level])} %", *times, _cell([one["seconds"] for one in own], "")))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "what tickets cost, search included (x: of dense; memory: peak of training steps)",
        *("  ".join(map(str.rjust, row, widths)) for row in table),
    ]


def _relative(row: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, Any]:
    phases = [row["cost"][phase] for phase in PHASES]
    steps, flops, seconds = (_total([phase[name] for phase in phases]) for name in ("steps", "flops", "seconds"))
    heights = [phase["memory"] for phase in phases if phase["steps"]]
    return {
        "replicate": row["replicate"],
        "level": row["level"],
        "steps": _share(steps, dense["steps"]),
        "flops": _share(flops, dense["flops"]),
        "memory": _share(None if None in heights else max(heights, default=None), dense["memory"]),
        "own_memory": _share(row["cost"]["sparse"]["memory"] or None, dense["memory"]),
        "seconds": None if seconds is None else round(seconds, 3),
    }


def _total(parts: Sequence[float | None]) -> float | None:
    return None if None in parts else sum(part for part in parts if part is not None)


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _cell(values: Sequence[float | None], unit: str) -> str:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return NONE
    mean = sum(known) / len(known)
    return f"{mean:,.0f}{unit}" if mean >= 100 else f"{mean:.2f}{unit}"
