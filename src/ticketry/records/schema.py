"""Define types of numbers in records, and functions that read and write records; errors name the invalid field."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
from msgspec import Meta, inspect

from ticketry.errors import StoreError
from ticketry_engine.results import LARGEST as LARGEST
from ticketry_engine.results import LARGEST_COUNT, RecordPart
from ticketry_engine.results import AtLeastOne as AtLeastOne
from ticketry_engine.results import Count as Count
from ticketry_engine.results import Density as Density
from ticketry_engine.results import NearShare as NearShare
from ticketry_engine.results import NotNegative as NotNegative
from ticketry_engine.results import Number as Number
from ticketry_engine.results import Positive as Positive
from ticketry_engine.results import Share as Share

Part = RecordPart

Role = Annotated[
    str,
    Meta(
        pattern=r"\A[A-Za-z_][A-Za-z0-9_.:-]{0,99}\Z",
        extra={"problem": "not a name made of letters, digits, _ and -, nor package.module:object"},
    ),
]
"""Role of a network: dense, ticket or the name of a control."""

T = TypeVar("T")


def raise_invalid_field(key: str, problem: str) -> NoReturn:
    """Raise the error for the invalid field `key`; for use in the ``__post_init__`` of a part of a record."""
    raise ValueError(f"{key} {problem}")


def as_json(record: msgspec.Struct) -> dict[str, Any]:
    """Convert a record to JSON values, which `decode_record` converts back."""
    values: dict[str, Any] = _tuples_to_lists(msgspec.to_builtins(record, enc_hook=_encode_string))
    return values


def _encode_string(value: object) -> str:
    """Return an instance of a subclass of `str`, such as torch's version, as a plain `str`."""
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"a record cannot contain a {type(value).__name__}: convert it to JSON values")


def _tuples_to_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples_to_lists(one) for key, one in value.items()}
    return [_tuples_to_lists(one) for one in value] if isinstance(value, list | tuple) else value


def decode_record(kind: type[T], value: object, *, what: str, advice: str) -> T:
    """Convert JSON values to a record of class `kind`.

    Args:
        what: name of the record in errors, such as its file.
        advice: end of the error message, which says what to do about an invalid record.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        place, problem = _find_invalid_value(kind, value, error)
        raise StoreError(f"{what}: {place} {problem}. {advice}") from None


class _FormatHeader(Part, frozen=True):
    """The format version, which is the only field that records of all versions have."""

    format: AtLeastOne


def check_format(value: object, version: int, *, what: str, advice: str) -> None:
    """Raise `StoreError` unless a record has the format version `version`."""
    found = decode_record(_FormatHeader, value, what=what, advice=advice).format
    if found != version:
        raise StoreError(
            f"{what}: format {found} is not the one this ticketry reads ({version}): "
            "install the version of ticketry that wrote it, or make it again"
        )


def clip_to_unit(value: float) -> float:
    """Return the number, limited to 0 … 1; this removes rounding errors below 0 and above 1."""
    return min(max(value, 0.0), 1.0)


def nan_if_invalid(value: float | None) -> float:
    """Return a measured number unchanged; return NaN if it is None, NaN, infinite or too large to be valid."""
    return value if value is not None and abs(value) <= LARGEST else float("nan")


def describe_json_type(value: object) -> str:
    """Return the JSON type of a value for messages, such as "a list"."""
    if value is None:
        return "missing"
    names = {bool: "a truth value", str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"of type {type(value).__name__}")


def _find_invalid_value(kind: Any, value: Any, error: msgspec.ValidationError) -> tuple[str, str]:
    """Return the place of the invalid value in a record, and what is wrong with the value."""
    text, _, path = str(error).partition(" - at `$")
    path = path.rstrip("`").removeprefix(".")
    if isinstance(error.__cause__, ValueError):  # raised by `raise_invalid_field`
        key, _, problem = text.partition(" ")
        return f"{path}.{key}".strip("."), problem
    if missing := re.search(r"missing required field `(.*)`", text):
        path = f"{path}.{missing[1]}".strip(".")
    parts = [int(index) if index else name for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path)]
    for part in parts:  # a missing key gives None
        value = value.get(part) if isinstance(part, str) else value[part]
    return path or "the whole", _describe_problem(_declared_type_at_path(_inspect_type(kind), parts), value)


@functools.cache
def _inspect_type(kind: Any) -> inspect.Type:
    """Return msgspec's description of a type, from a cache, since its computation takes tens of milliseconds."""
    return inspect.type_info(kind)


def _declared_type_at_path(kind: inspect.Type, parts: list[str | int]) -> inspect.Type:
    """Return the type that a record's class declares for a place, given as keys and indices."""
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
    """Return `kind` without its metadata and without the alternative None, and return the metadata."""
    extra: Mapping[str, Any] = {}
    while isinstance(kind, inspect.Metadata | inspect.UnionType):
        if isinstance(kind, inspect.Metadata):
            extra, kind = kind.extra or extra, kind.type
        else:
            kind = next(one for one in kind.types if not isinstance(one, inspect.NoneType))
    return kind, extra


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
"""Declared type -> (description for messages, Python classes of valid values); all other types are objects."""


def _format_number(value: float) -> str:
    try:
        return f"{value:g}"
    except OverflowError:
        return "a number of hundreds of digits"


def _describe_problem(declared: inspect.Type, value: Any) -> str:
    """Return, for messages, why a value does not match its declared type."""
    kind, extra = _strip_metadata(declared)
    words, classes = _TYPE_WORDS.get(type(kind), ("an object", (dict,)))
    if type(value) not in classes:
        return f"is {describe_json_type(value)}, not {words}"
    if isinstance(kind, inspect.FloatType) and not abs(value) <= LARGEST:
        return f"is no finite number up to {LARGEST:g}"
    if isinstance(kind, inspect.IntType) and value > LARGEST_COUNT:
        return f"is more than {LARGEST_COUNT:g}"
    if isinstance(kind, inspect.BytesType):
        return "is not base64"
    problem = extra.get("problem") or f"less than {getattr(kind, 'ge', 0)}"
    if isinstance(kind, inspect.LiteralType):
        problem = extra.get("problem") or f"not one of {', '.join(map(str, kind.values))}"
    shown = (
        f"{value!r:.60}" if isinstance(value, str) else _format_number(value) if isinstance(value, int | float) else ""
    )
    return problem if problem.startswith("is ") else f"is {shown}, {problem}"
