"""The verdicts of a run: each level's tickets against dense and controls, paired by replicate, corrected by Holm.

A replicate is a whole search from its own seeds, so these verdicts are about the *method* at a density: what its next
ticket will do. Replicates that have the same dense network count as one. `evidence.verify` is about one ticket.
Networks have equally many steps. Only where a budget was set for the whole search the dense network is one training of
the recipe, as dear as the search, and has not the steps of tickets and controls.
Controls with another budget, `names.LONGER`, have no part in a verdict: how the tickets stand to them is told beside
it, with their steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from msgspec import convert, structs

from ticketry.errors import UsageError
from ticketry.evidence.comparison_names import LONGER
from ticketry.evidence.judging.guarded_tests import LEAST_SEEDS
from ticketry.evidence.judging.paired_comparisons import Comparison, compare
from ticketry.evidence.judging.pooled_tests import RULE, pool
from ticketry.evidence.verdict import Verdict, by_parent, holm_verdicts, level_verdict
from ticketry.records.metric import Metric
from ticketry.records.network import DENSE, TICKET, Point
from ticketry.records.run import RunRecord
from ticketry.records.verdict import (
    Claim,
    Diagnosis,
    Difference,
    LevelVerdict,
    LongerDifference,
    VerdictAnswers,
)

MARGIN_POINTS = 0.5
MARGIN_SHARE = 0.01
_AT_EQUAL_BUDGETS = (
    "Weights of the search are in these tickets: ticketry verify RUN repeats it beside networks with as many steps"
)


def default_margin(unit: str, dense: Sequence[float]) -> float:
    """Half a point for a metric in %, otherwise 1 % of the dense network's mean."""
    return MARGIN_POINTS if unit == "%" else MARGIN_SHARE * abs(sum(dense) / len(dense))


def resolution(unit: str, examples: int | None) -> float | None:
    """The smallest step of a metric in % over so many test examples; None where it is not known."""
    return 100 / examples if unit == "%" and examples else None


def with_verdicts(record: RunRecord, examples: int) -> RunRecord:
    """The record of a run with as many test examples, with the verdicts of its levels, or why there are none.

    Of a run that ended before all was found only levels that every replicate has reached are judged: of the others
    those replicates are missing whose tickets were the hardest to find.
    """
    return _judged(record, examples)


def _judged(record: RunRecord, examples: int | None) -> RunRecord:
    bounded = bool(record.settings.get("budget"))
    try:
        points = _reached_by_all(record.points, record.replicates) if record.ended else record.points
        found = judge(points, record.task.metric, examples, uneven=(DENSE,) if bounded else ())
        return structs.replace(record, verdicts=tuple(found))
    except UsageError as error:
        more = not bounded and _most(record.points, TICKET) > _most(record.points, DENSE)
        advice = f". {_AT_EQUAL_BUDGETS}" if more else ""
        return structs.replace(record, verdict_error=f"{error}{advice}")


def _most(points: Sequence[Point], role: str) -> int:
    """Steps in the weights of the network of a role that has the most."""
    return max((point.budget or 0 for point in points if point.role == role), default=0)


def _reached_by_all(points: Sequence[Point], replicates: int) -> list[Point]:
    """Raises `UsageError` where that are none, or the dense networks alone."""
    reached = Counter(point.level for point in points if point.role in (DENSE, TICKET))
    found = [point for point in points if reached[point.level] == replicates]
    if not any(point.role == TICKET for point in found):
        raise UsageError(f"no level has a ticket of each of the {replicates} replicates, some of which could not go on")
    return found


def with_current_verdicts(record: RunRecord) -> RunRecord:
    """The record as it is shown: verdicts that another rule made are computed again from the record's values.

    A level whose stored word differs says so among its reasons. The record's file stays as it is.
    """
    if not record.verdicts or all(one.rule == RULE for one in record.verdicts):
        return record
    stored = {one.level: one for one in record.verdicts}
    found = _judged(record, None)
    if found.verdict_error:
        return record
    verdicts = [_told_beside(one, stored.get(one.level)) for one in found.verdicts]
    return structs.replace(found, verdicts=tuple(verdicts))


def _told_beside(one: LevelVerdict, stored: LevelVerdict | None) -> LevelVerdict:
    """The verdict with the word that the record stores for its level, if that is another."""
    if stored is None or stored.verdict == one.verdict:
        return one
    why = f"the record stores {stored.verdict!r}, by the rule of an earlier version, which did not pool levels"
    return structs.replace(one, reasons=(*one.reasons, why))


