"""Convert command-line words, keyword arguments and TOML tables to the fields of dataclasses.

All three sources use `decode_value`, so they accept the same values and report errors in the same words. The
dataclasses themselves check the bounds of numbers (`ticketry.choices`). This module does not import torch.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from ticketry.choices import check_choice, did_you_mean, format_value
from ticketry.core.structure.pattern import SHARES, parse_share_option
from ticketry.errors import UsageError
from ticketry.lab.store.paths import local_folder


def decode_settings(given: Mapping[str, Any], *kinds: type[Any], what: str) -> tuple[Any, ...]:
    """Return an instance of each dataclass in `kinds`, whose fields have the values in `given`.

    If a field is a tuple, its value may be given as a list or as a single value.

    Args:
        given: values by field name; if several classes have a field of the same name, each gets the value.
        what: where the values come from, for error messages: ``run("iterative", …)`` or ``the run file run.toml``.
    """
    known = {field.name for kind in kinds for field in fields(kind) if field.init}
    check_setting_names(given, known, what)
    found = []
    for kind in kinds:
        hints, own = get_type_hints(kind), {field.name for field in fields(kind) if field.init}
        values = {name: decode_value(name, given[name], hints[name], what=what) for name in given if name in own}
        found.append(kind(**values))
    return tuple(found)


def check_setting_names(given: Mapping[str, Any], known: set[str], what: str) -> None:
    """Raise `UsageError` if a name in `given` is not in `known`; the error suggests similar names."""
    for name in given:
        if name not in known:
            raise UsageError(
                f"{what} takes no {name!r}: {did_you_mean(name, known)}it takes {', '.join(sorted(known))}"
            )


def decode_value(name: str, value: Any, hint: Any, *, what: str = "", text: bool = False) -> Any:
    """Convert the value of an option to the type `hint`, the annotation of the option's field.

    Args:
        name: name of the option; for a density, percentages are accepted, and for a store, URLs.
        value: value from Python or TOML; with `text` a word of the command line, or a list of words for a tuple.
        what: where the value comes from, for errors; with `text` the option's group, such as recipe in ``--recipe.lr``.
        text: whether the value comes from the command line, where numbers are written as text.
    """
    if name in SHARES:
        value = _decode_densities(name, value)
    elif name == "store" and isinstance(value, str):
        value = local_folder(value)
    elif text and value == "None" and types.NoneType in get_args(hint):
        return None
    if get_origin(hint) is tuple and not isinstance(value, (list, tuple)):
        value = (value,)
    if text and {float, str} <= set(iterate_nested_types(hint)):
        value = tuple(map(_parse_number, value)) if isinstance(value, (list, tuple)) else _parse_number(value)
    label = name
    if what:
        label = f"--{what}.{name}".replace("_", "-") if text else f"{what}: {name}"
    if choices := find_choices(hint):
        for word in value if isinstance(value, (list, tuple)) else (value,):
            check_choice(label, word, choices)
    try:
        return msgspec.convert(value, hint, strict=not text, dec_hook=lambda kind, one: kind(one))
    except ValueError:  # of msgspec, or of a number of thousands of digits
        raise UsageError(f"{label} must be {_describe_type(hint)}, got {format_value(value)}") from None


def find_choices(hint: Any) -> tuple[Any, ...]:
    """Return the values that the annotation `hint` lists as `Literal` or None; empty if it allows other values."""
    found: list[Any] = []
    for kind in iterate_nested_types(hint):
        if get_origin(kind) is Literal:
            found += get_args(kind)
        elif kind is types.NoneType:
            found.append(None)
        else:
            return ()
    return tuple(found) if any(one is not None for one in found) else ()


def iterate_nested_types(hint: Any) -> Iterator[Any]:
    """Yield the types in an annotation, with unions replaced by their members and tuples by their elements."""
    origin = get_origin(hint)
    if origin is Annotated:
        yield from iterate_nested_types(get_args(hint)[0])
    elif origin in (typing.Union, types.UnionType, tuple):
        for one in get_args(hint):
            if one is not Ellipsis:
                yield from iterate_nested_types(one)
    else:
        yield hint


def accepts_several_values(hint: Any) -> bool:
    """Return whether an annotation allows a tuple."""
    if get_origin(hint) in (Annotated, typing.Union, types.UnionType):
        return any(accepts_several_values(one) for one in get_args(hint))
    return get_origin(hint) is tuple


def _decode_densities(name: str, value: Any) -> Any:
    """Convert a density such as 10%, or each density of a list, to a number; return values of other types unchanged."""
    if isinstance(value, (list, tuple)):
        return tuple(_decode_densities(name, one) for one in value)
    return parse_share_option(name, value) if isinstance(value, str | int | float) else value


def _parse_number(word: str) -> float | str:
    """Convert a word to a number if possible; return other words, such as 5ms, unchanged."""
    try:
        return float(word)
    except ValueError:
        return word


_TYPE_NAMES = {
    int: "a whole number from -2**63 to 2**63 - 1",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    types.NoneType: "None",
}


def _describe_type(hint: Any) -> str:
    """Return the types in the annotation `hint` as words for an error message."""
    names = [_TYPE_NAMES.get(kind, getattr(kind, "__name__", str(kind))) for kind in iterate_nested_types(hint)]
    return " or ".join(dict.fromkeys(names)) + (", or several" if accepts_several_values(hint) else "")
