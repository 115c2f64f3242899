"""Write a run as a TOML file, read the file for ``--config``, and check that it names no untrusted code or files."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Container, Iterator, Mapping
from dataclasses import fields
from datetime import date, time
from pathlib import Path
from typing import Any

from ticketry.choices import MAX_INTEGER, MIN_INTEGER
from ticketry.core.structure.pattern import parse_n_of_m
from ticketry.errors import OutsideError, UsageError
from ticketry.evidence.control import CONTROLS
from ticketry.experiments.decoding import check_setting_names, decode_settings, decode_value
from ticketry.experiments.options import SearchOptions
from ticketry.files import describe_os_error, read_bytes, require_inside
from ticketry.lab.store.paths import is_url
from ticketry.records.network import is_matched_dense
from ticketry.records.settings import FORMAT_1, upgrade_settings
from ticketry.registry import is_plugin_name
from ticketry.search import METHODS
from ticketry.tasks.file_requests import check_network, check_request, untrusted_request_error

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_LARGEST = 1 << 20
"""Largest size of a run file or a campaign file in bytes."""
_MOST_PARTS = 32
"""Largest number of parts in a dotted key; Python's parser takes quadratic time in this number."""
_DEEPEST = 100
"""Largest depth of nested tables and arrays."""
_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_LONG_KEY = re.compile(rf"^[ \t]*\[{{0,2}}[ \t]*(?:{_PART}[ \t]*\.[ \t]*){{{_MOST_PARTS}}}", re.MULTILINE)


def format_run_file(described: Mapping[str, Any], spec: Any, chosen: Mapping[str, Any] | None = None) -> str:
    """Return the text of the run file (TOML) from which a run can be repeated.

    Args:
        described: description of the search, from `SearchRequest.describe`.
        spec: name and options of the task.
        chosen: further entries, such as the precision, or options about where to train.
    """
    top = {
        "method": described["method"],
        "task": spec.name if spec else described["task"].get("name", ""),
        "model": (spec.model if spec else None) or None,  # not written if the task's own
        "replicates": described["replicates"],
        "controls": described["controls"],
        "control_densities": described.get("control_densities"),
        **(chosen or {}),
    }
    tables = {
        "options": dict(spec.options) if spec else {},
        "seeds": described["seeds"],
        "settings": described["settings"],
        "recipe": described["recipe"],
    }
    lines = ["# ticketry search --config run.toml", *_format_assignments(top)]
    for name, table in tables.items():
        if assignments := _format_assignments(table):
            lines += ["", f"[{name}]", *assignments]
    return "\n".join(lines) + "\n"


def read_run_file(path: Path) -> dict[str, Any]:
    """Read a run file (TOML, from which a run can be repeated), check its entries, and return them."""
    _, tables = read_toml(path, "run file")
    decode_search_options(tables, f"the run file {path}")
    return tables


def read_toml(path: Path, what: str) -> tuple[str, dict[str, Any]]:
    """Return the text of a TOML file and the tables parsed from it; `what` names the file in error messages."""
    try:
        text = read_bytes(path, most=_LARGEST).decode()
        if found := _LONG_KEY.search(text):
            line = text.count("\n", 0, found.start()) + 1
            raise UsageError(f"the {what} {path} has a key of more than {_MOST_PARTS} parts at line {line}")
        tables = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"the {what} {path} cannot be read: {describe_os_error(error)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the {what} {path} is not TOML: {error!s:.200}") from None
    except RecursionError:
        raise UsageError(f"the {what} {path} is nested too deeply: more than {_DEEPEST} tables or arrays") from None
    except ValueError:  # of a decimal number that Python does not convert
        raise UsageError(f"the {what} {path} has a number of thousands of digits: {_RANGE}") from None
    if fault := _find_invalid_value(tables):
        raise UsageError(f"the {what} {path}: {fault}")
    return text, tables


_RANGE = "whole numbers lie between -2**63 and 2**63 - 1"


def _find_invalid_value(tables: dict[str, Any]) -> str:
    """Return an error message about the first invalid value in `tables`; the empty string if all values are valid."""
    level: list[tuple[str, Any]] = [("", tables)]
    for _ in range(_DEEPEST):
        inner: list[tuple[str, Any]] = []
        for key, value in level:
            match value:
                case dict():
                    inner += [(f"{key}.{name}" if key else name, one) for name, one in value.items()]
                case list():
                    inner += [(key, one) for one in value]
                case int() if not MIN_INTEGER <= value <= MAX_INTEGER:
                    return f"{key:.200} is a number beyond 64 bits: {_RANGE}"
                case date() | time():  # a datetime is a date
                    return f"{key:.200} is a date or a time, which no entry is: write it as text, in quotes"
        level = inner
    return f"it is nested too deeply: more than {_DEEPEST} tables or arrays" if level else ""


_TABLES: dict[str, Any] = {
    "options": dict[str, bool | int | float | str],
    "seeds": dict[str, int],
    "settings": dict[str, Any],
    "recipe": dict[str, Any],
}
"""Types of a run file's tables; the dataclasses of `settings` and `recipe` check the values in these two tables."""


