"""A published experiment as facts: all that a run file would say of it. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ticketry.tasks.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A search with its task, network, recipe and settings."""

    title: str
    source: str
    """Where the numbers are from."""
    method: str
    """A name of `ticketry list methods`."""
    task: str
    model: str
    recipe: Recipe
    settings: Mapping[str, Any]
    """Of the method: those that are not its defaults."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Of the task."""

    def tables(self) -> dict[str, Any]:
        """What `read_run_file` would give for a file with this search, made anew at each call."""
        return {
            "method": self.method,
            "task": self.task,
            "model": self.model,
            "options": dict(self.options),
            "settings": _plain(self.settings),
            "recipe": _plain(asdict(self.recipe)),
        }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, list | tuple) else value for name, value in values.items()}
