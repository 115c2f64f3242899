"""Command-line words to typed arguments, by tyro."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import tyro

T = TypeVar("T")


def parse(kind: type[T], words: Sequence[str], *, prog: str, description: str) -> T:
    """The arguments `words` as an instance of the dataclass `kind`; wrong usage ends the process with code 2.

    Lists may be written with commas (``--densities 0.5,0.2``) or with spaces.
    """
    separated = list(_without_commas(words, set(_list_flags(kind))))
    return tyro.cli(kind, args=separated, prog=prog, description=description, config=(tyro.conf.FlagCreatePairsOff,))


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


def _without_commas(words: Sequence[str], flags: set[str]) -> Iterable[str]:
    inside = False
    for word in words:
        flag, has_value, value = word.partition("=")
        if word.startswith("--"):
            inside = flag.replace("_", "-") in flags
        if not inside:
            yield word
        elif word.startswith("--"):
            yield flag
            yield from _parts(value) if has_value else ()
        else:
            yield from _parts(word)


def _parts(word: str) -> list[str]:
    return [part for part in word.split(",") if part]
