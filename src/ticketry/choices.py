"""Settings whose value is one of a few words: fields of a dataclass that are annotated with `Literal`.

The command line reads the choices from the annotation. What comes from Python or a run file is checked here.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Literal

from ticketry.errors import UsageError


def check_choices(settings: Any, of: str = "") -> None:
    """
    Args:
        settings: an instance of a dataclass; fields that are tuples hold any number of words.
        of: what the settings are of, told before the field's name: "recipe: ".

    Raises:
        UsageError: for a field whose annotation is a `Literal` that lacks its value; the message names the choices.
    """
    kind: Any = type(settings)
    for name, known in _choices(kind).items():
        value = getattr(settings, name)
        for word in value if isinstance(value, tuple) else (value,):
            check_choice(f"{of}{name}", word, known)


def check_choice(what: str, word: object, known: Iterable[Any]) -> None:
    """Raises `UsageError`, with the choices, unless `word` is one of the `known`; `what` is said before it."""
    if word not in known:
        raise UsageError(f"{what} {word!r} is not known: {listed(word, known)}")


def listed(word: object, known: Iterable[Any]) -> str:
    """The choices as a message has them, and the nearest to a word that is none of them."""
    names = [str(one) for one in known if one]
    near = did_you_mean(str(word), names).rstrip()
    return f"{', '.join(names)}{near and f'; {near}'}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with the nearest names, and a space after it; nothing if none is near."""
    cutoff = 0.75 if len(name) > 4 else 0.65  # one letter of three is another
    near = get_close_matches(name.lower(), list(known), n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}? " if near else ""


@lru_cache(maxsize=256)
def _choices(kind: Any) -> dict[str, tuple[Any, ...]]:
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        kinds = typing.get_args(hint)
        if typing.get_origin(hint) is tuple:
            hint = kinds[0]
        optional = type(None) in kinds
        if optional and len(kinds) == 2:
            hint = next(kind for kind in kinds if kind is not type(None))
        if typing.get_origin(hint) is Literal:
            found[field.name] = (*typing.get_args(hint), *([None] if optional else []))
    return found
