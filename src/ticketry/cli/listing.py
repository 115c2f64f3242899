"""ticketry list: print the available tasks, methods, networks and scores, or the runs and tickets of a store."""

from __future__ import annotations

import dataclasses
import inspect
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ticketry.cli.arguments import parse
from ticketry.cli.store import format_megabytes, store_exists
from ticketry.errors import StoreError
from ticketry.lab.store.paths import display_address as shown_place
from ticketry.lab.store.paths import shared_url
from ticketry.registry import BUILT_IN, Registry

if TYPE_CHECKING:
    from ticketry.records.network import Point
    from ticketry.records.run import RunRecord


_DESCRIPTION = """\
What there is: tasks, search methods, networks that --model can name, scores that --score can name, kinds of gates,
controls that --controls can name, runners, loggers that --log can name, published experiments that --preset can name;
and of a store its runs, with size, age and state, and the tickets of those that are finished. What is not built in is
an installed package's: its name and version stand beside it.

examples:
  ticketry list tasks
  ticketry list tickets --store .ticketry --json"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Arguments:
    what: Annotated[
        Literal[
            "tasks",
            "methods",
            "models",
            "scores",
            "gates",
            "controls",
            "runners",
            "loggers",
            "presets",
            "runs",
            "tickets",
        ],
        tyro.conf.Positional,
    ]
    """Which list to print."""
    store: Path = Path(".ticketry")
    """The store's folder, for lists of runs and tickets."""
    json: bool = False
    """Print the list as one JSON array of objects."""


def main(words: Sequence[str]) -> int:
    """Run `ticketry list` and return its exit code."""
    arguments: _Arguments = parse(_Arguments, words, prog="ticketry list", description=_DESCRIPTION)
    rows = _LISTS[arguments.what](arguments.store)
    if arguments.json:
        print(json.dumps(rows))
    elif rows:
        _PRINTED.get(arguments.what, _print_table)(rows)
    else:
        print(f"no {arguments.what} in {shown_place(arguments.store)} yet")
    return 0


def _print_table(rows: list[dict[str, Any]]) -> None:
    from ticketry.report.wording import align_columns

    print("\n".join(align_columns([[printable_text(value) for value in row.values()] for row in rows])))


def _print_tickets(rows: list[dict[str, Any]]) -> None:
    """Print tickets as a table, with a column for every metric that some ticket has."""
    from ticketry.report.wording import NONE, align_columns

    heads = {"path": "ticket", "weights_remaining": "weights left"}
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[NONE if (value := row.get(name)) is None else _format_cell(value) for name in names] for row in rows]
    print("\n".join(align_columns([[printable_text(heads.get(name, name)) for name in names], *lines])))


def _format_cell(value: object) -> str:
    """Format a value for a table: floats from 1 with four decimals, smaller floats with six digits, others as text."""
    if isinstance(value, float):
        return str(round(value, 4)) if abs(value) >= 1 else f"{value:.6g}"
    return printable_text(value)


def printable_text(value: object) -> str:
    """Return a value as one line of text without control characters."""
    from ticketry.core.tables import one_line

    return one_line(str(value))


def _print_methods(rows: list[dict[str, Any]]) -> None:
    table: list[tuple[str, ...]] = [("method", "prunes", "costs, in trainings", "score", "removes")]
    for row in rows:
        table.append((row["name"], row["prunes"], row["costs"], row["scores"] or "none", row["removes"]))
    _print_with_descriptions(
        table, [f"{row['description']}. {row['paper']}{_defining_package_note(row)}" for row in rows]
    )
    print("\nnames that papers use")
    for row in rows:
        for alias, one in row["aliases"].items():
            line = f"{alias:<10} {one['stands_for']}: {one['words']}"
            print(textwrap.fill(line, 80, initial_indent="  ", subsequent_indent=" " * 13))
    print(
        "\ncosts: of a ticket's search and training; the dense network to compare with is\n"
        "       one more, where the search does not need it anyway\n"
        "score: the default; --score takes any of `ticketry list scores`\n"
        "removes: single weights, whole channels (--structure channels, or as the method\n"
        "       has it), or both"
    )


def _print_scores(rows: list[dict[str, Any]]) -> None:
    table: list[tuple[str, ...]] = [("score", "needs data", "derivatives", "of channels", "paper")]
    for row in rows:
        order = {0: "none", 1: "first", 2: "second"}.get(row["order"], "not said")
        table.append((row["name"], row["data"], order, row["channels"], row["paper"]))
    _print_with_descriptions(table, [f"{row['description']}{_defining_package_note(row)}" for row in rows])
    print(
        "\nof channels: its form for whole channels (summed: over all weights of each);\n"
        "             only: with --structure channels, it is not one of single weights"
    )


def _defining_package_note(row: Mapping[str, Any]) -> str:
    """Return, in brackets, the name of the package that defines the listed entry `row`; empty if it is ticketry."""
    return "" if row["from"] == BUILT_IN else f" (of {row['from']})"


