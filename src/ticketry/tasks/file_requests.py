"""Requests in files, such as tickets from others, and which of them are granted without asking the user.

What a file names is data. Granted are built-in tasks and networks with options that are numbers and words: such a name
chooses no module to import, no path to open, and nothing to download but a published data set with a known digest. Any
other request is the user's to make: on the command line, in Python, or by trusting the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields
from itertools import pairwise

from ticketry.errors import TrustError
from ticketry.tasks import facts as tables
from ticketry.tasks.facts import DATA_SETS, ENVIRONMENTS, PUBLISHED, Learning
from ticketry.tasks.network_name import LANGUAGE_MODELS, NETWORKS

GRANTED = {
    **dict.fromkeys(DATA_SETS.built_in, ("train", "size")),
    **dict.fromkeys(PUBLISHED, ("train", "time", "dropout")),
    **dict.fromkeys(tables.UCI, tables.OPTIONS),
    **dict.fromkeys(ENVIRONMENTS, tuple(field.name for field in fields(Learning))),
}
"""Task -> options that a file may give it. None of them is a path."""

LARGEST = {"time": 1 << 16}
"""Option -> the most that a file may ask for, where memory is taken for it before it is compared with anything."""

ADVICE = "if you know what it is and trust who made the file, say so: --trust (in Python trust=True)"

_PERCEPTRON = re.compile(r"mlp(-[1-9][0-9]{0,5}){1,16}")
_MOST_WEIGHTS = 1 << 27
_WIDTH = re.compile(r"[0-9.]{1,12}")
_VALUE = re.compile(r"[A-Za-z0-9.+-]{0,32}")


def check_request(task: str, model: str | None, options: Iterable[tuple[str, str]], *, of: str) -> None:
    """Refuse a request of a file's that is not granted.

    Args:
        task, model, options: as of `tasks.task.Spec`.
        of: the file, as the error calls it.

    Raises:
        TrustError: with what it names, and what a user may say to allow it.
    """
    if task not in GRANTED:
        raise refusal("task", task, of, "name it yourself with --task, or, ")
    if model is not None:
        check_network(model, of=of)
    for name, value in options:
        known = name in GRANTED[task] and _VALUE.fullmatch(value)
        if not known or (name in LARGEST and not (value.isdecimal() and int(value) <= LARGEST[name])):
            raise refusal(f"option {quote(name)} of the task {task}", value, of)


def check_network(name: str, *, of: str) -> None:
    """Refuse a network of a file's that is not built in, at any width.

    Raises:
        TrustError: as `check_request`.
    """
    base, at, width = name.partition("@")
    known = base in NETWORKS.built_in or base in LANGUAGE_MODELS.built_in or _is_perceptron(base)
    if not known or (at and not _WIDTH.fullmatch(width)):
        raise refusal("network", name, of)


def is_widened(network: str | None) -> bool:
    """Whether a granted network is wider than its paper's, so that it may be larger than memory."""
    _, at, width = (network or "").partition("@")
    return bool(at) and not width.startswith(("0.", "."))


def _is_perceptron(base: str) -> bool:
    """Whether it is a perceptron that fits into memory."""
    widths = [int(width) for width in base.split("-")[1:]] if _PERCEPTRON.fullmatch(base) else []
    return bool(widths) and sum(one * other for one, other in pairwise(widths)) <= _MOST_WEIGHTS


def refusal(what: str, name: object, of: str, instead: str = "") -> TrustError:
    """The error for something that a file names and that is not granted."""
    return TrustError(
        f"{of} names the {what} {quote(name)}, which is not one of the built-in ones that a file may ask for. What a"
        f" file names is never imported, opened or downloaded by itself: {instead}{ADVICE}"
    )


def quote(value: object) -> str:
    """A name out of a file, on one line, without control characters, and not too long."""
    return repr(value) if len(repr(value)) <= 100 else f"{value!r:.97}..."
