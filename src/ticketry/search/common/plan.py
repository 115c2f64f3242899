"""The trainings of a search, known before any starts. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ticketry.step import Step


class Schedule(Protocol):
    """Length of a training by the recipe; a `Segment` is one."""

    @property
    def total(self) -> int:
        """Iterations of the whole training."""

    @property
    def per_epoch(self) -> int:
        """Iterations of an epoch."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training that a search does beside the dense network, in one replicate.

    A method's ``plan(settings)`` returns all of them. Progress, campaign plans, forecasts of time and the cost of
    claims read it, so a method needs no other description of what it trains. Its methods take a schedule, the length
    of a training by the recipe, because points such as 25% depend on it.

    Examples:
        >>> plan = tk.search.oneshot.plan(tk.search.oneshot.Settings(density=(0.5, 0.2), rewind="25%"))
        >>> [(training.level, training.density, training.first, training.last) for training in plan]
        [(1, 0.5, '25%', 'end'), (2, 0.2, '25%', 'end')]
    """

    level: int = 0
    """Level of the ticket that is trained; 0 for a training that only leads to tickets."""
    density: float | None = None
    """Density of the mask at its end; None if there is no mask, or if the density is an outcome of the search."""
    first: str = "0"
    """Point of the schedule at which it begins, such as 500it, 3%."""
    last: str = "end"
    """Point of the schedule at which it ends."""
    cuts: Callable[[Schedule], Mapping[int, float | None]] | None = None
    """Steps at which the mask changes, with the density after each (1 without a mask, None if unknown). A piece is
    trained from each to the next, and only the last piece is measured."""
    controls_from: str = ""
    """Point at which controls of the ticket begin; by default where its final mask is first trained."""
    has_controls: bool = True
    """Whether controls are trained beside the ticket, if the run has controls."""

    def pieces(self, schedule: Schedule) -> list[tuple[int, float | None]]:
        """Return steps and density of each piece that is trained."""
        first, last = self._iteration(self.first, schedule), self._iteration(self.last, schedule)
        if self.cuts is None:
            return [(max(last - first, 0), self.density)]
        cuts = dict(self.cuts(schedule))
        ends = [*[*cuts][1:], last]
        return [(end - step, density) for (step, density), end in zip(cuts.items(), ends, strict=True)]

    def steps(self, schedule: Schedule) -> int:
        """Return the number of steps."""
        return sum(steps for steps, _ in self.pieces(schedule))

    def control_steps(self, schedule: Schedule) -> int:
        """Return the number of steps of each control of the ticket."""
        if self.controls_from:
            return self._iteration(self.last, schedule) - self._iteration(self.controls_from, schedule)
        return self.pieces(schedule)[-1][0]

    @staticmethod
    def _iteration(point: str, schedule: Schedule) -> int:
        return Step.parse(point).iterations(total=schedule.total, per_epoch=schedule.per_epoch)


def tickets_in(plan: Iterable[Training]) -> list[Training]:
    """Return the trainings of tickets, by level."""
    return sorted((one for one in plan if one.level), key=lambda one: one.level)


def ticket_span(retrain: str, rewind: str) -> dict[str, Any]:
    """Return where a ticket's own training begins and ends, as keywords of `Training`.

    Args:
        retrain: how it is trained, see `lab.retrain`.
        rewind: point that the ticket is rewound to.
    """
    if retrain == "none":
        return {"last": "0"}
    whole = retrain == "restart" or (retrain == "finetune" and Step.parse(rewind) == Step.parse("end"))
    return {} if whole else {"first": rewind}
