"""What a run and each of its networks cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import convert
from msgspec.structs import replace

from ticketry.lab.costs.ledger import Ledger
from ticketry.lab.costs.phases import Phases
from ticketry.lab.costs.step_cost import Costs
from ticketry.lab.lab import Lab
from ticketry.lab.training.segment import Result
from ticketry.records.network import Cost, Point
from ticketry.records.network import Phases as PhasesTold
from ticketry.records.run import RunRecord


def with_costs(lab: Lab, rows: Sequence[Point], phases: Sequence[Phases]) -> list[Point]:
    """The rows of a record, each with its cost by phase: see `Costs.row`."""
    costs = Costs(lab)
    told = [convert(costs.row(own), PhasesTold) for own in phases]
    return [replace(row, phases=one) for row, one in zip(rows, told, strict=True)]


def run_cost(
    rows: Sequence[Point],
    ledger: Ledger,
    *,
    replicates: int,
    trained: Iterable[Result],
    searched: Iterable[Result],
    gradients: int,
    seconds: float,
) -> Cost:
    """What the run costs, whoever trained its segments, and what was trained for it this time.

    Args:
        ledger: of this time.
        trained: the networks of the rows, and others that were trained for them.
        searched: trainings that masks come from, where they are told with the ticket.
        gradients: batches that trained nothing.
        seconds: on the clock.
    """
    trained, searched = list(trained), list(searched)
    steps = {role: sum(row.steps or 0 for row in rows if row.role == role) for role in ("dense", "ticket")}
    controls = sum(row.steps or 0 for row in rows) - steps["dense"] - steps["ticket"]
    # A method whose masks do not come from the dense network does not need it to search.
    masks = sum(each.segment.steps for each in searched) + gradients
    # Of a trajectory that was also looked at on the way, the whole.
    by_step = sorted([*trained, *searched], key=lambda each: each.segment.last)
    whole = {each.segment.trajectory: each for each in by_step}.values()
    told = {
        **ledger.counts(),
        "dense_steps": steps["dense"] // replicates,
        "search_steps_per_replicate": (masks + steps["ticket"]) // replicates,
        "control_steps": controls,
        "train_seconds": round(sum(each.train_seconds for each in whole), 3),
        "train_seconds_now": round(ledger.train_seconds, 3),
        "wall_seconds": round(seconds, 3),
    }
    return convert(told, Cost)


def kept_record(earlier: RunRecord, record: RunRecord) -> RunRecord | None:
    """An earlier record of the same networks, with what each costs where it does not tell; None if they are others."""
    if earlier.name != record.name:
        return None
    if list(map(_network, earlier.points)) != list(map(_network, record.points)):
        return None
    pairs = zip(earlier.points, record.points, strict=True)
    points = tuple(replace(old, phases=old.phases or new.phases, ticket=new.ticket) for old, new in pairs)
    return replace(earlier, points=points, store=record.store)


def _network(row: Point) -> Point:
    """Without what it cost and where it lies, which depends on how the store was named."""
    return replace(row, phases=None, ticket="")
