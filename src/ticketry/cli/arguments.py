"""Command-line words to typed arguments, by tyro."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from ticketry.choices import check_choice
from ticketry.core.pattern import SHARES, check_share

T = TypeVar("T")


def parse(kind: type[T] | Any, words: Sequence[str], *, prog: str, description: str) -> T:
    """The arguments `words` as an instance of `kind`: a dataclass, or several as sub-commands.

    Wrong usage ends the process with code 2. Lists may be written with commas (``--densities 0.5,0.2``), with spaces,
    or by giving the flag several times. ``--help`` shows the everyday options, ``--help-all`` every option.
    """
    shown = _everyday(kind) if {"-h", "--help"} & set(words) else None  # an option that is not shown is not read
    words = ["--help" if word == HELP_ALL else word for word in words]
    if shown is not None:
        description = f"{description.strip()}\n\nMore options: {prog} {HELP_ALL}"
    several = set(_list_flags(kind)) if dataclasses.is_dataclass(kind) else set()
    separated = _gathered(with_places(words), several)
    _check_words(kind, separated, prog)
    separated = _with_shares(separated, several)
    return tyro.cli(
        kind,
        args=separated,
        prog=prog,
        description=description,
        config=(tyro.conf.FlagCreatePairsOff,),
        registry=_in_plain_words(shown),
    )


HELP_ALL = "--help-all"
_MOST_SHOWN = 25
"""Options that ``--help`` shows, so that they fit on a screen."""
_LONGEST_HELP = 100
"""Characters of an option's text in ``--help``."""
_RARE = frozenset(
    (
        *(
            "device",
            "precision",
            "threads",
            "devices",
            "parallel",
            "norms",
            "kernels",
            "checkpoint_seconds",
            "log",
            "on",
        ),
        *("energy", "trust"),
    )
)
"""Options of every command that trains, which ``--help`` leaves to ``--help-all``."""
_EVERYDAY = frozenset(
    (
        *("task", "model", "option", "name", "replicates", "controls", "preset", "config", "verify", "bench"),
        *("store", "data", "workers", "json", "density", "densities", "levels", "rewind", "score", "rounds"),
        *("when", "time", "length", "rewinds", "masks", "at"),
    )
)
"""Options that ``--help`` shows of a command with more than `_MOST_SHOWN` others."""


def _everyday(kind: Any) -> frozenset[str] | None:
    """The names of the options that ``--help`` shows; None where these are all."""
    if not dataclasses.is_dataclass(kind):
        return None
    names = frozenset(flag.rpartition(".")[2].lstrip("-").replace("-", "_") for flag, _ in _flags_of(kind))
    hints = typing.get_type_hints(kind, include_extras=True)
    classes = {name: plain for name, hint in hints.items() if dataclasses.is_dataclass(plain := _plain(hint))}
    groups = frozenset(classes) | {name for one in classes.values() for name in _options_of_a_plugin(one)}
    usual = names - _RARE
    if usual == names:
        return None
    return (usual if len(usual) <= _MOST_SHOWN else usual & _EVERYDAY) | groups


def _options_of_a_plugin(kind: Any) -> tuple[str, ...]:
    """Return the options that a class outside of ticketry adds to those it inherits."""
    return () if kind.__module__.partition(".")[0] == "ticketry" else tuple(vars(kind).get("__annotations__", ()))


def with_places(words: Sequence[str]) -> list[str]:
    """The words with the folder of this machine in place of a shared store's URL, and of a ticket in one."""
    if not any("://" in word for word in words):
        return list(words)
    from ticketry.lab.remote.address import SCHEMES, place_of, split_address

    found = []
    for before, word in zip(["", *words], words, strict=False):
        flag, has_value, value = word.partition("=")
        if before == "--store":
            found.append(str(place_of(word)))
        elif flag == "--store" and has_value:
            found.append(f"--store={place_of(value)}")
        elif word.partition("://")[0].lower() in SCHEMES and (parts := split_address(word)):
            from ticketry.lab.store.opening import open_store

            store, inside = open_store(parts[0]), parts[1]
            store.link.fetch_folder(store.paths.run(inside[1]))
            found.append(str(store.paths.root.joinpath(*inside)))
        else:
            found.append(word)
    return found


def values_of(words: Sequence[str], flag: str) -> list[str]:
    """The values of a list flag that has to be known before the rest is read."""
    gathered = _gathered(words, {flag})
    return gathered[gathered.index(flag) + 1 :] if flag in gathered else []


def _check_words(kind: Any, words: Sequence[str], prog: str) -> None:
    """Raises `UsageError` for a word that is none of the choices of its flag, of its place, or of the sub-commands."""
    if not dataclasses.is_dataclass(kind):
        commands = [name for one in typing.get_args(kind) if (name := _subcommand(one))]
        if words and commands and not words[0].startswith("-"):
            check_choice(f"{prog}:", words[0], commands)
        return
    flags: dict[str, tuple[str, ...]] = {}
    for flag, hint in _flags_of(kind):
        known, positional = _choices_of(hint)
        if positional:
            for word in [word for word in words[:1] if known and not _is_flag(word)]:
                check_choice(flag[2:].replace("-", "_"), word, known)
        else:
            flags.setdefault(flag, known)  # what a class says itself comes before what is said inside of its fields
    for flag, known in flags.items():
        for word in _flag_values(words, flag) if known else []:
            check_choice(flag, word, known)


