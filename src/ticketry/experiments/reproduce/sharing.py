"""What claims share: how many steps they would have trained each by itself, beside how many were trained for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ticketry.experiments.reproduce.deciding import Decision
from ticketry.experiments.reproduce.hypothesis import STABILITY, Side
from ticketry.records.network import DENSE, TICKET, Point
from ticketry.records.run import RunRecord


def steps_alone(decisions: Iterable[Decision], done: Mapping[str, Sequence[RunRecord]]) -> int:
    """Training steps of all networks that each claim rests on, their searches included, added up over claims.

    Within a claim nothing is counted twice: both sides have one dense network, and a control has its ticket's search. A
    claim has the replicates by which it is judged, and of each the dense network in a second order too.
    """
    return sum(_of_claim(one, done) for one in decisions if one.n)


def _of_claim(decision: Decision, done: Mapping[str, Sequence[RunRecord]]) -> int:
    claim = decision.claim
    sides = [side for side in (claim.a, claim.b) if side.value is None]
    found = 0
    for replicate in range(decision.n):
        points = [_point(side, replicate, done[side.run]) for side in sides]
        found += _union(points, one_run=len(claim.runs) == 1)
        if claim.metric in STABILITY:
            found += sum(point.steps or 0 for point in points)  # once more, in a second order
        else:
            found += _point(Side(claim.runs[0], DENSE, 0), replicate, done[claim.runs[0]]).steps or 0
    return found


def _union(points: Sequence[Point], *, one_run: bool) -> int:
    phases = [point.phases for point in points if point.phases is not None]
    whole = sum(one.whole.steps for one in phases)
    if len(phases) < 2:
        return whole
    shared = min(one.dense.steps for one in phases)
    if one_run:
        shared += min(one.search.steps for one in phases)
    return whole - shared


def _point(side: Side, replicate: int, blocks: Sequence[RunRecord]) -> Point:
    for record in blocks:
        if replicate >= record.replicates:
            replicate -= record.replicates
            continue
        level = side.level
        if level is None:
            level = max(point.level for point in record.points if point.role == TICKET)
        wanted = (replicate, 0 if side.role == DENSE else level, side.role)
        # Of stability another mask than the run's controls has no point: its ticket stands for it.
        of_ticket = (*wanted[:2], TICKET)
        found = {(point.replicate, point.level, point.role): point for point in record.points}
        return found[wanted] if wanted in found else found[of_ticket]
    raise AssertionError("a claim is judged by replicates that are done")
