"""What happened while masks were searched for: gates round by round, and what detectors saw before they pruned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ticketry.records.network import DISTANCE, TICKET, Moment
from ticketry.records.run import Round
from ticketry.report.tables.results import Results
from ticketry.report.wording import MINUS

T = TypeVar("T")


def spread_out(found: Sequence[T], most: int = 6) -> list[T]:
    """At most so many of them, the first and last among them, evenly spread."""
    if len(found) <= most:
        return list(found)
    return [found[round(index * (len(found) - 1) / (most - 1))] for index in range(most)]


@dataclass(frozen=True)
class Chain:
    """The rounds that led to the last ticket of one search among those side by side, in one replicate."""

    name: str
    rounds: tuple[Round, ...]

    @property
    def density(self) -> float:
        return self.rounds[-1].density

    @property
    def path(self) -> tuple[list[float], list[float]]:
        """Steps since the search began, and shares, from the first one told on: with s0 below 0 no gate is on
        before."""
        steps: list[float] = []
        shares: list[float] = []
        before = 0
        for one in self.rounds:
            steps += [before + step for step, _ in one.path]
            shares += [share for _, share in one.path]
            before += one.steps
            steps.append(before)
            shares.append(one.density)
        return steps, shares


def chains(results: Results) -> list[Chain]:
    """Of the first replicate, the densest first; at most six, evenly spread."""
    first = min((one.replicate for one in results.run.rounds), default=0)
    used = sorted((one for one in results.run.rounds if one.used and one.replicate == first), key=lambda one: one.level)
    groups: list[list[Round]] = []
    for one in used:
        if one.number == 1 or not groups:
            groups.append([])
        groups[-1].append(one)
    penalties = len({one.penalty for one in used}) > 1
    found = [Chain(_name(group, penalties), tuple(group)) for group in groups]
    return spread_out(sorted(found, key=lambda chain: -chain.density))


def _name(rounds: Sequence[Round], penalties: bool) -> str:
    inits = list(dict.fromkeys(f"{one.init:.3g}" for one in rounds))
    inside = inits[0] if len(inits) == 1 else f"{inits[0]} … {inits[-1]}"
    extra = f", λ {rounds[0].penalty:.2g}" if penalties else ""
    return f"{inside.replace('-', MINUS)}{extra} ({100 * rounds[-1].density:.3g} %)"


@dataclass(frozen=True)
class Watched:
    """One density: when each replicate was pruned to it."""

    level: int
    density: float
    moments: dict[int, Moment]
    """By replicate."""

    @property
    def threshold(self) -> float:
        return next(iter(self.moments.values())).threshold

    @property
    def by_distance(self) -> bool:
        return all(moment.detector == DISTANCE for moment in self.moments.values())


def watched(results: Results) -> list[Watched]:
    """The densities for which something was looked at, densest first; at most six, evenly spread."""
    found = []
    for group in sorted(results.of_role(TICKET), key=lambda group: -group.density):
        moments = {r: point.moment for r, point in group.points.items() if point.moment and point.moment.looks}
        if moments:
            found.append(Watched(group.level, group.density, moments))
    return spread_out(found)
