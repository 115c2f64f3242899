"""Parse the options of requests for tasks, and check requests that come from files, such as tickets of others.

A file may request built-in tasks and networks, with numbers and words as options. These import no module of the user,
open no path, and download only published data sets with a known digest. Any other request must come from the user: on
the command line, in Python, or by trusting the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ticketry.choices import list_choices
from ticketry.errors import TaskError, TrustError
from ticketry.tasks import facts as tables
from ticketry.tasks.facts import DATA_SETS, ENVIRONMENTS, PUBLISHED, Learning
from ticketry.tasks.network_name import LANGUAGE_MODELS, NETWORKS, parse_hidden_widths

if TYPE_CHECKING:
    from ticketry.tasks.task import Spec

ALLOWED_OPTIONS = {
    **dict.fromkeys(DATA_SETS.built_in, ("train", "size")),
    **dict.fromkeys(PUBLISHED, ("train", "time", "dropout")),
    **dict.fromkeys(tables.UCI, tables.OPTIONS),
    **dict.fromkeys(ENVIRONMENTS, tuple(field.name for field in fields(Learning))),
}
"""The options that a file may set, by task; none of them is a path."""

LARGEST = {"time": 1 << 16}
"""The largest value that a file may set, by option; without it, a file could ask for all memory."""

ADVICE = "if you know what it is and trust who made the file, say so: --trust (in Python trust=True)"

_MOST_HIDDEN_LAYERS, _MOST_WEIGHTS = 16, 1 << 27
_WIDTH = re.compile(r"[0-9.]{1,12}")
_VALUE = re.compile(r"[A-Za-z0-9.+-]{0,32}")


def check_request(task: str, model: str | None, options: Iterable[tuple[str, str]], *, of: str) -> None:
    """Raise `TrustError` if the file named `of` may not request this task; the error says how to allow the task."""
    if task not in ALLOWED_OPTIONS:
        raise untrusted_request_error("task", task, of, "name it yourself with --task, or, ")
    if model is not None:
        check_network(model, of=of)
    for name, value in options:
        known = name in ALLOWED_OPTIONS[task] and _VALUE.fullmatch(value)
        if not known or (name in LARGEST and not (value.isdecimal() and int(value) <= LARGEST[name])):
            raise untrusted_request_error(f"option {quote(name)} of the task {task}", value, of)


def check_network(name: str, *, of: str) -> None:
    """Raise `TrustError` unless the network that the file named `of` requests is built in (at any width)."""
    base, at, width = name.partition("@")
    known = base in NETWORKS.built_in or base in LANGUAGE_MODELS.built_in
    if not known and (widths := parse_hidden_widths(base)):  # of a perceptron that fits into memory
        weights = sum(one * other for one, other in pairwise(widths))
        known = len(widths) <= _MOST_HIDDEN_LAYERS and weights <= _MOST_WEIGHTS
    if not known or (at and not _WIDTH.fullmatch(width)):
        raise untrusted_request_error("network", name, of)


def is_widened(network: str | None) -> bool:
    """Return whether `network` names a wider variant of a built-in network, which may not fit into memory."""
    _, at, width = (network or "").partition("@")
    return bool(at) and not width.startswith(("0.", "."))


def untrusted_request_error(what: str, name: object, of: str, instead: str = "") -> TrustError:
    """Return the error for a file that contains a name which is not allowed.

    `what` is the kind of the named object, `of` the file, and `instead` says what the user can do.
    """
    return TrustError(
        f"{of} names the {what} {quote(name)}, which is not one of the built-in ones that a file may ask for. What a"
        f" file names is never imported, opened or downloaded by itself: {instead}{ADVICE}"
    )


def quote(value: object) -> str:
    """Return a value from a file as short text on one line, without control characters."""
    return repr(value) if len(repr(value)) <= 100 else f"{value!r:.97}..."


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
        """Return the comma-separated names in the value of an option."""
        return tuple(part.strip() for part in self.text(option, default).split(",") if part.strip())

    def path(self, option: str) -> Path | None:
        """Return the path in an option as an absolute path; None if the option is not given."""
        return Path(self.given[option]).expanduser().absolute() if self.given.get(option) else None

    def with_absolute_paths(self, spec: Spec, *options: str) -> Spec:
        """Return a copy of the request `spec` in which the paths in these options are absolute."""
        found = tuple((name, str(self.path(name)) if name in options and text else text) for name, text in spec.options)
        return replace(spec, options=found)

    def whole_number(self, option: str, default: int, *, least: int | None = 0, what: str = "whole number") -> int:
        """Return the value of an option, a whole number of at least `least` (at least 0 if `least` is None)."""
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

    def boolean(self, option: str, default: bool) -> bool:
        """Return the truth value in an option, which is given as true or false."""
        text = self.text(option, str(default)).lower()
        if text not in ("true", "false"):
            raise self.value_error(option, "true or false")
        return text == "true"

    def value_error(self, option: str, wanted: str) -> TaskError:
        """Return the error for an option with an invalid value; `wanted` describes the valid values."""
        return TaskError(f"the option {option} of {self._task} is {wanted}, not {self.given[option]!r}")
