"""The plan of a search: all its trainings, listed before the first one starts. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ticketry.step import Step


class Schedule(Protocol):
    """Lengths, in iterations, of a whole training and of an epoch; a `Segment` can be passed as a `Schedule`."""

    @property
    def total(self) -> int:
        """Number of iterations of a whole training by the recipe."""

    @property
    def per_epoch(self) -> int:
        """Number of iterations of an epoch."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A planned training of one replicate, other than that of the dense network.

    A method's ``plan(settings)`` returns a list of these, which progress displays, campaigns and forecasts read. The
    methods below take a `schedule`, the length of a training by the recipe, because points such as 25% depend on it.

    Examples:
        >>> plan = tk.search.oneshot.plan(tk.search.oneshot.Settings(density=(0.5, 0.2), rewind="25%"))
        >>> [(training.level, training.density, training.first, training.last) for training in plan]
        [(1, 0.5, '25%', 'end'), (2, 0.2, '25%', 'end')]
    """

    level: int = 0
    """Level of the ticket that is trained; 0 for a training that only leads to tickets."""
    density: float | None = None
    """Density of the mask when the training ends; None without a mask, or if the search determines the density."""
    first: str = "0"
    """Point of the schedule at which the training begins, such as 500it, 3%."""
    last: str = "end"
    """Point of the schedule at which the training ends."""
    cuts: Callable[[Schedule], Mapping[int, float | None]] | None = None
    """Function that maps the schedule to {step at which the mask changes: density after it}. The density is 1 without a
    mask and None if unknown. The training is split at these steps, and only the last part is evaluated."""
    controls_from: str = ""
    """Point at which controls of the ticket begin; by default the point at which the final mask is first trained."""
    has_controls: bool = True
    """Whether controls of the ticket are trained, if the run has controls."""

    def pieces(self, schedule: Schedule) -> list[tuple[int, float | None]]:
        """Split the training where its mask changes; return (number of steps, density) of each part."""
        first, last = self._step_number_of_point(self.first, schedule), self._step_number_of_point(self.last, schedule)
        if self.cuts is None:
            return [(max(last - first, 0), self.density)]
        cuts = dict(self.cuts(schedule))
        ends = [*[*cuts][1:], last]
        return [(end - step, density) for (step, density), end in zip(cuts.items(), ends, strict=True)]

    def steps(self, schedule: Schedule) -> int:
        """Return the number of steps of this training."""
        return sum(steps for steps, _ in self.pieces(schedule))

    def control_steps(self, schedule: Schedule) -> int:
        """Return the number of steps for which each control of the ticket is trained."""
        if self.controls_from:
            return self._step_number_of_point(self.last, schedule) - self._step_number_of_point(
                self.controls_from, schedule
            )
        return self.pieces(schedule)[-1][0]

    @staticmethod
    def _step_number_of_point(point: str, schedule: Schedule) -> int:
        return Step.parse(point).iterations(total=schedule.total, per_epoch=schedule.per_epoch)


def ticket_trainings(plan: Iterable[Training]) -> list[Training]:
    """Return only those planned trainings that train a ticket, in the order of their levels."""
    return sorted((one for one in plan if one.level), key=lambda one: one.level)


def ticket_training_span(retrain: str, rewind: str) -> dict[str, Any]:
    """Return where a ticket's training begins and ends, as keywords of `Training`; defaults are omitted."""
    if retrain == "none":
        return {"last": "0"}
    whole = retrain == "restart" or (retrain == "finetune" and Step.parse(rewind) == Step.parse("end"))
    return {} if whole else {"first": rewind}
