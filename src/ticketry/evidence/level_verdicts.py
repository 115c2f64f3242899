"""The verdicts of a run, one per level: are its tickets as good as dense networks and better than controls?

Networks are compared in pairs from the same replicate, and verdicts are corrected by Holm's procedure. A replicate is a
whole search from its own seeds, so these verdicts are about the *method* at a density: they predict its next ticket.
(`evidence.verify` judges one ticket.) Replicates with the same dense network count as one. All networks must have the
same number of steps, with two exceptions. If the whole search had a budget, the dense network is one training by the
recipe, which costs as much. `LONGER_CONTROLS` have more steps; their differences are shown but not judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from msgspec import convert, structs

from ticketry.errors import UsageError
from ticketry.evidence.comparison import Comparison, compare
from ticketry.evidence.control import LONGER_CONTROLS
from ticketry.evidence.significance import LEAST_SEEDS, RULE, pool_sd
from ticketry.evidence.verdict import Verdict, average_by_parent, holm_verdicts, level_verdict
from ticketry.records.metric import Metric
from ticketry.records.network import DENSE, TICKET, Point
from ticketry.records.run import RunRecord
from ticketry.records.settings import upgrade_settings
from ticketry.records.verdict import (
    Diagnosis,
    Difference,
    LevelVerdict,
    LongerDifference,
    VerdictAnswers,
    default_margin,
)

_AT_EQUAL_BUDGETS = (
    "Weights of the search are in these tickets: ticketry verify RUN repeats it beside networks with as many steps"
)


def metric_resolution(unit: str, examples: int | None) -> float | None:
    """Return the smallest possible change of a metric in %, 100 / `examples`; None for other units."""
    return 100 / examples if unit == "%" and examples else None


def add_verdicts(record: RunRecord, examples: int | None) -> RunRecord:
    """Return a run's record with a verdict for each level, or with the reason why there are no verdicts.

    If some replicates failed, verdicts cover only levels that every replicate reached, to avoid survivorship bias.
    """
    bounded = bool(upgrade_settings(record.settings).get("equal_cost"))
    try:
        points = record.points
        if record.ended:
            reached = Counter(point.level for point in points if point.role in (DENSE, TICKET))
            points = tuple(point for point in points if reached[point.level] == record.replicates)
            if not any(point.role == TICKET for point in points):
                raise UsageError(
                    f"no level has a ticket of each of the {record.replicates} replicates, some of which could not"
                    " continue"
                )
        found = judge_levels(points, record.task.metric, examples, roles_with_other_steps=(DENSE,) if bounded else ())
        return structs.replace(record, verdicts=tuple(found))
    except UsageError as error:
        ticket, dense = (
            max((point.budget or 0 for point in record.points if point.role == role), default=0)
            for role in (TICKET, DENSE)
        )
        advice = f". {_AT_EQUAL_BUDGETS}" if ticket > dense and not bounded else ""
        return structs.replace(record, verdict_error=f"{error}{advice}")


def recompute_verdicts(record: RunRecord) -> RunRecord:
    """Return a copy of the record with verdicts by the current rule; verdicts by older rules are recomputed.

    If a verdict changes, a reason is added that names the stored verdict. The record's file is not changed.
    """
    if not record.verdicts or all(one.rule == RULE for one in record.verdicts):
        return record
    stored = {one.level: one for one in record.verdicts}
    found = add_verdicts(record, None)
    if found.verdict_error:
        return record
    why = "the record stores {!r}, by the rule of an earlier version, which did not pool levels"
    verdicts = [
        structs.replace(one, reasons=(*one.reasons, why.format(stored[one.level].verdict)))
        if one.level in stored and stored[one.level].verdict != one.verdict
        else one
        for one in found.verdicts
    ]
    return structs.replace(found, verdicts=tuple(verdicts))


def judge_levels(
    points: Sequence[Point],
    metric: Metric,
    examples: int | None,
    *,
    roles_with_other_steps: Collection[str] = (),
) -> list[LevelVerdict]:
    """Return a verdict for each level of a run, densest first, corrected for the number of levels.

    The claim is "wins" for levels with controls and "matches" for others; the margin is `default_margin`. The number of
    test `examples` is None if an older record lacks it.
    """
    table = {(point.level, point.role, point.replicate): point for point in points}
    replicates = sorted({point.replicate for point in points})
    others = sorted({role for _, role, _ in table} - {"dense", "ticket"})
    roles = [role for role in others if role not in LONGER_CONTROLS]
    longer = [role for role in others if role in LONGER_CONTROLS]
    levels = sorted({level for level, role, _ in table if role == "ticket"})
    present = {(level, role) for level, role, _ in table}

    def points_of_level(level: int, role: str) -> list[Point]:
        found = [table.get((level, role, replicate)) for replicate in replicates]
        if any(point is None for point in found):
            raise UsageError(f"level {level} lacks a {role} for some of the {len(replicates)} replicates")
        return [point for point in found if point is not None]

    def metric_values(rows: Sequence[Point]) -> list[float]:
        return [point.metric(metric.name) for point in rows]

    if not points:
        raise UsageError("there are no networks to judge")
    dense = points_of_level(0, "dense")
    margin = default_margin(metric.unit, metric_values(dense))
    keys = [point.key or point.replicate for point in dense]
    parents = keys if len(set(keys)) < len(keys) else None  # replicates with the same dense network count as one

    def paired_differences_to(role: str) -> list[Sequence[float]]:
        """Return, for each level with a network of this role, the replicates' differences ticket minus network."""
        at = [level for level in levels if role == DENSE or (level, role) in present]
        pairs = [
            (
                metric_values(points_of_level(level, "ticket")),
                metric_values(dense if role == DENSE else points_of_level(level, role)),
            )
            for level in at
        ]
        return [
            average_by_parent([metric.sign * (one - two) for one, two in zip(own, others, strict=True)], parents)
            for own, others in pairs
        ]

    pooled = {role: pool_sd(paired_differences_to(role), margin) for role in (DENSE, *roles)}
    made: list[Verdict] = []
    for level in levels:
        rivals = [role for role in roles if (level, role) in present]
        rows = {role: points_of_level(level, role) for role in ("ticket", *rivals)}
        made.append(
            level_verdict(
                metric_values(rows["ticket"]),
                metric_values(dense),
                {role: metric_values(rows[role]) for role in rivals},
                pooled=pooled,
                claim="wins" if rivals else "matches",
                margin=margin,
                higher_is_better=metric.higher_is_better,
                resolution=metric_resolution(metric.unit, examples),
                steps=_list_steps_by_network(
                    {role: of for role, of in {DENSE: dense, **rows}.items() if role not in roles_with_other_steps}
                ),
                parents=parents,
                unit=metric.unit,
            )
        )

    def difference_to_longer_control(level: int, role: str) -> LongerDifference:
        """Return the record of the difference between the ticket and a control that was trained for more steps."""
        compared = compare(
            metric_values(points_of_level(level, "ticket")),
            metric_values(points_of_level(level, role)),
            margin=margin,
            higher_is_better=metric.higher_is_better,
            resolution=metric_resolution(metric.unit, examples),
            name=role,
        )
        steps = round(_mean([point.budget or 0 for point in points_of_level(level, role)]))
        return convert({**structs.asdict(to_difference_record(role, compared)), "steps": steps}, LongerDifference)

    densities = [_mean([point.density for point in points_of_level(level, "ticket")]) for level in levels]
    corrected = holm_verdicts(made)
    return [
        LevelVerdict(
            level=level,
            density=density,
            **{**to_judgement_fields(one), "p": raw.p},
            p_holm=one.p,
            rule=RULE,
            probability=1 - raw.dense.p_noninferior if raw.groups >= LEAST_SEEDS else None,
            beside=tuple(difference_to_longer_control(level, role) for role in longer if (level, role) in present),
        )
        for level, density, one, raw in zip(levels, densities, corrected, made, strict=True)
    ]


def to_judgement_fields(made: Verdict) -> dict[str, Any]:
    """Convert a verdict to the fields of the record type `Judgement`."""
    compared, dense = {DENSE: made.dense, **made.controls}, made.dense
    return {
        **{name: getattr(made, name) for name in VerdictAnswers.__struct_fields__},
        "verdict": made.outcome,
        "difference": dense.mean,
        "interval": None if dense.low is None or dense.high is None else (dense.low, dense.high),
        "comparisons": tuple(to_difference_record(role, one) for role, one in compared.items()),
    }


def to_difference_record(role: str, one: Comparison) -> Difference:
    """Convert the comparison with the network of `role` to its record, a `Difference`."""
    diagnosis = one.diagnosis and convert(one.diagnosis, Diagnosis, from_attributes=True)
    return Difference(role=role, p=one.p_value_for(role), diagnosis=diagnosis, **one.numbers())


def _list_steps_by_network(rows: Mapping[str, Sequence[Point]]) -> dict[str, list[int]]:
    """Return role -> training steps of its network in each replicate; empty if an older record lacks the steps."""
    steps = {role: [point.budget for point in points if point.budget is not None] for role, points in rows.items()}
    return steps if all(len(steps[role]) == len(points) for role, points in rows.items()) else {}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
