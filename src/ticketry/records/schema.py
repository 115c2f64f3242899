"""How records are declared, read and written: kinds of numbers, and errors that name the place in the record."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
from msgspec import Meta, inspect

from ticketry.errors import StoreError
from ticketry_engine.support.record_fields import LARGEST as LARGEST
from ticketry_engine.support.record_fields import LARGEST_COUNT
from ticketry_engine.support.record_fields import AtLeastOne as AtLeastOne
from ticketry_engine.support.record_fields import Count as Count
from ticketry_engine.support.record_fields import Density as Density
from ticketry_engine.support.record_fields import NearShare as NearShare
from ticketry_engine.support.record_fields import NotNegative as NotNegative
from ticketry_engine.support.record_fields import Number as Number
from ticketry_engine.support.record_fields import Part as Part
from ticketry_engine.support.record_fields import Positive as Positive
from ticketry_engine.support.record_fields import Share as Share

Role = Annotated[
    str,
    Meta(
        pattern=r"\A[A-Za-z_][A-Za-z0-9_.:-]{0,99}\Z",
        extra={"problem": "not a name made of letters, digits, _ and -, nor package.module:object"},
    ),
]
"""Of a network: dense, ticket, or a control by the name that it is called by."""

T = TypeVar("T")


def reject(key: str, problem: str) -> NoReturn:
    """Refuse a part from within its ``__post_init__``: `read` puts the part's place before the key.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{key} {problem}")


def as_json(record: msgspec.Struct) -> dict[str, Any]:
    """A record as JSON values, which `read` reads back."""
    made: dict[str, Any] = _tuples_to_lists(msgspec.to_builtins(record, enc_hook=_encode_string))
    return made


def _encode_string(value: object) -> str:
    """A text of a class of its own, such as torch's version, as text."""
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in a record")


def _tuples_to_lists(value: Any) -> Any:
    """With lists for tuples, as JSON has none of these."""
    if isinstance(value, dict):
        return {key: _tuples_to_lists(one) for key, one in value.items()}
    return [_tuples_to_lists(one) for one in value] if isinstance(value, list | tuple) else value


def read(kind: type[T], value: object, *, what: str, advice: str) -> T:
    """JSON values as a record.

    Args:
        what: what the record is called in errors, or its file.
        advice: what to do if it is wrong.

    Raises:
        StoreError: if something is missing from it or impossible.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        place, problem = _locate_fault(kind, value, error)
        raise StoreError(f"{what}: {place} {problem}. {advice}") from None


class _Head(Part, frozen=True):
    format: AtLeastOne


def check_format(value: object, version: int, *, what: str, advice: str) -> None:
    """Refuse a record of another version.

    Raises:
        StoreError: if the version is another, or there is none.
    """

    found = read(_Head, value, what=what, advice=advice).format
    if found != version:
        raise StoreError(
            f"{what}: format {found} is not the one this ticketry reads ({version}): "
            "install the version of ticketry that wrote it, or make it again"
        )


def clip_to_unit(value: float) -> float:
    """Without what rounding has added."""
    return min(max(value, 0.0), 1.0)


def nan_if_invalid(value: float | None) -> float:
    """A number that was measured; NaN where it is null, infinite or a mistake."""
    return value if value is not None and abs(value) <= LARGEST else float("nan")


# -- errors in words ---------------------------------------------------------------------------------------------------


def describe_json_type(value: object) -> str:
    """What a value is, in JSON's words."""
    if value is None:
        return "missing"
    names = {bool: "a truth value", str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"of type {type(value).__name__}")


def _locate_fault(kind: Any, value: object, error: msgspec.ValidationError) -> tuple[str, str]:
    """The place of a fault, and what is wrong there."""
    text, _, path = str(error).partition(" - at `$")
    path = path.rstrip("`").removeprefix(".")
    if isinstance(error.__cause__, ValueError):  # of `reject`
        key, _, problem = text.partition(" ")
        return f"{path}.{key}".strip("."), problem
    if missing := re.search(r"missing required field `(.*)`", text):
        path = f"{path}.{missing[1]}".strip(".")
    parts = [int(index) if index else name for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path)]
    return path or "the whole", _describe_problem(
        _declared_type_at(_inspect_type(kind), parts), _value_at(value, parts)
    )


@functools.cache
def _inspect_type(kind: Any) -> inspect.Type:
    """What is declared; to find it takes tens of milliseconds for a large record."""
    return inspect.type_info(kind)


def _value_at(value: Any, parts: list[str | int]) -> Any:
    """What is at a place; None if nothing is."""
    for part in parts:
        value = value.get(part) if isinstance(part, str) else value[part]
    return value


def _declared_type_at(kind: inspect.Type, parts: list[str | int]) -> inspect.Type:
    """What is declared for a place."""
    for part in parts:
        kind = _strip_metadata(kind)[0]
        if isinstance(kind, inspect.StructType | inspect.DataclassType):
            kind = next(field.type for field in kind.fields if field.encode_name == part)
        elif isinstance(kind, inspect.VarTupleType):
            kind = kind.item_type
        elif isinstance(kind, inspect.TupleType):
            kind = kind.item_types[int(part)]
    return kind


def _strip_metadata(kind: inspect.Type) -> tuple[inspect.Type, Mapping[str, Any]]:
    """A type that may also be null, or that something is said of, by itself; and what is said."""
    said: Mapping[str, Any] = {}
    while isinstance(kind, inspect.Metadata | inspect.UnionType):
        if isinstance(kind, inspect.Metadata):
            said, kind = kind.extra or said, kind.type
        else:
            kind = next(one for one in kind.types if not isinstance(one, inspect.NoneType))
    return kind, said


_TYPE_WORDS: dict[type[inspect.Type], tuple[str, tuple[type, ...]]] = {
    inspect.IntType: ("a whole number", (int,)),
    inspect.FloatType: ("a number", (int, float)),
    inspect.BoolType: ("true or false", (bool,)),
    inspect.StrType: ("text", (str,)),
    inspect.LiteralType: ("text", (str,)),
    inspect.BytesType: ("text", (str,)),
    inspect.VarTupleType: ("a list", (list, tuple)),
    inspect.TupleType: ("a list", (list, tuple)),
}
"""How a type is called, and the classes of its values; all others are objects."""


def _format_number(value: float) -> str:
    try:
        return f"{value:g}"
    except OverflowError:
        return "a number of hundreds of digits"


def _describe_problem(declared: inspect.Type, value: Any) -> str:
    """Why a value is not what was declared."""
    kind, said = _strip_metadata(declared)
    words, classes = _TYPE_WORDS.get(type(kind), ("an object", (dict,)))
    if type(value) not in classes:
        return f"is {describe_json_type(value)}, not {words}"
    if isinstance(kind, inspect.FloatType) and not abs(value) <= LARGEST:
        return f"is no finite number up to {LARGEST:g}"
    if isinstance(kind, inspect.IntType) and value > LARGEST_COUNT:
        return f"is more than {LARGEST_COUNT:g}"
    if isinstance(kind, inspect.BytesType):
        return "is not base64"
    problem = said.get("problem") or f"less than {getattr(kind, 'ge', 0)}"
    if isinstance(kind, inspect.LiteralType):
        problem = said.get("problem") or f"not one of {', '.join(map(str, kind.values))}"
    shown = (
        f"{value!r:.60}" if isinstance(value, str) else _format_number(value) if isinstance(value, int | float) else ""
    )
    return problem if problem.startswith("is ") else f"is {shown}, {problem}"
