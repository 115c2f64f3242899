"""What a method says of itself, for lists."""

from __future__ import annotations

from dataclasses import dataclass

NOT_SAID = "not said"


@dataclass(frozen=True)
class About:
    """Facts of a method: where it is from, when it prunes, what it costs. A method that has none may leave it out."""

    paper: str = NOT_SAID
    """A short citation."""
    prunes: str = NOT_SAID
    """When, relative to training: before, early in, during or after it."""
    costs: str = NOT_SAID
    """Trainings of the recipe that its tickets take, the search included and the dense network to compare with not."""
    score: str = ""
    """What decides on the score that it takes by default, if that is left open."""
    removes: str = ""
    """weights, channels or both; empty where settings tell: both if one is called structured, else weights."""
