"""Command-line words to typed arguments, by tyro."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import tyro

T = TypeVar("T")


def parse(kind: type[T], words: Sequence[str], *, prog: str, description: str) -> T:
    """The arguments `words` as an instance of the dataclass `kind`; wrong usage ends the process with code 2.

    Lists may be written with commas (``--densities 0.5,0.2``), with spaces, or by giving the flag several times.
    """
    separated = _gathered(words, set(_list_flags(kind)))
    return tyro.cli(kind, args=separated, prog=prog, description=description, config=(tyro.conf.FlagCreatePairsOff,))


def values_of(words: Sequence[str], flag: str) -> list[str]:
    """The values of a list flag that has to be known before the rest is read."""
    gathered = _gathered(words, {flag})
    return gathered[gathered.index(flag) + 1 :] if flag in gathered else []


def _list_flags(kind: Any, prefix: str = "") -> Iterable[str]:
    """The flags of a dataclass, and of the dataclasses in it, that take several values."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        inner = hints[field.name]
        flag = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(inner):
            yield from _list_flags(inner, f"{flag}.")
            yield from _list_flags(inner)
        elif typing.get_origin(inner) is tuple:
            yield f"--{flag}".replace("_", "-")


def _gathered(words: Sequence[str], flags: set[str]) -> list[str]:
    """The words with the values of each of `flags` apart and together, however often and wherever it is given."""
    others: list[str] = []
    values: dict[str, list[str]] = {}
    inside = ""
    for word in words:
        flag, has_value, value = word.partition("=")
        if _is_flag(word):
            inside = flag if flag.replace("_", "-") in flags else ""
        if not inside:
            others.append(word)
        elif _is_flag(word):
            values.setdefault(inside, []).extend(_parts(value) if has_value else ())
        else:
            values.setdefault(inside, []).extend(_parts(word))
    return [*others, *(word for flag, found in values.items() for word in (flag, *found))]


def _is_flag(word: str) -> bool:
    """Whether it is a flag, long or of one letter, and no negative number."""
    return word.startswith("--") or re.fullmatch(r"-[A-Za-z].*", word) is not None


def _parts(word: str) -> list[str]:
    """A list with commas, taken apart; name=value only where another name begins, for a value may have commas."""
    return [part for part in re.split(r",(?=\w+=)" if "=" in word else ",", word) if part]
