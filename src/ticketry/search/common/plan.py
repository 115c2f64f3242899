"""The trainings of a search, known before any starts. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ticketry.step import Step


class Schedule(Protocol):
    """Length of a training by the recipe, in iterations. Every `Segment` has these properties."""

    @property
    def total(self) -> int:
        """Number of iterations of the whole training."""

    @property
    def per_epoch(self) -> int:
        """Number of iterations of an epoch."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A planned training of one replicate, other than that of the dense network.

    A method's ``plan(settings)`` returns all of them; progress displays, campaigns and forecasts read them. Methods of
    this class take the length of a training by the recipe, because points such as 25% depend on it.

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
    """Steps at which the mask changes, with the density after each (1 without a mask, None if unknown). The training is
    split there, and only its last part is evaluated."""
    controls_from: str = ""
    """Point at which controls of the ticket begin; by default where its final mask is first trained."""
    has_controls: bool = True
    """Whether controls of the ticket are trained, if the run has controls."""

    def pieces(self, schedule: Schedule) -> list[tuple[int, float | None]]:
        """Split the training where its mask changes; return (steps, density) of each part.

        Args:
            schedule: length of a training by the recipe.
        """
        first, last = self._to_iteration(self.first, schedule), self._to_iteration(self.last, schedule)
        if self.cuts is None:
            return [(max(last - first, 0), self.density)]
        cuts = dict(self.cuts(schedule))
        ends = [*[*cuts][1:], last]
        return [(end - step, density) for (step, density), end in zip(cuts.items(), ends, strict=True)]

    def steps(self, schedule: Schedule) -> int:
        """Return the number of steps.

        Args:
            schedule: length of a training by the recipe.
        """
        return sum(steps for steps, _ in self.pieces(schedule))

    def control_steps(self, schedule: Schedule) -> int:
        """Return the number of steps of each control of the ticket.

        Args:
            schedule: length of a training by the recipe.
        """
        if self.controls_from:
            return self._to_iteration(self.last, schedule) - self._to_iteration(self.controls_from, schedule)
        return self.pieces(schedule)[-1][0]

    @staticmethod
    def _to_iteration(point: str, schedule: Schedule) -> int:
        return Step.parse(point).iterations(total=schedule.total, per_epoch=schedule.per_epoch)


def ticket_trainings(plan: Iterable[Training]) -> list[Training]:
    """Return the planned trainings that train tickets, in the order of levels."""
    return sorted((one for one in plan if one.level), key=lambda one: one.level)


def ticket_training_span(retrain: str, rewind: str) -> dict[str, Any]:
    """Return the first and last step of a ticket's training after pruning, as keywords of `Training`.

    Args:
        retrain: how the ticket is trained, see `lab.retrain`.
        rewind: point that the ticket is rewound to.
    """
    if retrain == "none":
        return {"last": "0"}
    whole = retrain == "restart" or (retrain == "finetune" and Step.parse(rewind) == Step.parse("end"))
    return {} if whole else {"first": rewind}
