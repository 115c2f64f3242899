"""Run files: a whole run as TOML, written by every run and read by --config."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ticketry.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def run_file(described: Mapping[str, Any], spec: Any) -> str:
    """The TOML that repeats a run, from its description and the request that its task was made by."""
    top = {
        "method": described["method"],
        "task": spec.name if spec else described["task"].get("name", ""),
        "model": (spec.model if spec else None) or None,  # not written if the task's own
        "replicates": described["replicates"],
        "controls": described["controls"],
    }
    tables = {
        "options": dict(spec.options) if spec else {},
        "seeds": described["seeds"],
        "settings": described["settings"],
        "recipe": described["recipe"],
    }
    lines = ["# ticketry search --config run.toml", *_assignments(top)]
    for name, table in tables.items():
        if assignments := _assignments(table):
            lines += ["", f"[{name}]", *assignments]
    return "\n".join(lines) + "\n"


def read_run_file(path: Path) -> dict[str, Any]:
    """The tables of a run file.

    Raises:
        UsageError: if it cannot be read or is not TOML.
    """
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the run file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the run file {path} is not TOML: {error}") from None
    return tables


def _assignments(table: Mapping[str, Any]) -> list[str]:
    # JSON writes strings, numbers, booleans and arrays of them as TOML does; TOML has no null.
    written = {name: json.dumps(value, ensure_ascii=False) for name, value in table.items() if value is not None}
    return [f"{_key(name)} = {value}" for name, value in written.items()]


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
