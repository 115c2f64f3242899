"""Judge claims by the finished replicates, with the tests and interim analyses of `ticketry.evidence`.

`evidence.verdict` tests whether one network is as good as another up to a margin m. For the claim "A - B is above x",
A is tested against B + x + m: the claim is confirmed if A - B is shown to be above x, and refuted if A - B is shown to
be below x. A claim is judged only at the planned numbers of replicates. Holm's method corrects the claims of a family
together. A replication keeps at least the family size of the claim that it repeats.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from ticketry.errors import UsageError
from ticketry.evidence.verdict import Verdict, decide_after, holm_verdicts
from ticketry.experiments.reproduce.campaign_file import COSTS, DENSITY, STABILITY, Campaign, Hypothesis, Side
from ticketry.records import campaign as campaign_record
from ticketry.records.campaign import MethodRow
from ticketry.records.evidence import StabilityRecord
from ticketry.records.network import DENSE, TICKET, Point
from ticketry.records.run import RunRecord
from ticketry.report.tables.results import summarise

Found = Literal["confirmed", "refuted", "undecided"]
_COST_RESOLUTIONS = {"steps": 1.0, "flops": 1.0, "memory": 1.0}
"""Resolution of costs that are counted: with it, a difference that is equal in all replicates can decide a claim."""
_DENSITY_STEP = 1e-6
_OUTCOMES: dict[str, Found] = {"yes": "confirmed", "no": "refuted", "undecided": "undecided"}


@dataclass(frozen=True)
class Decision:
    """A claim with the values of both sides in each replicate, and its verdict."""

    claim: Hypothesis
    a: tuple[float, ...]
    b: tuple[float, ...]
    verdict: Verdict | None
    """Verdict of the claim; None before the first planned analysis."""
    unknown: str = ""
    """Reason why more training cannot decide the claim (a replicate lacks the metric); otherwise empty."""

    @property
    def found(self) -> Found:
        return "undecided" if self.verdict is None else _OUTCOMES[self.verdict.as_good_as_dense]

    @property
    def n(self) -> int:
        """Number of judged replicates."""
        return 0 if self.verdict is None else self.verdict.n

    @property
    def needs_replicates(self) -> bool:
        """Whether the claim is undecided, and training more replicates may decide it."""
        return self.found == "undecided" and not self.unknown

    def to_record(self, seconds: float, noise: Sequence[float] = (), noise_missing: int = 0) -> campaign_record.Claim:
        """Return the claim's entry in the campaign record.

        Args:
            seconds: training time of both sides' runs.
            noise: for each dense network, the difference of the metric between two trainings in different data orders.
            noise_missing: number of replicates without a second training of the dense network.
        """
        claim, made = self.claim, self.verdict
        shift = claim.above + claim.margin
        difference = interval = None
        if made is not None:
            difference = made.dense.mean + shift
            if made.dense.low is not None and made.dense.high is not None:
                interval = (made.dense.low + shift, made.dense.high + shift)
        return campaign_record.Claim(
            **{name: getattr(claim, name) for name in _SHARED_FIELDS},
            a=_build_side_record(claim, claim.a, self.a[: self.n]),
            b=_build_side_record(claim, claim.b, self.b[: self.n]),
            found=self.found,
            n=self.n,
            limit=claim.plan.last,
            difference=difference,
            interval=interval,
            sd=made.dense.sd if made else None,
            p_confirmed=made.p_as_good if made else 1.0,
            p_refuted=made.p_loses if made else 1.0,
            more=made.more_seeds if made else None,
            unknown="" if self.found != "undecided" else self.unknown,
            seconds=seconds,
            noise=tuple(noise),
            noise_missing=noise_missing,
        )


def _build_side_record(claim: Hypothesis, side: Side, values: tuple[float, ...]) -> campaign_record.Side:
    """Return the record of one side of a claim; `values` are the metric's values on this side, one per replicate."""
    by_level = claim.density is None and side.role != DENSE
    return campaign_record.Side(side.run, side.role, values, side.level if by_level else None)


_SHARED_FIELDS = [one.name for one in dataclasses.fields(Hypothesis) if one.name not in ("a", "b", "plan")]


def decide_claims(
    claims: Sequence[Hypothesis],
    records: Mapping[str, Sequence[RunRecord]],
    resolution: Mapping[str, float | None],
    stable: Mapping[str, Sequence[StabilityRecord]] | None = None,
) -> list[Decision]:
    """Return the decision of each claim, judged by the finished blocks (replicates that were trained together).

    Args:
        claims: all claims of the campaign, since the claims of a family are corrected together.
        records: records of the finished blocks of each run, in order.
        resolution: smallest possible difference of each run's metric; None for a continuous metric.
    """
    made = [_decide_claim(claim, records, resolution, stable or {}) for claim in claims]
    sizes = family_size_by_claim(claims)
    for family in dict.fromkeys(claim.family for claim in claims):
        members = [index for index, one in enumerate(made) if one.claim.family == family]
        # Claims without replicates count with p-values of 1.
        judged = [
            made[index].verdict or _compute_verdict(made[index].claim, [100.0], [100.0], 1.0) for index in members
        ]
        plans = [made[index].claim.plan for index in members]
        by_size = {sizes[index]: holm_verdicts(judged, plans, family=sizes[index]) for index in members}
        for place, index in enumerate(members):
            one = made[index]
            verdict = by_size[sizes[index]][place] if one.verdict is not None else None
            made[index] = dataclasses.replace(one, verdict=verdict)
    return made