def _print_with_descriptions(table: list[tuple[str, ...]], more: list[str]) -> None:
    """Print a table, at most 80 columns wide; below each row, print the text of `more` with the same index."""
    from ticketry.report.wording import align_columns

    head, *lines = align_columns(table)
    print(head)
    for line, text in zip(lines, more, strict=True):
        print(f"\n{line}\n{textwrap.fill(text, 78, initial_indent='  ', subsequent_indent='  ')}")


def _list_tasks(_: Path) -> list[dict[str, Any]]:
    from ticketry.tasks import catalogue

    return [
        {"name": name, "from": catalogue.find_origin(name), "description": catalogue.describe(name)}
        for name in catalogue.names()
    ]


def _list_methods(_: Path) -> list[dict[str, Any]]:
    from ticketry.search import ALIASES, METHODS, methods

    return [
        {
            "name": name,
            "alias": next((alias for alias, one in ALIASES.items() if one.method == name), ""),
            "aliases": {
                alias: {"stands_for": one.stands_for, "words": one.command_line_words, "settings": dict(one.settings)}
                for alias, one in ALIASES.items()
                if one.method == name
            },
            "from": METHODS.find_origin(name),
            "description": found.title,
            "prunes": found.about.prunes,
            "costs": found.about.costs,
            "scores": found.scores,
            "removes": found.removes,
            "paper": found.about.paper,
        }
        for name, found in methods().items()
    ]


def _list_models(_: Path) -> list[dict[str, Any]]:
    from ticketry.tasks.network_name import LANGUAGE_MODELS, NETWORKS

    return [
        {"name": name, "from": registry.find_origin(name)}
        for registry in (NETWORKS, LANGUAGE_MODELS)
        for name in registry.names()
    ]


def _list_scores(_: Path) -> list[dict[str, Any]]:
    from ticketry.core import score
    from ticketry.core.structure.channel_scores import CHANNEL_ONLY

    of_weights = {
        name: ((found.__doc__ or "").split("\n")[0], score.about(name))
        for name, found in score.SCORES.load_usable_objects().items()
    }
    of_channels = {name: (found.description, found.about) for name, found in CHANNEL_ONLY.items()}
    return [
        {
            "name": name,
            "from": score.SCORES.find_origin(name) if name in of_weights else BUILT_IN,
            "description": description,
            "data": about.data,
            "order": about.order,
            "channels": about.channels,
            "paper": about.paper,
        }
        for name, (description, about) in (of_weights | of_channels).items()
    ]


def _make_registry_lister(module: str, name: str) -> Callable[[Path], list[dict[str, Any]]]:
    """Return a function that imports `module` and returns a dict for each entry of the module's registry `name`."""

    def list_entries(_: Path) -> list[dict[str, Any]]:
        registry: Registry[Any] = getattr(import_module(module), name)
        return [
            {"name": name, "from": registry.find_origin(name), "description": first_paragraph(found)}
            for name, found in registry.load_usable_objects().items()
        ]

    return list_entries


def _list_controls(store: Path) -> list[dict[str, Any]]:
    from ticketry.evidence.control import MORE_CONTROLS
    from ticketry.registry import BUILT_IN

    more = [{"name": name, "from": BUILT_IN, "description": text} for name, text in MORE_CONTROLS.items()]
    return [*_make_registry_lister("ticketry.evidence", "CONTROLS")(store), *more]


def first_paragraph(found: object) -> str:
    """Return the first paragraph of an object's docstring; an inherited docstring is ignored."""
    text = inspect.cleandoc(getattr(found, "__doc__", None) or "")
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def _list_presets(_: Path) -> list[dict[str, Any]]:
    from ticketry.tasks.catalogue import EXPERIMENTS

    return [{"name": name, "title": preset.title, "source": preset.source} for name, preset in EXPERIMENTS.items()]


def _list_runs(store: Path) -> list[dict[str, Any]]:
    if not store_exists(store):
        return []
    from ticketry.experiments.stores import stored_runs

    by_name = {record.name: record for record in read_run_records(store)}
    rows = []
    for one in stored_runs(store):
        record = by_name.get(one.name)
        rows.append(
            {
                "run": one.name,
                "title": record.title if record else "",
                **describe_run(record),
                "task": record.task.name if record else "",
                "networks": len(record.points) if record else 0,
                "date": record.environment.get("date", "") if record else "",
                "state": one.state,
                "bytes": one.bytes,
                "own_bytes": one.own_bytes,
                "age_seconds": round(one.age_seconds),
            }
        )
    return rows


def _print_runs(rows: list[dict[str, Any]]) -> None:
    print(
        "\n".join(
            [
                *format_runs(rows, sizes=True),
                "",
                "weights: of the tickets, the densest first; best: the highest mean of any level on the test split",
                "size: with all results and weights that it stands on; its own: what `ticketry rm RUN` frees",
                "state: half is begun and not finished, the same search goes on with it",
            ]
        )
    )


def _list_tickets(store: Path) -> list[dict[str, Any]]:
    return [
        {
            "path": _find_ticket_folder(store, record, point),
            "weights_remaining": f"{100 * point.density:.2f} %",
            **point.test,
        }
        for record in (read_run_records(store) if store_exists(store) else [])
        for point in record.points
        if point.role == "ticket"
    ]


