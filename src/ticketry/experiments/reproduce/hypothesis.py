"""Claims as they are judged: two sides, a metric and a bound."""

from __future__ import annotations

from dataclasses import dataclass

from ticketry.evidence.judging.interim_analyses import InterimAnalyses

COSTS = {"steps": "steps", "flops": "FLOPs", "seconds": "s", "memory": "B"}
"""What a claim may compare besides the task's metric, of all that a network needed, and its unit: the less the
better. Of memory it is the highest of any phase of training."""
DENSITY = "density"
"""Another: the fraction of weights kept, of masks whose density is an outcome; the less the better."""
STABILITY = ("barrier", "order-distance", "pruning-distance")
"""What a claim may compare of runs with ``stability``, the less the better: the error barrier between two trainings
that differ in the order of the data, their L2 distance, and that to the dense network pruned after training."""
VALUE = "number"
"""The role of a side that is none of a run."""


@dataclass(frozen=True)
class Side:
    """One of the two that a claim compares: a run's tickets, its dense network, or a control."""

    run: str
    role: str
    level: int | None
    """Of the run's tickets; 0 for the dense network, None for the last that is found."""
    value: float | None = None
    """A number in the place of a run, of which there is none then."""


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A is better than B by more than `above`, see `records.campaign.Claim`."""

    name: str
    statement: str
    source: str
    figure: str
    a: Side
    b: Side
    density: float | None
    metric: str
    unit: str
    higher_is_better: bool
    above: float
    margin: float
    confidence: float
    family: str
    plan: InterimAnalyses
    """At how many replicates it is judged."""
    again: str = ""
    """The claim that it asks again."""

    @property
    def runs(self) -> tuple[str, ...]:
        """That it rests on, each once."""
        return tuple(dict.fromkeys(side.run for side in (self.a, self.b) if side.value is None))
