"""What a run and each of its networks cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ticketry.lab.costs import Costs
from ticketry.lab.lab import Lab, Result
from ticketry.lab.ledger import Ledger
from ticketry.lab.phases import Phases


def with_costs(lab: Lab, rows: Sequence[Mapping[str, Any]], phases: Sequence[Phases]) -> list[dict[str, Any]]:
    """The rows of a record, each with its entry ``cost``: see `Costs.row`."""
    costs = Costs(lab)
    return [{**row, "cost": costs.row(own)} for row, own in zip(rows, phases, strict=True)]


def run_cost(
    rows: Sequence[Mapping[str, Any]],
    ledger: Ledger,
    *,
    replicates: int,
    trained: Iterable[Result],
    searched: Iterable[Result],
    gradients: int,
    seconds: float,
) -> dict[str, Any]:
    """What the run costs, whoever trained its segments, and what was trained for it this time.

    Args:
        ledger: of this time.
        trained: the networks of the rows, and others that were trained for them.
        searched: trainings that masks come from, where they are told with the ticket.
        gradients: batches that trained nothing.
        seconds: on the clock.
    """
    trained, searched = list(trained), list(searched)
    steps = {role: sum(row["steps"] for row in rows if row["role"] == role) for role in ("dense", "ticket")}
    controls = sum(row["steps"] for row in rows) - steps["dense"] - steps["ticket"]
    # A method whose masks do not come from the dense network does not need it to search.
    masks = sum(each.segment.steps for each in searched) + gradients
    # Of a trajectory that was also looked at on the way, the whole.
    by_step = sorted([*trained, *searched], key=lambda each: each.segment.last)
    whole = {each.segment.trajectory: each for each in by_step}.values()
    return {
        **ledger.counts(),
        "dense_steps": steps["dense"] // replicates,
        "search_steps_per_replicate": (masks + steps["ticket"]) // replicates,
        "control_steps": controls,
        "train_seconds": round(sum(each.train_seconds for each in whole), 3),
        "train_seconds_now": round(ledger.train_seconds, 3),
        "wall_seconds": round(seconds, 3),
    }


def kept_record(earlier: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any] | None:
    """An earlier record of the same networks, with what each costs where it does not tell; None if they are others."""
    old, new = earlier.get("points", []), record["points"]
    if [_bare(row) for row in old] != [_bare(row) for row in new]:
        return None
    rows = [{**row, "cost": row.get("cost") or cost["cost"]} for row, cost in zip(old, new, strict=True)]
    return json.loads(json.dumps({**earlier, "points": rows}))  # type: ignore[no-any-return]


def _bare(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "cost"}