def family_size_by_claim(claims: Sequence[Hypothesis]) -> list[int]:
    """Return, for each claim, the number of hypotheses in its multiple-testing correction.

    This is the size of the claim's family. For a replication, it is at least the family size of the claim that it
    repeats: claims to repeat are chosen by their results, so that a smaller family would make the test too easy.
    """
    members = Counter(claim.family for claim in claims)
    named = {claim.name: claim for claim in claims}
    sizes = []
    for claim in claims:
        size, one = members[claim.family], claim
        while one.again in named:
            one = named[one.again]
            size = max(size, members[one.family])
        sizes.append(size)
    return sizes


def _decide_claim(
    claim: Hypothesis,
    records: Mapping[str, Sequence[RunRecord]],
    resolution: Mapping[str, float | None],
    stable: Mapping[str, Sequence[StabilityRecord]],
) -> Decision:
    a, b = (
        _stability_values(claim, side, stable.get(side.run, ()))
        if claim.metric in STABILITY
        else _side_metrics(claim, side, records.get(side.run, ()))
        for side in (claim.a, claim.b)
    )
    # A number is compared with every replicate.
    a, b = (
        own if side.value is None else (side.value,) * len(other)
        for side, own, other in ((claim.a, a, b), (claim.b, b, a))
    )
    # Missing and infinite values end the usable replicates.
    n, unknown = _count_finite_replicates(claim, a, b)
    a, b = a[:n], b[:n]
    at = max((planned for planned in claim.plan.at if planned <= n), default=0)
    verdict = None
    if at:
        step = _metric_resolution(claim, resolution)
        verdict = _compute_verdict(claim, a[:at], b[:at], step)
    return Decision(claim, a, b, verdict, unknown)


def _count_finite_replicates(claim: Hypothesis, a: Sequence[float], b: Sequence[float]) -> tuple[int, str]:
    """Return how many replicates come before the first with a non-finite value, and a text about that value."""
    for n, values in enumerate(zip(a, b, strict=False)):
        for side, value in zip((claim.a, claim.b), values, strict=True):
            if not isfinite(value):
                return n, f"no {claim.metric} is known of the {side.role} of {side.run} in replicate {n + 1}"
    return min(len(a), len(b)), ""


def _metric_resolution(claim: Hypothesis, resolution: Mapping[str, float | None]) -> float | None:
    """Return the smallest possible difference of a claim's metric; None for a continuous quantity, such as seconds."""
    if claim.metric in STABILITY and claim.metric != "barrier":
        return None
    if claim.metric in COSTS:
        return _COST_RESOLUTIONS.get(claim.metric)
    return _DENSITY_STEP if claim.metric == DENSITY else resolution.get(claim.runs[0])


def _compute_verdict(claim: Hypothesis, a: Sequence[float], b: Sequence[float], resolution: float | None) -> Verdict:
    shift = (claim.above + claim.margin) * (1 if claim.higher_is_better else -1)
    return decide_after(
        a,
        [value + shift for value in b],
        interim=claim.plan,
        claim="matches",
        margin=claim.margin,
        confidence=claim.confidence,
        higher_is_better=claim.higher_is_better,
        resolution=resolution,
        unit=claim.unit or "differences",
        stop=False,
    )


def _stability_values(claim: Hypothesis, side: Side, blocks: Sequence[StabilityRecord]) -> tuple[float, ...]:
    """Return the value of a claim's stability metric on one side, for each replicate in `blocks`."""
    found = []
    for record in blocks:
        rows = {(row.replicate, row.level): row for row in record.rows if row.role == side.role}
        level = max(level for _, level in rows) if side.level is None else side.level
        for replicate in range(record.replicates):
            row = rows[replicate, level]
            if claim.metric == "barrier":
                assert row.barrier is not None  # checked with the file
                found.append(row.barrier.height)
            else:
                apart = row.data_order if claim.metric == "order-distance" else row.pruning
                assert apart is not None  # checked with the file
                found.append(apart.l2)
    return tuple(found)


def _side_metrics(claim: Hypothesis, side: Side, blocks: Sequence[RunRecord]) -> tuple[float, ...]:
    """Return the value of a claim's metric on one side, for each replicate in `blocks`."""
    found = []
    for record in blocks:
        points = {(one.replicate, one.level, one.role): one for one in record.points}
        level = 0 if side.role == DENSE else side.level
        if level is None:
            level = max(point.level for point in record.points if point.role == TICKET)
        for replicate in range(record.replicates):
            if (point := points.get((replicate, level, side.role))) is None:
                told = f"{side.role} of level {level} for replicate {replicate}"
                raise UsageError(f"{claim.name}: {record.name} has no {told}")
            if claim.metric == DENSITY:
                found.append(point.density)
            else:
                cost = claim.metric in COSTS
                found.append(network_cost(point, claim.metric) if cost else point.metric(claim.metric))
    return tuple(found)


def network_cost(point: Point, what: str) -> float:
    """Return the cost `what` (steps, FLOPs, seconds or bytes of memory) of a network; NaN if it was not measured."""
    value = getattr(point.phases.total, what) if point.phases else None
    return float("nan") if value is None else float(value)


def method_table(campaign: Campaign, done: Mapping[str, Sequence[RunRecord]]) -> Iterator[MethodRow]:
    """Yield table rows of a campaign: for tickets and controls at each level, and for each distinct dense network."""
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
            yield _build_method_row(
                name, request.method.title, role, found, request.task.metric.name, request.task.metric.unit
            )


def _build_method_row(run: str, method: str, role: str, points: list[Point], metric: str, unit: str) -> MethodRow:
    found = summarise([point.metric(metric) for point in points])
    costs = {
        what: sum(network_cost(point, what) for point in points) / len(points) for what in ("steps", "flops", "seconds")
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
