"""Searches for tickets, one published method a file.

A file here that has a docstring, `Settings` (a frozen dataclass) and `search(lab, task, recipe, settings, seeds)`,
which yields a `Found` for each network of one replicate, is a method: the command line, the report, the controls and
the contract tests (`ticketry.testing.check_search`) take it from there. Files beginning with an underscore are helpers.
Nothing here imports torch when it is imported, so that ``ticketry --help`` answers at once.
"""

from __future__ import annotations

import importlib
import pkgutil

from ticketry.errors import UsageError
from ticketry.lab.found import Found, Seeds
from ticketry.search._method import Method

__all__ = ["Found", "Method", "Seeds", "method", "methods"]

ALIASES = {"imp": "iterative"}

_METHODS = {
    info.name: Method.of(importlib.import_module(f"{__name__}.{info.name}"))
    for info in pkgutil.iter_modules(__path__)
    if not info.name.startswith("_")
}
# `tk.search.iterative(lab, task)` is the search: bind each over its module.
globals().update(_METHODS)


def methods() -> dict[str, Method]:
    """Every method by name."""
    return dict(_METHODS)


def method(name: str) -> Method:
    """The method of this name or alias; `UsageError` if there is none."""
    found = _METHODS.get(ALIASES.get(name, name))
    if found is None:
        raise UsageError(f"search method {name!r} is not known: {', '.join([*_METHODS, *ALIASES])}")
    return found
