"""Integers that depend on the number of examples, and whether a call of another number is as they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ticketry_engine.capture.tracing.tape import Step


class Line(NamedTuple):
    """An integer that is a multiple of the number of examples plus a rest."""

    per_example: int
    more: int

    def at(self, examples: int) -> int:
        return self.per_example * examples + self.more


def is_as_said(said: Any, found: Any, examples: int) -> bool:
    """Whether steps, arguments or containers of them are those in which lines are for all numbers of examples.

    Args:
        said: with `Line` in the place of some integers.
        found: in a call of this many examples.
    """
    if isinstance(said, Line):
        return bool(said.at(examples) == found)
    if isinstance(said, Step):
        same = said.op is found.op and said.made == found.made
        return same and is_as_said((said.args, said.kwargs), (found.args, found.kwargs), examples)
    if isinstance(said, (list, tuple)):
        several = isinstance(found, (list, tuple)) and len(said) == len(found)
        return several and all(is_as_said(*pair, examples) for pair in zip(said, found, strict=True))
    if isinstance(said, dict):
        same = isinstance(found, dict) and said.keys() == found.keys()
        return same and all(is_as_said(part, found[name], examples) for name, part in said.items())
    return said is found or bool(said == found)


def is_of_shape(said: Sequence[int | Line | None], found: Sequence[int], examples: int) -> bool:
    """The same of a tensor's sizes, where None may be any."""
    known = [(size, other) for size, other in zip(said, found, strict=False) if size is not None]
    return len(said) == len(found) and all(is_as_said(*pair, examples) for pair in known)
