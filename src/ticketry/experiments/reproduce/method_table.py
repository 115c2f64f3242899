"""A campaign's table of all its methods: every network that was trained for it, over the replicates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from ticketry.experiments.reproduce.campaign_file import Campaign
from ticketry.experiments.reproduce.deciding import cost_of
from ticketry.records.campaign import MethodRow
from ticketry.records.network import DENSE, TICKET, Point
from ticketry.records.run import RunRecord
from ticketry.report.tables.results import summarise


def method_table(campaign: Campaign, done: Mapping[str, Sequence[RunRecord]]) -> Iterator[MethodRow]:
    """A row for each dense network (once a task and recipe), each level's tickets and controls."""
    seen = set[str]()
    for name, request in campaign.runs.items():
        points: dict[tuple[int, str], list[Point]] = {}
        for record in done[name]:
            for point in record.points:
                points.setdefault((point.level, point.role), []).append(point)
        for (_, role), found in sorted(points.items(), key=lambda one: (one[0][0], one[0][1] != TICKET, one[0][1])):
            if role == DENSE and (key := found[0].key) in seen:
                continue
            if role == DENSE:
                seen.add(key)
            yield _row(name, request.method.title, role, found, request.task.metric.name, request.task.metric.unit)


def _row(run: str, method: str, role: str, points: list[Point], metric: str, unit: str) -> MethodRow:
    found = summarise([point.metric(metric) for point in points])
    costs = {
        what: sum(cost_of(point, what) for point in points) / len(points) for what in ("steps", "flops", "seconds")
    }
    return MethodRow(
        run=run,
        method=method,
        role=role,
        density=sum(point.density for point in points) / len(points),
        n=found.n,
        mean=found.mean,
        sd=found.sd,
        interval=found.interval,
        unit=unit,
        **{what: None if math.isnan(value) else value for what, value in costs.items()},
    )
