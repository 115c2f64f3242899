"""Parse the options of a request for a task, which are given as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from ticketry.choices import list_choices
from ticketry.errors import TaskError
from ticketry.tasks.task import Spec

_DIGITS = 18
"""Largest number of digits that a whole number may have."""


class Options:
    """Parses the options of a request; an invalid value raises `TaskError`, which names the valid values."""

    def __init__(self, spec: Spec, known: Sequence[str]) -> None:
        self._task, self.given = spec.name, dict(spec.options)
        if unknown := sorted(set(self.given) - set(known)):
            raise TaskError(
                f"the task {spec.name} has no option {unknown[0]}: it has {list_choices(unknown[0], known)}"
            )

    def text(self, option: str, default: str = "") -> str:
        """Return the text of an option, or `default` if it is not given."""
        return self.given.get(option, default)

    def names(self, option: str, default: str = "") -> tuple[str, ...]:
        """Return the names in an option, which are separated by commas."""
        return tuple(part.strip() for part in self.text(option, default).split(",") if part.strip())

    def path(self, option: str) -> Path | None:
        """Return the path in an option as an absolute path; None if the option is not given."""
        return Path(self.given[option]).expanduser().absolute() if self.given.get(option) else None

    def with_paths(self, spec: Spec, *options: str) -> Spec:
        """Return a copy of the request `spec` in which the paths in these options are absolute."""
        found = tuple((name, str(self.path(name)) if name in options and text else text) for name, text in spec.options)
        return replace(spec, options=found)

    def whole(self, option: str, default: int, *, least: int | None = 0, what: str = "whole number") -> int:
        """Return the whole number in an option, at least `least`; None means at least 0, unmentioned in messages."""
        text = self.text(option, str(default))
        if not text.isdecimal() or len(text) > _DIGITS or int(text) < (least or 0):
            bound = "" if least is None else f", at least {least}"
            raise self.value_error(option, f"a {what}{bound}")
        return int(text)

    def share(self, option: str, default: str = "0.1", *, what: str = "share") -> Fraction:
        """Return the share in an option, a number above 0 and below 1."""
        try:
            share = Fraction(self.text(option, default))
        except (ValueError, ZeroDivisionError):
            share = Fraction(0)
        if not 0 < share < 1:
            raise self.value_error(option, f"a {what} such as {default}, between 0 and 1")
        return share

    def truth(self, option: str, default: bool) -> bool:
        """Return the truth value in an option, which is given as true or false."""
        text = self.text(option, str(default)).lower()
        if text not in ("true", "false"):
            raise self.value_error(option, "true or false")
        return text == "true"

    def value_error(self, option: str, wanted: str) -> TaskError:
        """Return the error for an option with an invalid value; `wanted` describes the valid values."""
        return TaskError(f"the option {option} of {self._task} is {wanted}, not {self.given[option]!r}")