def judge(
    points: Sequence[Point],
    metric: Metric,
    examples: int | None,
    *,
    claim: Claim | None = None,
    margin: float | None = None,
    confidence: float = 0.95,
    uneven: Collection[str] = (),
) -> list[LevelVerdict]:
    """A verdict for each level of a run's points, densest first, corrected for their number.

    Args:
        points: of a run's record.
        examples: of the test split; None where a record of an older version does not tell.
        claim: by default "wins" for levels that have controls, else "matches".
        margin: see `default_margin`.
        uneven: roles that have other steps than the tickets by design.

    Raises:
        UsageError: if networks of one level (but `uneven` ones and those of `names.LONGER`) were trained for different
            numbers of steps, a value is not a number, or a level lacks a replicate.
    """
    table = {(point.level, point.role, point.replicate): point for point in points}
    replicates = sorted({point.replicate for point in points})
    others = sorted({role for _, role, _ in table} - {"dense", "ticket"})
    roles, longer = [role for role in others if role not in LONGER], [role for role in others if role in LONGER]
    levels = sorted({level for level, role, _ in table if role == "ticket"})
    present = {(level, role) for level, role, _ in table}

    def row(level: int, role: str) -> list[Point]:
        found = [table.get((level, role, replicate)) for replicate in replicates]
        if any(point is None for point in found):
            raise UsageError(f"level {level} has not a {role} for each of the {len(replicates)} replicates")
        return [point for point in found if point is not None]

    def values(rows: Sequence[Point]) -> list[float]:
        return [point.metric(metric.name) for point in rows]

    if not points:
        raise UsageError("there are no networks to judge")
    dense = row(0, "dense")
    margin = default_margin(metric.unit, values(dense)) if margin is None else margin
    parents = _parents(dense)

    def differences_to(role: str) -> list[Sequence[float]]:
        """The tickets minus this network, for each level that has it."""
        at = [level for level in levels if role == DENSE or (level, role) in present]
        pairs = [(values(row(level, "ticket")), values(dense if role == DENSE else row(level, role))) for level in at]
        return [
            by_parent([metric.sign * (one - two) for one, two in zip(own, others, strict=True)], parents)
            for own, others in pairs
        ]

    pooled = {role: pool(differences_to(role), margin) for role in (DENSE, *roles)}
    made: list[Verdict] = []
    for level in levels:
        rivals = [role for role in roles if (level, role) in present]
        rows = {role: row(level, role) for role in ("ticket", *rivals)}
        made.append(
            level_verdict(
                values(rows["ticket"]),
                values(dense),
                {role: values(rows[role]) for role in rivals},
                pooled=pooled,
                claim=claim or ("wins" if rivals else "matches"),
                margin=margin,
                confidence=confidence,
                higher_is_better=metric.higher_is_better,
                resolution=resolution(metric.unit, examples),
                steps=_budgets({role: of for role, of in {DENSE: dense, **rows}.items() if role not in uneven}),
                parents=parents,
                unit=metric.unit,
            )
        )

    def beside(level: int, role: str) -> LongerDifference:
        """The tickets minus a network of another budget."""
        compared = compare(
            values(row(level, "ticket")),
            values(row(level, role)),
            margin=margin,
            confidence=confidence,
            higher_is_better=metric.higher_is_better,
            resolution=resolution(metric.unit, examples),
            name=role,
        )
        steps = round(_mean([point.budget or 0 for point in row(level, role)]))
        return convert({**structs.asdict(difference(role, compared)), "steps": steps}, LongerDifference)

    densities = [_mean([point.density for point in row(level, "ticket")]) for level in levels]
    corrected = holm_verdicts(made)
    return [
        LevelVerdict(
            level=level,
            density=density,
            **{**judgement(one), "p": raw.p},
            p_holm=one.p,
            rule=RULE,
            probability=1 - raw.dense.p_noninferior if raw.groups >= LEAST_SEEDS else None,
            beside=tuple(beside(level, role) for role in longer if (level, role) in present),
        )
        for level, density, one, raw in zip(levels, densities, corrected, made, strict=True)
    ]


def judgement(made: Verdict) -> dict[str, Any]:
    """A verdict as the fields of a `Judgement`."""
    compared, dense = {DENSE: made.dense, **made.controls}, made.dense
    return {
        **{name: getattr(made, name) for name in VerdictAnswers.__struct_fields__},
        "verdict": made.outcome,
        "difference": dense.mean,
        "interval": None if dense.low is None or dense.high is None else (dense.low, dense.high),
        "comparisons": tuple(difference(role, one) for role, one in compared.items()),
    }


def difference(role: str, one: Comparison) -> Difference:
    """The ticket minus one other network."""
    diagnosis = one.diagnosis and convert(one.diagnosis, Diagnosis, from_attributes=True)
    return Difference(role=role, p=one.p_of(role), diagnosis=diagnosis, **one.numbers())


def _budgets(rows: Mapping[str, Sequence[Point]]) -> dict[str, list[int]]:
    """Steps by network; empty where a record of an older version does not tell."""
    told = {role: [point.budget for point in points if point.budget is not None] for role, points in rows.items()}
    return told if all(len(told[role]) == len(points) for role, points in rows.items()) else {}


def _parents(dense: Sequence[Point]) -> list[str | int] | None:
    """Of each replicate its dense network, by its key in the store; None where each has one of its own.

    Replicates have seeds of their own, so that a key that two of them have is a task's doing: one that makes the same
    network whatever its seed.
    """
    keys: list[str | int] = [point.key or point.replicate for point in dense]
    return keys if len(set(keys)) < len(keys) else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
