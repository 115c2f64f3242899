"""Training steps that all claims would need if each were decided alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ticketry.experiments.reproduce.campaign_file import STABILITY, Side
from ticketry.experiments.reproduce.claims import Decision
from ticketry.experiments.request import SearchRequest
from ticketry.records.network import DENSE, TICKET, Phases, Point, is_matched_dense
from ticketry.records.run import RunRecord
from ticketry.search import Training

_Name = tuple[object, ...]
_Parts = Counter[_Name]
"""Steps of each training, by name. Networks that share a training use the same name, so that the union (``|``) has its
longest part."""


def steps_alone(
    decisions: Iterable[Decision], done: Mapping[str, Sequence[RunRecord]], runs: Mapping[str, SearchRequest]
) -> int:
    """Return the training steps that each claim needs alone, summed over claims.

    A claim needs, for each of its replicates, the dense network in both data orders, all tickets up to the compared
    one, and the compared controls. Within a claim, shared trainings count once: its runs have one dense
    network, a control has the search of its ticket, and tickets that differ only in structure have the same search.
    """
    return sum(_of_claim(one, done, runs).total() for one in decisions)


def _of_claim(decision: Decision, done: Mapping[str, Sequence[RunRecord]], runs: Mapping[str, SearchRequest]) -> _Parts:
    claim, found = decision.claim, _Parts()
    for replicate in range(decision.n):
        parts = _Parts()
        for name in claim.runs:
            made = _Replicate.from_blocks(name, runs[name], replicate, done[name])
            parts |= made.dense()
            for side in (claim.a, claim.b):
                if (side.run, side.value) == (name, None):
                    parts |= made.parts_of(side, again=claim.metric in STABILITY)
        found.update({(replicate, *name): steps for name, steps in parts.items()})
    return found


@dataclass(frozen=True)
class _Replicate:
    """Networks that a run trained in one replicate."""

    run: str
    request: SearchRequest
    last: int
    """Level of the tickets of a claim that names no level."""
    points: Mapping[tuple[str, int], Point]
    """By role and level."""

    @classmethod
    def from_blocks(cls, run: str, request: SearchRequest, replicate: int, blocks: Sequence[RunRecord]) -> _Replicate:
        """Find a replicate in a run's blocks."""
        for record in blocks:
            if replicate < record.replicates:
                own = {(one.role, one.level): one for one in record.points if one.replicate == replicate}
                last = max((one.level for one in record.points if one.role == TICKET), default=0)
                return cls(run, request, last, own)
            replicate -= record.replicates
        raise AssertionError("a claim is judged by replicates that are done")

    def dense(self) -> _Parts:
        """Return the dense network in both data orders, which every campaign trains."""
        whole = self.points[DENSE, 0]
        return _Parts({("dense", whole.key): whole.steps or 0, ("second order", whole.key): whole.steps or 0})

    def parts_of(self, side: Side, *, again: bool) -> _Parts:
        """Return all other trainings that one side of a claim needs.

        Args:
            side: the side.
            again: whether its network is also trained in a second data order.
        """
        level, parts = self.last if side.level is None else side.level, _Parts()
        for role, at in self._networks(side.role, level):
            point = self._point(role, at)
            ticket = self._ticket_of(point)
            if point.phases is not None and ticket.phases is not None:
                parts |= self._dense_of(role, point.phases, ticket.phases) | self._masked(role, point, point.phases)
        if again:
            own = self.points[DENSE, 0] if side.role == DENSE else self._point(side.role, level)
            parts |= _Parts({("second order", self.run, side.role, level): own.steps or 0})
        return parts

    def _networks(self, role: str, level: int) -> Iterator[tuple[str, int]]:
        yield from ((TICKET, at) for name, at in self.points if name == TICKET and at <= level)
        if role not in (DENSE, TICKET):
            yield role, level

    def _point(self, role: str, level: int) -> Point:
        """Return the row of a network; masks of a stability analysis have none, and use their ticket's."""
        return next(self.points[name, level] for name in (role, TICKET) if (name, level) in self.points)

    def _ticket_of(self, point: Point) -> Point:
        """Return the ticket of a control."""
        return self.points.get((TICKET, point.level), point)

    def _dense_of(self, role: str, phases: Phases, of_ticket: Phases) -> _Parts:
        """Return trainings without a mask: the dense network, unless the search has a shorter schedule."""
        settings = self.request.settings
        compressed = getattr(settings, "equal_cost", "") == "steps" and not getattr(settings, "one_training", False)
        begins = self.run if compressed else self.points[DENSE, 0].key
        # A control may begin with its own dense training; a matched dense network has only that.
        begun = 0 if is_matched_dense(role) else min(phases.dense.steps, of_ticket.dense.steps)
        return _Parts({("dense", begins): begun, ("fresh", self.run, role): phases.dense.steps - begun})

    def _masked(self, role: str, point: Point, phases: Phases) -> _Parts:
        """Return trainings with masks: the search, and the network itself."""
        search, own = phases.search.steps, phases.sparse.steps
        planned = next((one for one in self.request.tickets if one.level == point.level), Training())
        if not any(one.shared for one in self.request.plan):
            line: _Name = ("search", self.run, planned.line or point.level)
        else:
            line = ("search", self.points[DENSE, 0].key, planned.line)
            if role == TICKET and planned.shared:  # the next level continues from it
                return _Parts({line: search + own})
        return _Parts({line: search, (self.run, role, point.level): own})