def _find_ticket_folder(store: Path, record: RunRecord, point: Point) -> str | None:
    """Return the folder of a run's ticket in `store`; None if the folder is missing."""
    from ticketry.lab.store.files import path_exists
    from ticketry.lab.store.paths import Paths, ticket_folder

    if shared_url(store):  # whose folders are fetched when they are asked for
        return shown_place(point.ticket) if point.ticket else None
    folder = ticket_folder(Paths(store).run(record.name), point.replicate, point.level)
    return shown_place(str(folder)) if path_exists(folder) else None


def read_run_records(store: Path) -> list[RunRecord]:
    """Return the records of all finished runs of a store, the oldest first; raise the errors of `read_record`."""
    return [read_record(path) for path in run_record_files(store)]


def run_record_files(store: Path) -> list[Path]:
    """Return the ``run.json`` files of a store's finished runs, the oldest first."""
    from ticketry.lab.store.files import read_with_digest
    from ticketry.lab.store.paths import Paths

    dates = {}
    for path in Paths(store).run_records():
        if values := read_with_digest(path):
            environment = values.get("environment")
            dates[path] = str(environment.get("date")) if isinstance(environment, dict) else ""
    return sorted(dates, key=dates.__getitem__)


def read_record(path: Path) -> RunRecord:
    """Return the record in a ``run.json`` file; raise `StoreError` if it names another run than its folder."""
    from ticketry.lab.store.files import read_with_digest
    from ticketry.records.run import read_run

    record = read_run(read_with_digest(path), str(path))
    if record.name != path.parent.name:
        raise StoreError(f"{path} is the record of another run, {record.name!r:.80}: move it out of the store")
    return record


_LISTS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "tasks": _list_tasks,
    "methods": _list_methods,
    "models": _list_models,
    "scores": _list_scores,
    "gates": _make_registry_lister("ticketry.core.gates", "KINDS"),
    "controls": _list_controls,
    "runners": _make_registry_lister("ticketry.lab.runners.runner", "RUNNERS"),
    "loggers": _make_registry_lister("ticketry.lab.loggers", "LOGGERS"),
    "presets": _list_presets,
    "runs": _list_runs,
    "tickets": _list_tickets,
}

_PRINTED = {"methods": _print_methods, "scores": _print_scores, "runs": _print_runs, "tickets": _print_tickets}


NONE = "–"


def describe_run(record: RunRecord | None) -> dict[str, Any]:
    """Return a dict with a run's method, score, ticket densities and best test mean; all empty if `record` is None."""
    if record is None:
        return {"method": "", "score": "", "densities": [], "best": None, "metric": "", "unit": "", "replicates": 0}
    from ticketry.report.tables.observation import tickets_with_best_mean
    from ticketry.report.tables.results import Results

    results, metric = Results(record), record.task.metric
    best = tickets_with_best_mean(results)
    score = record.effective_settings.get("score")
    return {
        "method": record.known_as,
        "score": score if isinstance(score, str) else "",
        "densities": [round(results.tickets_or_control_at(level).density, 6) for level in results.levels],
        "best": None if best is None else best.metric().mean,
        "metric": metric.words,
        "unit": metric.unit,
        "replicates": results.replicates,
    }


def format_runs(rows: Sequence[Mapping[str, Any]], *, sizes: bool) -> list[str]:
    """Return a table of runs as lines of text.

    Args:
        rows: dicts with the keys ``run`` and ``age_seconds`` and those of `describe_run`.
        sizes: whether to add columns from the keys ``state``, ``bytes`` and ``own_bytes`` of the rows.
    """
    from ticketry.core.tables import one_line
    from ticketry.report.wording import align_columns

    head = ["run", "method", "score", "weights, %", "best", "n", "changed"]
    table = [[*head[:-1], *(["state", "size", "its own"] if sizes else []), head[-1]]]
    for row in rows:
        best = NONE if row["best"] is None else f"{row['best']:.4g}{row['unit'] and ' ' + row['unit']}"
        cells = [row["run"], row["method"] or NONE, row["score"] or NONE, _format_densities(row["densities"]), best]
        more = [row["state"], format_megabytes(row["bytes"]), format_megabytes(row["own_bytes"])] if sizes else []
        table.append(
            [
                one_line(str(cell))
                for cell in (*cells, row["replicates"] or NONE, *more, format_elapsed_time(row["age_seconds"]))
            ]
        )
    return align_columns(table)


_MOST_DENSITIES = 3


def _format_densities(densities: Sequence[float]) -> str:
    """Return densities in % as text, such as ``20, 10``; of many densities only the first and the last."""
    words = [f"{100 * one:.3g}" for one in densities]
    if len(words) > _MOST_DENSITIES:
        return f"{words[0]} … {words[-1]} ({len(words)} levels)"
    return ", ".join(words) or NONE


def format_elapsed_time(seconds: float) -> str:
    """Return an elapsed time as text, such as ``3 hours ago``, in the largest unit that fits."""
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' * (count > 1)} ago"
    return "just now"
