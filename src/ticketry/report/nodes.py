"""JSON objects that know where they were found, so that every complaint about a record names the place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from ticketry.errors import StoreError

LARGEST = 1e30
"""Beyond it, a number is a mistake; below it, no sum or square overflows."""


class Node:
    """A JSON object, its place in the record, what the record is called and what to do if it is wrong."""

    def __init__(self, value: Any, where: str, what: str, advice: str) -> None:
        self._where, self._what, self._advice = where, what, advice
        if not isinstance(value, Mapping):
            self.fail("", f"is {kind_of(value)}, not an object")
        self._value: Mapping[str, Any] = value

    def __contains__(self, key: str) -> bool:
        """Whether there is something other than null under the key."""
        return self._value.get(key) is not None

    def fail(self, key: str, problem: str) -> NoReturn:
        place = f"{self._where}.{key}".strip(".") or "the whole"
        raise StoreError(f"{self._what}: {place} {problem}. {self._advice}")

    def check_format(self, version: int) -> None:
        found = self.integer("format", least=1)
        if found != version:
            raise StoreError(
                f"{self._what}: format {found} is not the one this ticketry reads ({version}): "
                "install the version of ticketry that wrote it, or make it again"
            )

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value.get(key, default)
        if not isinstance(value, str):
            self.fail(key, f"is {kind_of(value)}, not text")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty if it is missing."""
        found = self._list(key, optional=True)
        for index, item in enumerate(found):
            if not isinstance(item, str):
                self.fail(f"{key}[{index}]", f"is {kind_of(item)}, not text")
        return tuple(found)

    def choice(self, key: str, words: tuple[str, ...]) -> str:
        word = self.text(key)
        if word not in words:
            self.fail(key, f"is {word!r:.60}, not one of {', '.join(words)}")
        return word

    def number(self, key: str) -> float:
        return self._number(key, self._value.get(key))

    def number_or_none(self, key: str) -> float | None:
        return self.number(key) if key in self else None

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers; empty if it is missing."""
        found = self._list(key, optional=True)
        return tuple(self._number(f"{key}[{index}]", item) for index, item in enumerate(found))

    def items(self, key: str) -> tuple[tuple[float, ...], ...]:
        """A list of lists of finite numbers; empty if it is missing."""
        found = []
        for index, item in enumerate(self._list(key, optional=True)):
            if not isinstance(item, list | tuple):
                self.fail(f"{key}[{index}]", f"is {kind_of(item)}, not a list")
            found.append(tuple(self._number(f"{key}[{index}][{place}]", value) for place, value in enumerate(item)))
        return tuple(found)

    def measured(self, key: str) -> tuple[float, ...]:
        """A list of measured numbers, where one that is null, infinite or no number at all becomes NaN."""
        return tuple(map(_or_nan, self._list(key, optional=True)))

    def measured_items(self, key: str) -> tuple[tuple[float, ...], ...]:
        """A list of lists of measured numbers; empty if it is missing."""
        found = self._list(key, optional=True)
        for index, item in enumerate(found):
            if not isinstance(item, list | tuple):
                self.fail(f"{key}[{index}]", f"is {kind_of(item)}, not a list")
        return tuple(tuple(map(_or_nan, item)) for item in found)

    def measured_number(self, key: str) -> float:
        """A measured number; NaN where it is null, infinite or no number at all."""
        return _or_nan(self._value.get(key))

    def interval(self, key: str) -> tuple[float, float] | None:
        """Two numbers, the lower first; None if it is missing or null."""
        if key not in self:
            return None
        ends = self.numbers(key)
        if len(ends) != 2 or ends[0] > ends[1]:
            self.fail(key, "is not two numbers, the lower one first")
        return ends[0], ends[1]

    def integer(self, key: str, least: int) -> int:
        value = self._value.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(key, f"is {kind_of(value)}, not a whole number")
        if value < least:
            self.fail(key, f"is {value}, less than {least}")
        if value > LARGEST:
            self.fail(key, f"is more than {LARGEST:g}")
        return value

    def integer_or_none(self, key: str, least: int) -> int | None:
        return self.integer(key, least) if key in self else None

    def boolean(self, key: str) -> bool:
        value = self._value.get(key)
        if not isinstance(value, bool):
            self.fail(key, f"is {kind_of(value)}, not true or false")
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        """An object whatever it holds; empty if it is missing."""
        return {} if key not in self else self.node(key)._value

    def node(self, key: str) -> Node:
        return self._child(self._value.get(key), self._path(key))

    def nodes(self, key: str, optional: bool = False) -> list[Node]:
        found = self._list(key, optional)
        return [self._child(item, f"{self._path(key)}[{index}]") for index, item in enumerate(found)]

    def _list(self, key: str, optional: bool) -> list[Any] | tuple[Any, ...]:
        value = self._value.get(key)
        if value is None and optional:
            return []
        if not isinstance(value, list | tuple):
            self.fail(key, f"is {kind_of(value)}, not a list")
        return value

    def _number(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(key, f"is {kind_of(value)}, not a number")
        if not abs(value) <= LARGEST:  # so written, it refuses NaN as well
            self.fail(key, f"is no finite number up to {LARGEST:g}")
        return float(value)

    def _child(self, value: Any, where: str) -> Node:
        return Node(value, where, self._what, self._advice)

    def _path(self, key: str) -> str:
        return f"{self._where}.{key}".strip(".")


def _or_nan(value: Any) -> float:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
    return float(value) if usable else math.nan


def kind_of(value: Any) -> str:
    """What a value is, in JSON's words."""
    if value is None:
        return "missing"
    names = {bool: "a truth value", str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"of type {type(value).__name__}")
