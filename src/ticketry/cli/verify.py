"""ticketry verify TICKET: does it win?"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ticketry.cli.arguments import parse
from ticketry.cli.options import Printing
from ticketry.experiments.options import LabOptions
from ticketry.records.schema import as_json

if TYPE_CHECKING:
    from ticketry.cli.progress import Progress
    from ticketry.evidence.verdict import Verdict
    from ticketry.records.evidence import VerifyRecord

_DESCRIPTION = """\
Does a ticket win? It is trained again with seeds that no search has used. The dense network from the same start and
controls that should lose are trained too, all for equally many steps. Seeds are added until an interim analysis decides
or the limit is reached. Two answers: as good as dense, but for a margin? Better than every control? It wins if both are
yes, matches if it is as good as dense, and loses if it is not.

examples:
  ticketry verify .ticketry/runs/RUN/tickets/replicate-0-level-09
  ticketry verify my-ticket --margin 0.2 --interim 5,10,20
  ticketry verify my-ticket --claim matches --controls none --seeds 5 --json"""


def main(words: Sequence[str]) -> int:
    """Verify a ticket."""
    from ticketry.evidence.settings import VerifySettings

    flat: Any = tyro.conf.OmitArgPrefixes
    task_help = "Only for a ticket whose task cannot be made by the name that is written in it."
    trust_help = "Use whatever task and network the ticket names: code of that name is imported and run."
    fields: list[Any] = [
        ("ticket", Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help="The folder of a ticket.")]),
        ("settings", flat[VerifySettings], dataclasses.field(default=VerifySettings())),
        ("task", Annotated[str, tyro.conf.arg(help=task_help)], dataclasses.field(default="")),
        ("trust", Annotated[bool, tyro.conf.arg(help=trust_help)], dataclasses.field(default=False)),
    ]
    kind = dataclasses.make_dataclass("Verify", fields, bases=(Printing, LabOptions), frozen=True, kw_only=True)
    arguments: Any = parse(kind, words or ["--help"], prog="ticketry verify", description=_DESCRIPTION)
    command = shlex.join(["ticketry", "verify", *words])
    record = _verified(arguments, command)
    if arguments.json:
        print(json.dumps(as_json(record)))
    else:
        print("\n".join(told(record)))
    return 0


def _verified(arguments: Any, command: str) -> VerifyRecord:
    from ticketry.cli.progress import Progress
    from ticketry.experiments.verify import task_of, verify_ticket

    task = task_of(arguments.ticket, arguments.task, trust=arguments.trust)
    with Progress(f"verifying {arguments.ticket.name}") as progress:
        return verify_ticket(
            arguments.ticket,
            arguments.settings,
            arguments,
            task=task,
            command=command,
            on_event=progress.on_event,
            on_interim=interim_teller(progress),
        )


def interim_teller(progress: Progress) -> Callable[[Verdict], None]:
    """Tells the verdict of each interim analysis."""
    return lambda made: progress.say(f"{made.n} seeds: {made.reasons[0]}")


def told(record: VerifyRecord) -> list[str]:
    """A verification in a few lines."""
    from ticketry.report.wording import role_name

    metric, task = record.task.metric, record.task
    unit = metric.unit and f" {metric.unit}"
    points = " points" if metric.unit == "%" else unit
    seeds = f"{record.n} seed{'' if record.n == 1 else 's'}"
    lines = [
        f"ticket   {record.ticket}",
        f"         {task.model} on {task.name}, {100 * record.density:.2f} % of {task.prunable:,} prunable"
        f" weights ({record.kept:,} kept); {record.networks[0].budget:,} steps for every network",
        f"verdict  {record.verdict.upper()}  (claim: {record.claim}; margin {record.margin:g}{points},"
        f" confidence {100 * record.confidence:g} %, {seeds}; p = {record.p:.2g})",
    ]
    if record.answers:
        lines.append(f"         {record.answers}")
    values = {network.role: network.values for network in record.networks}
    for compared in record.comparisons:
        role, interval = compared.role, ""
        if compared.low is not None and compared.high is not None:
            interval = f"  [{compared.low:+.2f}, {compared.high:+.2f}]"
        lines.append(
            f"  {role_name(role):<26} {_mean(values[role]):8.2f}{unit}   ticket {compared.mean:+.2f}{interval}"
        )
    lines.append(f"  {'ticket':<26} {_mean(values['ticket']):8.2f}{unit}")
    if noise := record.noise:
        spread = "" if noise.sd is None else f", standard deviation {noise.sd:.2f}"
        lines.append(
            f"  {'ticket, other seeds (A/A)':<26} {_mean(noise.values):8.2f}{unit}   ticket {noise.mean:+.2f}{spread}"
        )
    for reference in record.references:
        name = role_name(reference.role)
        lines.append(f"  {name:<26} {_mean(reference.values):8.2f}{unit}   {reference.steps:,} steps, shown only")
    lines += [f"left out {one.role}: {one.why}" for one in record.left_out]
    if not record.decided:
        more = record.more_seeds
        lines.append("         " + (f"about {more} more seeds would likely decide" if more else record.reasons[-1]))
    cost = record.cost
    lines.append(f"cost     {cost.segments_trained} segments trained of {cost.segments_asked} asked for")
    return lines


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
