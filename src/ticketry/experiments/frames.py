"""The tickets of runs, as JSON values too, and what runs tell as tables of pandas, where that is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from ticketry.core.costs.bases import ENGINE
from ticketry.core.pattern import share_of
from ticketry.errors import MissingExtraError, UsageError
from ticketry.records.network import DENSE, TICKET, Point
from ticketry.records.run import RunRecord
from ticketry.records.schema import as_json
from ticketry.records.structure import Structure
from ticketry.search.common.aims import with_base

if TYPE_CHECKING:
    import pandas

    from ticketry.core.ticket.ticket import Ticket


SHARES = ("time", "multiplications")
"""Of a call of the dense network, where a search tells them."""


@dataclass(frozen=True)
class RunTicket:
    """One ticket that a run has saved.

    Examples:
        >>> run = tk.run("iterative", levels=2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> ticket = run.tickets[0]
        >>> ticket.level, ticket.metric, ticket.load().mask.density == ticket.density
        (1, 'accuracy', True)
    """

    path: Path
    """Its folder; empty where there is none, because a bundle left its weights out."""
    density: float
    """Share of the prunable weights that is kept."""
    level: int
    """Its level in the search, 1 the densest."""
    replicate: int
    """From 0."""
    metric: str
    """The name of what the values are."""
    value: float
    """On the test split."""
    validation_value: float
    """On the validation split, by which tickets are chosen."""
    dense_value: float
    """The dense network's, on the test split."""
    time: float | None = None
    """Share of the dense network's time that a call takes, as measured; None where the search measured none."""
    multiplications: float | None = None
    """Share of the dense network's multiplications; None where the search was not by a budget."""

    def __fspath__(self) -> str:
        """Raises `UsageError` if it has no folder."""
        if self.path == Path():
            raise UsageError(
                f"the ticket of replicate {self.replicate} at level {self.level} has no folder: a bundle left its"
                " weights out (ticketry store pack --weights packs them)"
            )
        return str(self.path)

    def load(self) -> Ticket:
        """Read it from its folder.

        Raises:
            UsageError: if it has none.
            TicketError: see `Ticket.load`.
        """
        from ticketry.core.ticket.ticket import Ticket

        return Ticket.load(fspath(self))


MET = 1.02
"""How much more than asked for a ticket may take: what a budget is met to."""


def taking(
    tickets: Sequence[RunTicket], what: str, asked: float | str, run: str, *, base: float = 1.0
) -> tuple[RunTicket, ...]:
    """Return the tickets that are known to take at most a share of the base.

    Args:
        tickets: of the run.
        what: one of `SHARES`, which are of the dense network.
        asked: share of the base.
        run: its name, for the error.
        base: over the dense network.

    Raises:
        UsageError: if there is no such ticket.
    """
    limit = MET * share_of(asked) * base
    known = {one: share for one in tickets if (share := getattr(one, what)) is not None}
    found = tuple(one for one, share in known.items() if share <= limit)
    if not found:
        there = ", ".join(f"{share / base:.3g}" for share in sorted(set(known.values()))) or "none is told"
        raise UsageError(f"the run {run} has no ticket that takes {asked} of the {what}; there are: {there}")
    return found


def base_share(settings: Mapping[str, Any]) -> float:
    """Return the latency of a run's base over that of the compiled network without pruning.

    Args:
        settings: as the run's record has them.

    Raises:
        CostError: if the run's costs, which have it, cannot be read.
    """
    from ticketry.core.costs.cost_model import CostModel

    base = with_base(settings).get("base", ENGINE)
    if base == ENGINE or not settings.get("time"):
        return 1.0
    costs = CostModel.load(settings["profile"])
    return costs.base_seconds(base) / costs.dense


def path_of(named: str | PathLike[str] | Ticket) -> Path:
    """The path that an argument names: as it is, or the folder that a ticket in memory was read from.

    Raises:
        UsageError: for a ticket that has no folder, and for what names none.
    """
    from ticketry.core.ticket.ticket import Ticket

    if isinstance(named, str | PathLike):
        return Path(named)
    how = "give its folder, or one of run.tickets"
    if not isinstance(named, Ticket):
        raise UsageError(f"a ticket is named by its folder, and not by a {type(named).__name__}: {how}")
    if named.path is None:
        raise UsageError(f"this ticket was made in memory and has no folder: ticket.save(folder), and {how}")
    return named.path


def frame_of(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """The rows as a table of pandas; `MissingExtraError` without pandas."""
    try:
        import pandas
    except ModuleNotFoundError:
        raise MissingExtraError("pandas", "pandas", "a data frame") from None
    return pandas.DataFrame(list(rows))


def tickets_json(
    points: Sequence[Point],
    tickets: Sequence[RunTicket],
    *,
    costs: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The tickets of a run, as ``ticketry search --json`` prints them.

    Args:
        points: the trained networks that are tickets.
        tickets: the same, as the run shows them.
        costs: of each ticket, relative to dense, with its replicate and level.
        settings: of the method.
    """
    keys = ("replicate", "level")
    relative = {(one["replicate"], one["level"]): {k: v for k, v in one.items() if k not in keys} for one in costs}
    return [
        {
            "path": point.ticket,
            "density": point.density,
            "sparsity": 1 - point.density,
            "kept": point.kept,
            "level": point.level,
            "replicate": point.replicate,
            "metric": one.metric,
            "value": one.value,
            "dense_value": one.dense_value,
            "validation_value": one.validation_value,
            "steps": point.steps,
            "retrain": settings["retrain"],
            "budget": settings.get("budget", ""),
            "cost": as_json(point.phases) if point.phases else None,
            "relative_cost": relative.get((point.replicate, point.level)),
            **{name: share for name in SHARES if (share := getattr(one, name)) is not None},
            **({"structure": _structure_json(point.structure)} if point.structure else {}),
        }
        for point, one in zip(points, tickets, strict=True)
    ]


def controls_json(record: RunRecord) -> list[dict[str, Any]]:
    """The networks beside a run's tickets, as ``ticketry search --json`` prints them, by replicate and level."""
    metric = record.task.metric.name
    return [
        {
            "role": point.role,
            "level": point.level,
            "replicate": point.replicate,
            "density": point.density,
            "metric": metric,
            "value": point.metric(metric),
            "validation_value": point.metric(metric, "validation"),
            "steps": point.steps,
            "budget": point.budget,
        }
        for point in record.points
        if point.role not in (DENSE, TICKET)
    ]


def _structure_json(structure: Structure) -> dict[str, Any]:
    """What a ticket's mask was turned into, and how well that fits; the layers are in the run's record."""
    told = as_json(replace(structure, layers=(), pictures=()))
    whole = structure.layers[-1]
    return told | {name: getattr(whole, name) for name in ("coverage", "null_coverage", "random_coverage", "fill")}
