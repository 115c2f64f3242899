"""ticketry list: what there is."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ticketry.cli.arguments import parse
from ticketry.errors import TicketryError, UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Arguments:
    store: Path = Path(".ticketry")
    """The store's folder (for runs and tickets)."""
    json: bool = False
    """Print the list as one JSON array of objects."""


def main(words: Sequence[str]) -> int:
    """Print one of the lists."""
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else 2
    if words[0] not in _LISTS:
        raise UsageError(f"ticketry list shows {', '.join(_LISTS)}, not {words[0]!r}")
    title, rows_of = _LISTS[words[0]]
    arguments = parse(_Arguments, words[1:], prog=f"ticketry list {words[0]}", description=title)
    rows = rows_of(arguments.store)
    if arguments.json:
        print(json.dumps(rows))
    elif rows:
        _PRINTED.get(words[0], _print_table)(rows)
    else:
        print(f"no {words[0]} in {arguments.store} yet")
    return 0


def _print_table(rows: list[dict[str, Any]]) -> None:
    cells = [[str(value) for value in row.values()] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_methods(rows: list[dict[str, Any]]) -> None:
    table: list[tuple[str, ...]] = [("method", "prunes", "costs, in trainings", "score", "removes")]
    for row in rows:
        name = f"{row['name']} ({row['alias']})" if row["alias"] else row["name"]
        table.append((name, row["prunes"], row["costs"], row["scores"] or "none", row["removes"]))
    _print_with_more(table, [f"{row['description']}. {row['paper']}" for row in rows])
    print(
        "\ncosts: of a ticket's search and training; the dense network to compare with is\n"
        "       one more, where the search does not need it anyway\n"
        "score: the default; --score takes any of `ticketry list scores`\n"
        "removes: single weights, whole channels (--structured, or as the method has it),\n"
        "       or both"
    )


def _print_scores(rows: list[dict[str, Any]]) -> None:
    table: list[tuple[str, ...]] = [("score", "needs data", "derivatives", "of channels", "paper")]
    for row in rows:
        order = {0: "none", 1: "first", 2: "second"}.get(row["order"], "not said")
        table.append((row["name"], row["data"], order, row["channels"], row["paper"]))
    _print_with_more(table, [row["description"] for row in rows])
    print(
        "\nof channels: its form for whole channels (summed: over all weights of each);\n"
        "             only: with --structured, it is not one of single weights"
    )


def _print_with_more(table: list[tuple[str, ...]], more: list[str]) -> None:
    """A table with a header, and below each row a line or more, no wider than 80 columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    print(lines[0])
    for line, text in zip(lines[1:], more, strict=True):
        print(f"\n{line}\n{textwrap.fill(text, 78, initial_indent='  ', subsequent_indent='  ')}")


def _tasks(_: Path) -> list[dict[str, Any]]:
    from ticketry.tasks import registry

    return [{"name": name, "description": registry.describe(name)} for name in registry.names()]


def _methods(_: Path) -> list[dict[str, Any]]:
    from ticketry.search import ALIASES, methods

    aliases = {name: alias for alias, name in ALIASES.items()}
    return [
        {
            "name": name,
            "alias": aliases.get(name, ""),
            "description": found.title,
            "prunes": found.about.prunes,
            "costs": found.about.costs,
            "scores": found.scores,
            "removes": found.removes,
            "paper": found.about.paper,
        }
        for name, found in methods().items()
    ]


def _models(_: Path) -> list[dict[str, Any]]:
    from ticketry.tasks import models
    from ticketry.tasks.models import language

    return [{"name": name} for name in (*models.names(), *language.names())]


def _scores(_: Path) -> list[dict[str, Any]]:
    from ticketry.core import score
    from ticketry.core.structure.about import CHANNEL_ONLY

    of_weights = {name: ((score.get(name).__doc__ or "").split("\n")[0], score.about(name)) for name in score.names()}
    of_channels = {name: (found.description, found.about) for name, found in CHANNEL_ONLY.items()}
    return [
        {
            "name": name,
            "description": description,
            "data": about.data,
            "order": about.order,
            "channels": about.channels,
            "paper": about.paper,
        }
        for name, (description, about) in (of_weights | of_channels).items()
    ]


def _presets(_: Path) -> list[dict[str, Any]]:
    from ticketry.tasks.experiments import EXPERIMENTS

    return [{"name": name, "title": preset.title, "source": preset.source} for name, preset in EXPERIMENTS.items()]


def _runs(store: Path) -> list[dict[str, Any]]:
    return [
        {
            "run": record["run"],
            "title": record["title"],
            "task": record["task"]["name"],
            "networks": len(record["points"]),
            "date": record["environment"]["date"],
        }
        for record in records(store)
    ]


def _tickets(store: Path) -> list[dict[str, Any]]:
    return [
        {
            "path": point["ticket"],
            "weights_remaining": f"{100 * point['density']:.2f} %",
            **{name: round(value, 4) for name, value in point["test"].items()},
        }
        for record in records(store)
        for point in record["points"]
        if point["role"] == "ticket"
    ]


def records(store: Path) -> list[dict[str, Any]]:
    """The records of all finished runs of a store, the oldest first."""
    from ticketry.lab.files import read_json
    from ticketry.lab.paths import Paths

    found = [read_json(path) for path in Paths(store).runs.glob("*/run.json")]
    whole = [record for record in found if record is not None]
    if any(not {"run", "points", "environment"} <= record.keys() for record in whole):
        raise TicketryError(f"a run.json in {store} is not the record of a run")
    return sorted(whole, key=lambda record: str(record["environment"].get("date")))


_LISTS: dict[str, tuple[str, Callable[[Path], list[dict[str, Any]]]]] = {
    "tasks": ("The built-in tasks.", _tasks),
    "methods": ("The search methods.", _methods),
    "models": ("The networks that --model can name.", _models),
    "scores": ("The saliencies that --score can name.", _scores),
    "presets": ("Published experiments that --preset can name.", _presets),
    "runs": ("The finished runs of a store.", _runs),
    "tickets": ("The tickets of a store's runs.", _tickets),
}

_PRINTED = {"methods": _print_methods, "scores": _print_scores}


def _help() -> str:
    lines = [f"  {name:<8} {title}" for name, (title, _) in _LISTS.items()]
    examples = ["examples:", "  ticketry list tasks", "  ticketry list tickets --store .ticketry --json"]
    return "\n".join([f"usage: ticketry list {{{','.join(_LISTS)}}} [--store DIR] [--json]", "", *lines, "", *examples])