def decode_search_options(tables: Mapping[str, Any], what: str = "the run file") -> SearchOptions:
    """Check the entries `tables` of a run file; return all except method, settings and recipe as `SearchOptions`."""
    known = {*_TABLES, "method", *(field.name for field in fields(SearchOptions))} - {"option"}
    check_setting_names(tables, known, what)
    for name in _TABLES.keys() & tables.keys():
        decode_value(name, tables[name], _TABLES[name], what=what)
    decode_value("method", tables.get("method", ""), str, what=what)
    given = {name: value for name, value in tables.items() if name not in (*_TABLES, "method")}
    given |= {f"{name}_seed": seed for name, seed in tables.get("seeds", {}).items()}
    if options := tables.get("options"):
        given["option"] = tuple(f"{name}={value}" for name, value in options.items())
    try:
        (found,) = decode_settings(given, SearchOptions, what=what)
    except UsageError as error:
        raise error if str(error).startswith(what) else UsageError(f"{what}: {error}") from None
    return found  # type: ignore[no-any-return]


def require_trust(
    tables: Mapping[str, Any], said: Container[str] | None, *, of: str, store: str | Path | None = None
) -> None:
    """Raise `TrustError` if a file names code or a local path that the user did not name on the command line.

    Args:
        tables: entries of the file.
        said: names of the entries that the command line overrides; None if the file is not a run file.
        of: description of the file for error messages.
        store: store of the command; its files of layer costs are trusted.
    """

    def format_advice(advice: str) -> str:
        return "" if said is None else f"{advice}, or, "

    own = () if said is None else said
    for what, registry in (("method", METHODS), ("controls", CONTROLS)):
        named = () if what in own else tables.get(what, ())
        for name in map(str, [named] if isinstance(named, str) else named):
            if what == "controls" and is_matched_dense(name):  # whose colon names a network
                if network := name.partition(":")[2]:
                    check_network(network, of=of)
            elif registry.is_external(name):
                raise untrusted_request_error(what.removesuffix("s"), name, of, format_advice("name it yourself"))
    for what in ("store", "data"):
        if what in tables and what not in own:
            raise untrusted_request_error(
                what, tables[what], of, format_advice(f"name the folder yourself with --{what}")
            )
    if "on" in tables and "on" not in own and str(tables["on"]).partition(":")[0] not in ("processes", "in-process"):
        raise untrusted_request_error("on", tables["on"], of, format_advice("name where to train yourself with --on"))
    task, options = tables.get("task", "digits"), tables.get("options", {})
    if "task" not in own or options:
        check_request(str(task), None, [(name, str(value)) for name, value in options.items()], of=of)
    if tables.get("model") and "model" not in own:
        check_network(str(tables["model"]), of=of)
    profile = tables.get("settings", {}).get("profile")
    if profile and "profile" not in own and not _is_stored_cost_file(str(profile), store):
        raise untrusted_request_error(
            "setting profile", str(profile), of, format_advice("name the file yourself with --profile")
        )
    for name, value in tables.get("settings", {}).items():
        for word in _find_names_of_user_code(name, value) if name not in own else ():
            advice = format_advice(f"name it yourself with --{name.replace('_', '-')}")
            raise untrusted_request_error(f"setting {name}", word, of, advice)


def upgrade_stored_settings(
    stored: Mapping[str, Any], method: object, store: str | Path | None = None
) -> dict[str, Any]:
    """Return `stored` settings in the current format, with the present path of their file of layer costs, if any.

    If this file has moved, it is looked up in `store`. A file of other costs cannot be used by mistake, since a digest
    of the costs is part of the run's name.
    """
    outside = isinstance(method, str) and METHODS.is_external(method)
    current = upgrade_settings(stored, FORMAT_1 if outside else ())
    if not (named := current.get("profile")) or (folder := _layer_costs_folder(store)) is None:
        return current
    profile = Path(str(named))
    kept = folder / profile.name
    try:
        moved = not profile.exists() and kept.is_file()
    except (OSError, ValueError):  # not a file name: an error follows when it is read
        return current
    return {**current, "profile": str(kept)} if moved else current


def _is_stored_cost_file(profile: str, store: str | Path | None) -> bool:
    """Return whether the path `profile`, with links resolved, is a file of layer costs in the store."""
    if (folder := _layer_costs_folder(store)) is None:
        return False
    try:
        return require_inside(folder, Path(profile)).is_file()
    except (OutsideError, OSError, ValueError):
        return False


def _layer_costs_folder(store: str | Path | None) -> Path | None:
    """Return the store's folder of layer costs; None without a store, or for a store on another machine."""
    return None if store is None or is_url(store) else Path(store) / "costs"


_SHAPE = re.compile(r"(?:[a-z]+\+?:)?[\d.:]+|[a-z]+\+?|refill\+:match")


def _find_names_of_user_code(name: str, value: Any) -> Iterator[str]:
    """Yield each string in a setting, or in the options of a structure, that names user code, such as a score."""
    for word in value if isinstance(value, list) else [value]:
        if not isinstance(word, str):
            continue
        head, *options = word.split(",")
        of_structure = name == "structure" and _SHAPE.fullmatch(head)
        for text in (option.partition("=")[2] for option in options) if of_structure else [word]:
            plain = text.removeprefix("inverted:").removeprefix("shuffled:")  # controls of a score
            if is_plugin_name(plain) or (":" in plain and parse_n_of_m(plain) is None):
                yield text


def _format_assignments(table: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, value in table.items():
        if value is not None:
            key = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _format_toml_value(name)
            lines.append(f"{key} = {_format_toml_value(value)}")
    return lines


def _format_toml_value(value: Any) -> str:
    # JSON writes strings, finite numbers, booleans and arrays as TOML does, but for one letter; TOML has no null.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
