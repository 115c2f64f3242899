"""The verdicts of a run: each level's tickets against dense and controls, paired by replicate, corrected by Holm.

A replicate is a whole search from its own seeds, so these verdicts are about the *method* at a density: what its next
ticket will do. `evidence.verify` is about one ticket. Controls with another budget, `names.LONGER`, have no part in a
verdict: how the tickets stand to them is told beside it, with their steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ticketry.errors import UsageError
from ticketry.evidence.names import LONGER
from ticketry.evidence.paired import Comparison, compare
from ticketry.evidence.verdict import Claim, Verdict, holm_verdicts, verdict

MARGIN_POINTS = 0.5
MARGIN_SHARE = 0.01


def default_margin(unit: str, dense: Sequence[float]) -> float:
    """Half a point for a metric in %, otherwise 1 % of the dense network's mean."""
    return MARGIN_POINTS if unit == "%" else MARGIN_SHARE * abs(sum(dense) / len(dense))


def resolution(unit: str, examples: int) -> float | None:
    """The smallest step of a metric in % over so many test examples; None for others, where it is not known."""
    return 100 / examples if unit == "%" else None


def verdicts_of(record: Mapping[str, Any], examples: int) -> dict[str, Any]:
    """``{"verdicts": [...]}`` of a run record with as many test examples, or ``{"verdict_error": why not}``."""
    try:
        return {"verdicts": judge(record["points"], record["task"]["metric"], examples)}
    except UsageError as error:
        return {"verdict_error": str(error)}


def judge(
    points: Sequence[Mapping[str, Any]],
    metric: Mapping[str, Any],
    examples: int,
    *,
    claim: Claim | None = None,
    margin: float | None = None,
    confidence: float = 0.95,
) -> list[dict[str, Any]]:
    """A verdict for each level of a run's points, densest first, corrected for their number, as JSON values.

    Args:
        points: rows of a run record: replicate, level, role, density, test, budget.
        metric: name, unit and higher_is_better.
        examples: of the test split.
        claim: "wins" where there are controls, else "matches".
        margin: see `default_margin`.

    Raises:
        UsageError: if networks of one level (but those of `names.LONGER`) were trained for different numbers of steps,
            a value is not a number, or a level lacks a replicate.
    """
    table = {(point["level"], point["role"], point["replicate"]): point for point in points}
    replicates = sorted({point["replicate"] for point in points})
    others = sorted({role for _, role, _ in table} - {"dense", "ticket"})
    roles, longer = [role for role in others if role not in LONGER], [role for role in others if role in LONGER]
    levels = sorted({level for level, role, _ in table if role == "ticket"})
    claim = claim or ("wins" if roles else "matches")

    def row(level: int, role: str) -> list[Mapping[str, Any]]:
        found = [table.get((level, role, replicate)) for replicate in replicates]
        if any(point is None for point in found):
            raise UsageError(f"level {level} has not a {role} for each of the {len(replicates)} replicates")
        return [point for point in found if point is not None]

    def values(rows: Sequence[Mapping[str, Any]]) -> list[float]:
        return [float(point["test"][metric["name"]]) for point in rows]

    dense = row(0, "dense")
    margin = margin or default_margin(metric["unit"], values(dense))
    made: list[Verdict] = []
    for level in levels:
        rows = {role: row(level, role) for role in ("ticket", *roles)}
        made.append(
            verdict(
                values(rows["ticket"]),
                values(dense),
                {role: values(rows[role]) for role in roles},
                claim=claim,
                margin=margin,
                confidence=confidence,
                higher_is_better=metric["higher_is_better"],
                resolution=resolution(metric["unit"], examples),
                steps=_budgets({"dense": dense, **rows}),
            )
        )

    def beside(level: int, role: str) -> dict[str, Any]:
        """The tickets minus a network of another budget."""
        compared = compare(
            values(row(level, "ticket")),
            values(row(level, role)),
            margin=margin,
            confidence=confidence,
            higher_is_better=metric["higher_is_better"],
            resolution=resolution(metric["unit"], examples),
            name=role,
        )
        return {**_compared(role, compared), "steps": round(_mean([point["budget"] for point in row(level, role)]))}

    densities = [_mean([point["density"] for point in row(level, "ticket")]) for level in levels]
    corrected = holm_verdicts(made)
    return [
        {
            "level": level,
            "density": density,
            **described(one),
            "p": raw.p,
            "p_holm": one.p,
            **({"beside": [beside(level, role) for role in longer]} if longer else {}),
        }
        for level, density, one, raw in zip(levels, densities, corrected, made, strict=True)
    ]


def described(made: Verdict) -> dict[str, Any]:
    """A verdict as JSON values."""
    comparisons = {"dense": made.dense, **made.controls}
    return {
        "verdict": made.outcome,
        "claim": made.claim,
        "margin": made.margin,
        "confidence": made.confidence,
        "n": made.n,
        "difference": made.dense.mean,
        "interval": _interval(made.dense.low, made.dense.high),
        "p": made.p,
        "p_loses": made.p_loses,
        "more_seeds": made.more_seeds,
        "reasons": list(made.reasons),
        "comparisons": [_compared(role, one) for role, one in comparisons.items()],
    }


def _compared(role: str, one: Comparison) -> dict[str, Any]:
    """The ticket minus one other network, as JSON values."""
    return {
        "role": role,
        "mean": one.mean,
        "sd": one.sd,
        "low": one.low,
        "high": one.high,
        "p": one.p_noninferior if role == "dense" else one.p_superior,
    }


def _interval(low: float | None, high: float | None) -> list[float] | None:
    return None if low is None or high is None else [low, high]


def _budgets(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[int]]:
    """Steps by network; empty where a record of an older version does not tell."""
    if any("budget" not in point for points in rows.values() for point in points):
        return {}
    return {role: [int(point["budget"]) for point in points] for role, points in rows.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
