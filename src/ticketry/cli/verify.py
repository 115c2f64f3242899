"""ticketry verify TICKET: does it win?"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ticketry.cli.arguments import parse
from ticketry.cli.lab_options import LabOptions, opened

if TYPE_CHECKING:
    from ticketry.evidence.settings import VerifySettings
    from ticketry.evidence.verdict import Verdict
    from ticketry.tasks.base import Task

_DESCRIPTION = """\
Does a ticket win? It is trained anew with seeds that no search has used, and so are the dense network from the same
start and controls that should lose, all for equally many steps. Seeds are added until the verdict is decided or the
limit is reached: wins, loses or undecided, at a margin and a confidence.

examples:
  ticketry verify .ticketry/runs/RUN/tickets/replicate-0-level-09
  ticketry verify my-ticket --margin 0.2 --looks 5,10,20
  ticketry verify my-ticket --claim matches --controls none --seeds 5 --json"""


def main(words: Sequence[str]) -> int:
    """Verify a ticket."""
    from ticketry.evidence.settings import VerifySettings

    flat: Any = tyro.conf.OmitArgPrefixes
    task_help = "Only for a ticket whose task cannot be made by the name that is written in it."
    fields: list[Any] = [
        ("ticket", Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="The folder of a ticket.")]),
        ("settings", flat[VerifySettings], dataclasses.field(default=VerifySettings())),
        ("task", Annotated[str, tyro.conf.arg(help=task_help)], dataclasses.field(default="")),
    ]
    kind = dataclasses.make_dataclass("Verify", fields, bases=(LabOptions,), frozen=True, kw_only=True)
    arguments: Any = parse(kind, words or ["--help"], prog="ticketry verify", description=_DESCRIPTION)
    task = _task(arguments.task)
    command = shlex.join(["ticketry", "verify", *words])
    record = verified(arguments, arguments.ticket, arguments.settings, task=task, command=command)
    if arguments.json:
        print(json.dumps(record))
    else:
        print("\n".join(told(record)))
    return 0


def verified(
    options: LabOptions, ticket: str | Path, settings: VerifySettings, *, task: Task | None, command: str
) -> dict[str, Any]:
    """Verify a ticket in the lab that the options ask for; the record."""
    from ticketry.cli.progress import Progress
    from ticketry.run_verify import execute_verify

    with Progress(f"verifying {Path(ticket).name}") as progress, opened(options, task, progress.on_event) as lab:

        def on_look(made: Verdict) -> None:
            progress.say(f"{made.n} seeds: {made.outcome}")

        return execute_verify(lab, ticket, settings, task=task, command=command, on_look=on_look)


def told(record: Mapping[str, Any]) -> list[str]:
    """A verification in a few lines."""
    from ticketry.report.wording import role_name

    metric, task = record["task"]["metric"], record["task"]
    unit = metric["unit"] and f" {metric['unit']}"
    points = " points" if metric["unit"] == "%" else unit
    seeds = f"{record['n']} seed{'' if record['n'] == 1 else 's'}"
    lines = [
        f"ticket   {record['ticket']}",
        f"         {task['model']} on {task['name']}, {100 * record['density']:.2f} % of {task['prunable']:,} prunable"
        f" weights ({record['kept']:,} kept); {record['networks'][0]['budget']:,} steps for every network",
        f"verdict  {record['verdict'].upper()}  (claim: {record['claim']}; margin {record['margin']:g}{points},"
        f" confidence {100 * record['confidence']:g} %, {seeds}; p = {record['p']:.2g})",
    ]
    values = {network["role"]: network["values"] for network in record["networks"]}
    for compared in record["comparisons"]:
        role, interval = compared["role"], ""
        if compared["low"] is not None:
            interval = f"  [{compared['low']:+.2f}, {compared['high']:+.2f}]"
        lines.append(
            f"  {role_name(role):<26} {_mean(values[role]):8.2f}{unit}   ticket {compared['mean']:+.2f}{interval}"
        )
    lines.append(f"  {'ticket':<26} {_mean(values['ticket']):8.2f}{unit}")
    if record["noise"]:
        noise = record["noise"]
        spread = "" if noise["sd"] is None else f", standard deviation {noise['sd']:.2f}"
        lines.append(
            f"  {'ticket, other seeds (A/A)':<26} {_mean(noise['values']):8.2f}{unit}"
            f"   ticket {noise['mean']:+.2f}{spread}"
        )
    for reference in record["references"]:
        name = role_name(reference["role"])
        lines.append(f"  {name:<26} {_mean(reference['values']):8.2f}{unit}   {reference['steps']:,} steps, shown only")
    lines += [f"left out {one['role']}: {one['why']}" for one in record["left_out"]]
    if record["verdict"] == "undecided":
        more = record["more_seeds"]
        lines.append("         " + (f"about {more} more seeds would likely decide" if more else record["reasons"][-1]))
    cost = record["cost"]
    lines.append(f"cost     {cost['segments_trained']} segments trained of {cost['segments_asked']} asked for")
    return lines


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _task(name: str) -> Task | None:
    from ticketry.tasks import registry

    return registry.get(name) if name else None
