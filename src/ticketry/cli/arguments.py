"""Parse command-line words into a dataclass with tyro, convert values with `decoding`, and print help."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from ticketry.choices import check_choice
from ticketry.errors import UsageError
from ticketry.experiments.decoding import accepts_several_values, decode_value, find_choices, iterate_nested_types

T = TypeVar("T")

HELP_ALL = "--help-all"


def parse(kind: type[T] | Any, words: Sequence[str], *, prog: str, description: str, default: Any = None) -> T:
    """Parse words into an instance of `kind`: a dataclass, or a union of dataclasses that are sub-commands.

    A list may be written with commas (``--densities 0.5,0.2``), with spaces, or by giving the option several times.
    ``--help`` prints the everyday options, ``--help-all`` all options; both then end the process with code 0. Unknown
    options end the process with code 2.
    """
    shown = None
    if dataclasses.is_dataclass(kind):
        if {"-h", "--help"} & set(words):
            shown = _everyday_options(kind)
        words = _merge_repeated_options(
            words, {flag for flag, hint in _iterate_flags(kind) if accepts_several_values(hint)}
        )
    elif words and not words[0].startswith("-"):
        marks = [mark for one in typing.get_args(kind) for mark in typing.get_args(one)[1:]]
        check_choice(f"{prog}:", words[0], [mark.name for mark in marks if getattr(mark, "name", None)])
    if shown is not None:
        description = f"{description.strip()}\n\nMore options: {prog} {HELP_ALL}"
    found: T = tyro.cli(
        kind,
        args=["--help" if word == HELP_ALL else word for word in words],
        prog=prog,
        description=description,
        config=(tyro.conf.FlagCreatePairsOff,),
        registry=make_registry(shown),
        **({} if default is None else {"default": default}),
    )
    return found


def option_names(words: Sequence[str]) -> set[str]:
    """Return the names of all options on a command line, with underscores instead of hyphens."""
    return {word.partition("=")[0][2:].replace("-", "_") for word in words if word.startswith("--")}


def _merge_repeated_options(words: Sequence[str], flags: set[str]) -> list[str]:
    """Return `words` with each option of `flags` moved to the end and written once, followed by all its values."""
    others: list[str] = []
    values: dict[str, list[str]] = {}
    flag = ""
    for word in words:
        name, has_value, value = word.partition("=")
        if re.match(r"--|-[A-Za-z]", word):  # an option, and no negative number
            flag = name if name.replace("_", "-") in flags else ""
            if flag:
                values.setdefault(flag, []).extend([value] if has_value else [])
                continue
        (values[flag] if flag else others).append(word)
    return [*others, *(word for name, found in values.items() for word in (name, *found))]


def _iterate_flags(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each option of the dataclass `kind` with the type annotation of its field.

    Options of nested dataclasses are yielded twice, with and without the prefix of the nested dataclass.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        (inner, *_) = iterate_nested_types(hints[field.name])
        if dataclasses.is_dataclass(inner):
            for before in ("", f"{prefix}{field.name}."):
                yield from _iterate_flags(inner, before)
        else:
            yield f"--{prefix}{field.name}".replace("_", "-"), hints[field.name]


def make_registry(shown: frozenset[str] | None = None) -> ConstructorRegistry:
    """Return a registry for tyro: values are converted by `decode_value`, and help omits the defaults None and ''.

    Args:
        shown: names of the options that help shows, each with the first sentence of its text. By default, help shows
        all options with their whole texts.
    """
    rules = ConstructorRegistry()
    active: list[Any] = []
    prefixes: dict[Any, str] = {}

    @rules.struct_rule
    def read_dataclass(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not dataclasses.is_dataclass(info.type) or info in active:
            return None
        active.append(info)
        try:
            found: Any = ConstructorRegistry.get_struct_spec(info)  # by tyro's own rule
        finally:
            active.pop()
        if not isinstance(found, StructConstructorSpec):
            return None
        prefix = prefixes.get(info.type, "")
        for field in found.fields:
            (inner, *_) = iterate_nested_types(field.type)
            if dataclasses.is_dataclass(inner) and tyro.conf.OmitArgPrefixes not in typing.get_args(field.type):
                prefixes.setdefault(inner, f"{prefix}{field.name}.")
        fields = tuple(_prepare_field(field, prefix, shown) for field in found.fields)
        return dataclasses.replace(found, fields=fields)

    return rules


def _prepare_field(field: StructFieldSpec, prefix: str, shown: frozenset[str] | None) -> StructFieldSpec:
    """Return `field` with one-line help; `decode_value` converts its value unless it is a flag or a dataclass."""

    def build_help_text() -> str | None:
        text = field.helptext() if callable(field.helptext) else field.helptext
        text = text and " ".join(text.split())
        return text if shown is None or not text else _first_sentence(text)

    kind: Any = Annotated[field.type, tyro.conf.arg(help_behavior_hint=_format_default)]
    (inner, *others) = iterate_nested_types(field.type)
    if not dataclasses.is_dataclass(inner) and (inner is not bool or others):
        kind = Annotated[kind, _make_primitive_spec(field.name, prefix, field.type)]
    if shown is not None and field.name not in shown:
        hidden: Any = tyro.conf.Suppress
        kind = hidden[kind]
    return dataclasses.replace(field, type=kind, helptext=build_help_text)


def _make_primitive_spec(name: str, prefix: str, hint: Any) -> PrimitiveConstructorSpec[Any]:
    """Return the specification that makes tyro convert the words of an option with `decode_value`."""
    several = accepts_several_values(hint)

    def parse_words(words: list[str]) -> Any:
        parts = [part for word in words for part in split_list(word)] if several else words
        if Path in iterate_nested_types(hint) and name != "store":
            parts = [_fetch_shared_store_folder(part) for part in parts]
        return decode_value(name, parts if several else parts[0], hint, what=prefix.rstrip("."), text=True)

    return PrimitiveConstructorSpec(
        nargs="*" if several else 1,
        metavar=_value_placeholder(hint),
        instance_from_str=parse_words,
        is_instance=lambda _: True,
        str_from_instance=lambda value: [str(one) for one in (value if isinstance(value, tuple) else [value])],
    )


def split_list(word: str) -> list[str]:
    """Split a list at commas; in a list of name=value pairs, only at commas before a name."""
    return [part for part in re.split(r",(?=\w+=)" if "=" in word else ",", word) if part]


def _fetch_shared_store_folder(word: str) -> str:
    """If the word is the URL of a folder in a shared store, fetch the folder and return its local path.

    Other words are returned unchanged.
    """
    if "://" not in word:
        return word
    from ticketry.lab.store.paths import SCHEMES, split_address

    if word.partition("://")[0].lower() not in SCHEMES or not (parts := split_address(word)):
        return word
    from ticketry.lab.store.store import open_store

    address, inside = parts
    store = open_store(address)
    store.fetch_folder(store.paths.run(inside[1]))
    return str(store.paths.root.joinpath(*inside))


_MOST_SHOWN = 25
"""Commands with more options show only everyday options in ``--help``, so that these fit on a screen."""
_LONGEST_HELP = 72
"""Largest number of characters of an option's text in ``--help``."""
_RARE = frozenset(
    {
        *("device", "precision", "threads", "devices", "parallel", "norms", "kernels", "checkpoint_seconds", "log"),
        *("on", "energy", "trust", "data", "least_spread", "after", "dense_at", "references"),
    }
)
"""Options that only ``--help-all`` shows, in every command."""
_EVERYDAY = frozenset(
    {
        *("task", "model", "option", "name", "replicates", "controls", "preset", "config", "verify", "bench", "store"),
        *("workers", "json", "density", "densities", "levels", "rewind", "score", "rounds", "when", "time", "length"),
        *("rewinds", "masks", "at"),
    }
)
"""Options that ``--help`` shows if a command has more than `_MOST_SHOWN` options."""


