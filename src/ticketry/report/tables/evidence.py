"""What verifications and studies of stability show: differences, decimals, levels and barriers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from msgspec import structs

from ticketry.records.evidence import Distances, StabilityRecord, StabilityRow, VerifyRecord
from ticketry.records.network import DENSE, TICKET
from ticketry.records.verdict import Difference
from ticketry.report.tables.results import CONTROLS, Summary, summarise
from ticketry.report.tables.search_progress import spread_out
from ticketry.report.wording import Style, role_name, short_metric

NOISE = "noise"
"""Stands for the role of the ticket itself under other seeds."""
MOST_LEVELS = 4
"""Of a study that are drawn."""


def differences(verify: VerifyRecord) -> list[Difference]:
    """Ticket minus dense, minus each control, and last the ticket minus itself under other seeds."""
    found = {one.role: one for one in verify.comparisons}
    if DENSE not in found:
        low, high = verify.interval or (None, None)
        found = {DENSE: Difference(role=DENSE, mean=verify.difference, low=low, high=high, p=verify.p), **found}
    rows = [found.pop(DENSE), *found.values()]
    if verify.noise is not None:
        rows.append(Difference(role=NOISE, mean=verify.noise.mean, low=verify.noise.low, high=verify.noise.high))
    return rows


def seed_style(verify: VerifyRecord) -> Style:
    """As many decimals as the spread of the ticket's seeds asks for."""
    summaries: list[Summary] = [summarise(one.values) for one in verify.networks]
    return Style.fitting(summaries, verify.task.metric.unit)


def network_name(role: str) -> str:
    """The name of a role where there is one ticket only."""
    return "ticket" if role == TICKET else role_name(role)


def barrier_height(row: StabilityRow) -> float | None:
    """The height on the test split."""
    curve = row.barrier
    return None if curve is None or math.isnan(curve.height) else curve.height


def densities(study: StabilityRecord) -> list[float]:
    """The levels' mean densities that get a row, densest first: at most four, spread over what there is."""
    levels = sorted({row.level for row in study.rows if row.role != DENSE})
    return [_density(study, level) for level in spread_out(levels, MOST_LEVELS)]


def _density(study: StabilityRecord, level: int) -> float:
    return statistics.fmean(row.density for row in study.rows if row.level == level)


def roles(study: StabilityRecord) -> list[str]:
    """Every role there is: tickets, the usual controls, dense, any others by name."""
    found = {row.role for row in study.rows}
    return [role for role in (TICKET, *CONTROLS, DENSE) if role in found] + sorted(found - {TICKET, DENSE, *CONTROLS})


def at_density(study: StabilityRecord, density: float) -> list[StabilityRow]:
    """The rows of the level of that mean density, and the dense network's."""
    levels = {row.level for row in study.rows if row.role != DENSE}
    level = min(levels, key=lambda level: abs(_density(study, level) - density), default=0)
    return [row for row in study.rows if row.level == level or row.role == DENSE]


def sparsest(study: StabilityRecord) -> StabilityRecord:
    """What the curves are drawn from: the sparsest level and the dense network, one barrier each."""
    levels = densities(study)
    rows = at_density(study, levels[-1]) if levels else study.rows
    kept = [structs.replace(row, barriers=(curve,) if (curve := row.barrier) else ()) for row in rows]
    return structs.replace(study, rows=tuple(kept))


Reader = Callable[[StabilityRow], "float | None"]


@dataclass(frozen=True)
class Quantity:
    """One column of panels: what is drawn solid, and dashed beside it."""

    name: str
    solid: Reader
    dashed: Reader | None = None

    def tells(self, row: StabilityRow) -> bool:
        return self.solid(row) is not None or (self.dashed is not None and self.dashed(row) is not None)


def quantities(study: StabilityRecord) -> list[Quantity]:
    """The columns that the record has something for."""
    name = study.task.metric.name
    unit = f" ({study.task.metric.unit})" if study.task.metric.unit else ""
    every = (
        Quantity(f"test {short_metric(study.task.metric)}", lambda row: row.value),
        Quantity("L2 distance", lambda row: _l2(row.pruning), lambda row: _l2(row.data_order)),
        Quantity("angle (°)", lambda row: _angle(row.pruning), lambda row: _angle(row.data_order)),
        Quantity(f"error barrier{unit if name == 'accuracy' else ''}", barrier_height),
    )
    return [one for one in every if any(one.tells(row) for row in study.rows)]


def _l2(distances: Distances | None) -> float | None:
    return None if distances is None else distances.l2


def _angle(distances: Distances | None) -> float | None:
    return None if distances is None else distances.angle