def _flags_of(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The flags of a dataclass, then those of the dataclasses in it, each with its annotation."""
    hints = typing.get_type_hints(kind, include_extras=True)
    nested = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(inner := _plain(hint)):
            nested.append((field.name, inner))
        else:
            yield f"--{prefix}{field.name}".replace("_", "-"), hint
    for name, inner in nested:
        for before in ("", f"{prefix}{name}."):  # its flags stand beside the others, or have its name
            yield from _flags_of(inner, before)


def _plain(hint: Any) -> Any:
    """The type, without what it is annotated with."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _flag_values(words: Sequence[str], flag: str) -> list[str]:
    """Return the value after each occurrence of a flag."""
    found = []
    for word, following in zip(words, [*words[1:], "--"], strict=False):  # without words there is no last one
        name, has_value, value = word.partition("=")
        if name.replace("_", "-") == flag and (has_value or not _is_flag(following)):
            found.append(value if has_value else following)
    return found


def _subcommand(kind: Any) -> str | None:
    """The name of a sub-command, of the annotation that makes it one."""
    return next((name for one in typing.get_args(kind)[1:] if (name := getattr(one, "name", None))), None)


def _choices_of(hint: Any) -> tuple[tuple[str, ...], bool]:
    """The words that a field may have (none: any), and whether it is known by its place."""
    positional = False
    while typing.get_origin(hint) is Annotated:
        positional = positional or tyro.conf.Positional[str].__metadata__[0] in hint.__metadata__  # type: ignore[attr-defined]
        hint = typing.get_args(hint)[0]
    return (typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()), positional


def _with_shares(words: Sequence[str], several: Container[str]) -> list[str]:
    """The words with densities as numbers: ``10%`` is 0.1. Flags that are not of `several` values have one."""
    found, inside, many = [], "", False
    for word in words:
        flag, has_value, value = word.partition("=")
        if _is_flag(word):
            inside = flag[2:].replace("-", "_") if flag.startswith("--") else ""
            many = flag.replace("_", "-") in several
            found.append(f"{flag}={_shares(inside, value)}" if inside in SHARES and has_value else word)
            ended = bool(has_value)
        else:
            found.append(_shares(inside, word) if inside in SHARES else word)
            ended = True
        if ended and not many:
            inside = ""
    return found


def _shares(name: str, text: str) -> str:
    return ",".join(str(check_share(name, part)) for part in text.split(","))


def _list_flags(kind: Any) -> Iterable[str]:
    """The flags of a dataclass, and of the dataclasses in it, that take several values."""
    return (flag for flag, hint in _flags_of(kind) if any(typing.get_origin(one) is tuple for one in _kinds(hint)))


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types that an annotation allows: of a union its members."""
    plain = _plain(hint)
    return typing.get_args(plain) if typing.get_origin(plain) in (typing.Union, types.UnionType) else (plain,)


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


# -- help that needs no Python to be read ------------------------------------------------------------------------------

_PLACEHOLDERS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
"""Placeholders for option values in help texts, by type."""
_NOTHING = ("None", "", "''", "False")
"""Defaults that say no more than that the option was not given."""


def _in_plain_words(shown: frozenset[str] | None) -> ConstructorRegistry:
    """Dataclasses as tyro reads them, their fields told without None, empty texts, and truth values.

    Args:
        shown: the names of the options that help shows, each with the first sentence of its text; None for all, with
            the whole text.
    """
    registry = ConstructorRegistry()
    asked: list[Any] = []

    @registry.struct_rule
    def in_plain_words(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not dataclasses.is_dataclass(info.type) or info in asked:
            return None
        asked.append(info)  # of which tyro's own rule is asked next
        try:
            found: Any = ConstructorRegistry.get_struct_spec(info)
        finally:
            asked.pop()
        if isinstance(found, StructConstructorSpec):
            return dataclasses.replace(found, fields=tuple(_prepare_field(field, shown) for field in found.fields))
        return None

    return registry


def _prepare_field(field: StructFieldSpec, shown: frozenset[str] | None) -> StructFieldSpec:
    """Return a field with its placeholder, its help on one line and its default, for tyro to format."""

    def helptext() -> str | None:
        found = field.helptext() if callable(field.helptext) else field.helptext
        text = found and " ".join(found.split())
        return text if shown is None or not text else _first_sentence(text)

    options = tyro.conf.arg(metavar=_placeholder(field.type), help_behavior_hint=_hint)
    kind: Any = Annotated[field.type, options]
    if shown is not None and field.name not in shown:
        hidden: Any = tyro.conf.Suppress
        kind = hidden[kind]
    return dataclasses.replace(field, type=kind, helptext=helptext)


def _first_sentence(text: str) -> str:
    """The text up to its first full stop or semicolon, cut to about a line and a half."""
    sentence = re.split(r"(?<=[.;])\s", text, maxsplit=1)[0].rstrip(";")
    return sentence if len(sentence) <= _LONGEST_HELP else f"{sentence[:_LONGEST_HELP].rpartition(' ')[0]} …"


def _hint(default: str) -> str:
    if default == "True":
        return "(done unless this is given)"
    return "" if default in _NOTHING else f"(default: {default})"


def _placeholder(kind: Any) -> str | None:
    """Return the placeholder for an option's value: ``PATH``, or ``INT ...`` for several; None for tyro's default."""
    origin, inner = typing.get_origin(kind), [one for one in typing.get_args(kind) if one is not types.NoneType]
    if origin is Annotated or (origin in (typing.Union, types.UnionType) and len(inner) == 1):
        return _placeholder(inner[0])
    if origin is typing.Literal:
        return "{" + ",".join(str(word) for word in inner if word) + "}"
    if several := next((one for one in inner if typing.get_origin(one) is tuple), None):
        return _placeholder(several)
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        return f"{_placeholder(inner[0]) or 'VALUE'} ..."
    return _PLACEHOLDERS.get(kind)


def options_said(words: Sequence[str]) -> set[str]:
    """The options that are given, as names of arguments and of a run file's entries."""
    return {word.partition("=")[0][2:].replace("-", "_") for word in words if word.startswith("--")}