def _everyday_options(kind: Any) -> frozenset[str] | None:
    """Return the names of the options of `kind` that ``--help`` shows; None if it shows all options."""
    names = frozenset(flag.rpartition(".")[2].lstrip("-").replace("-", "_") for flag, _ in _iterate_flags(kind))
    usual = names - _RARE
    if usual == names:
        return None
    hints = typing.get_type_hints(kind)
    inner = {
        name: one for name, hint in hints.items() if dataclasses.is_dataclass(one := next(iterate_nested_types(hint)))
    }
    plugins = [one for one in inner.values() if one.__module__.partition(".")[0] != "ticketry"]
    groups = frozenset(inner).union(*(vars(one).get("__annotations__", ()) for one in plugins))
    return (usual if len(usual) <= _MOST_SHOWN else usual & _EVERYDAY) | groups


def _first_sentence(text: str) -> str:
    """Return `text` up to its first full stop or semicolon, shortened to about the length of a line."""
    sentence = re.split(r"(?<=[.;])\s", text, maxsplit=1)[0].rstrip(";")
    return sentence if len(sentence) <= _LONGEST_HELP else f"{sentence[:_LONGEST_HELP].rpartition(' ')[0]} …"


def _format_default(default: str) -> str:
    """Return the help's remark about the default of an option; empty if the default is None, '' or False."""
    if default == "True":
        return "(done unless this is given)"
    return "" if default in ("None", "", "''", "False") else f"(default: {default})"


_PLACEHOLDERS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


def _value_placeholder(hint: Any) -> str:
    """Return the placeholder of an option's value: PATH, {a,b} for choices, or INT ... for a list."""
    if choices := find_choices(hint):
        word = "{" + ",".join(str(one) for one in choices if one) + "}"
    else:
        names = {_PLACEHOLDERS.get(one, "VALUE") for one in iterate_nested_types(hint) if one is not types.NoneType}
        word = names.pop() if len(names) == 1 else "VALUE"
    return f"{word} ..." if accepts_several_values(hint) else word


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Options that say how a command prints its results."""

    json: bool = False
    """Print the result as one JSON object."""


def output_file(given: Path | None, ticket: Path, ending: str) -> Path:
    """Return `given`; if `given` is None, return a file in the current folder named after `ticket`, with `ending`."""
    output = given or Path(f"{ticket.resolve().name}.{ending}")
    if output.is_dir():
        raise UsageError(f"output must be a file, got the folder {output}")
    return output


def write_output(file: Path, text: str) -> None:
    """Write a text file that the user named; raise `UsageError` if the file cannot be written."""
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def show_status(title: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows its argument in a changing status line on standard error, if that is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not (console.is_terminal and sys.stderr.isatty()):
        yield lambda _: None
        return
    with console.status(title) as status:
        yield lambda text: status.update(f"{title}: {text}")


def format_bytes(count: float) -> str:
    """Return a number of bytes with a suitable unit: 812 bytes, 12.3 MB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} bytes"
