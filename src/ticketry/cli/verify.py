"""ticketry verify TICKET|RUN: does it win?"""

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
Does it win? A ticket is trained again from its start with seeds that no search has used. Where it keeps weights of its
search (one-shot, gradual or dynamic pruning, gates), or with --about procedure, the whole search is repeated instead,
from fresh seeds. The dense network and controls that should lose are trained too, for equally many steps. Seeds are
added until an interim analysis decides or the limit is reached. Two answers: as good as dense, but for a margin? Better
than every control? It wins if both are yes, matches if it is as good as dense, and loses if it is not.

examples:
  ticketry verify .ticketry/runs/RUN/tickets/replicate-0-level-09
  ticketry verify RUN --density 0.1
  ticketry verify RUN --density 0.1 --about procedure
  ticketry verify my-ticket --margin 0.2 --interim 5,10,20
  ticketry verify my-ticket --claim matches --controls none --seeds 5 --json"""


def main(words: Sequence[str]) -> int:
    """Verify a ticket, or the procedure that found it."""
    from ticketry.evidence.settings import VerifySettings

    flat: Any = tyro.conf.OmitArgPrefixes
    task_help = "Only for a ticket whose task cannot be made by the name that is written in it."
    trust_help = "Use whatever task, network and method the ticket names: code of that name is imported and run."
    named_help = "The folder of a ticket; or a run, by its folder or its name in the store."
    density_help = "Of a run's tickets; by default the sparsest level that looks like a winner, or the only one."
    fields: list[Any] = [
        ("ticket", Annotated[Path, tyro.conf.Positional, tyro.conf.arg(help=named_help)]),
        ("density", Annotated[float | None, tyro.conf.arg(help=density_help)], dataclasses.field(default=None)),
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
    from ticketry.experiments.request import named_task
    from ticketry.experiments.verify import ticket_of, verify_ticket

    task = named_task(arguments.task) if arguments.task else None
    ticket = ticket_of(arguments.ticket, arguments.store, arguments.density)
    with Progress(f"verifying {ticket.name}") as progress:
        return verify_ticket(
            ticket,
            arguments.settings,
            arguments,
            task=task,
            trust=arguments.trust,
            command=command,
            on_event=progress.on_event,
            on_interim=interim_teller(progress),
        )


def interim_teller(progress: Progress) -> Callable[[Verdict], None]:
    """Tells the verdict of each interim analysis."""
    return lambda made: progress.say(f"{made.n} seeds: {made.reasons[0]}")


def told(record: VerifyRecord) -> list[str]:
    """A verification in a few lines, in the decimals of its page: as many as the spread of the seeds asks for."""
    from ticketry.report.tables.evidence import seed_style
    from ticketry.report.wording import role_name

    style = seed_style(record)
    margin = f"{round(record.margin, style.decimals + 2):g}"
    metric, task = record.task.metric, record.task
    unit = metric.unit and f" {metric.unit}"
    points = " points" if metric.unit == "%" else unit
    seeds = f"{record.n} seed{'' if record.n == 1 else 's'}"
    budgets = {network.role: network.budget for network in record.networks}
    steps = f"{budgets['ticket']:,} steps for every network"
    if budgets["dense"] != budgets["ticket"]:
        steps += f", {budgets['dense']:,} for the dense one"
    first = f"ticket   {record.ticket}"
    if record.about == "procedure":
        first = f"procedure {record.method}, the whole search with every seed, as in {record.run or record.ticket}"
    lines = [
        first,
        f"         {task.title}, {100 * record.density:.2f} % of {task.prunable:,} prunable"
        f" weights ({record.kept:,} kept); {steps}",
        f"verdict  {record.verdict.upper()}  ({record.claims_of}; claim: {record.claim}; margin"
        f" {margin}{points}, confidence {100 * record.confidence:g} %, {seeds}; p = {record.p:.2g})",
    ]
    if record.answers:
        lines.append(f"         {record.answers}")
    values = {network.role: network.values for network in record.networks}

    def row(name: str, of: Sequence[float]) -> str:
        return f"  {name:<26} {style.number(_mean(of)):>8}{unit}"

    for compared in record.comparisons:
        role, interval = compared.role, ""
        if compared.low is not None and compared.high is not None:
            interval = f"  [{style.number(compared.low, sign=True)}, {style.number(compared.high, sign=True)}]"
        lines.append(
            f"{row(role_name(role), values[role])}   ticket {style.number(compared.mean, sign=True)}{interval}"
        )
    lines.append(row("ticket", values["ticket"]))
    if noise := record.noise:
        spread = "" if noise.sd is None else f", standard deviation {style.number(noise.sd)}"
        shown = f"ticket {style.number(noise.mean, sign=True)}{spread}"
        lines.append(f"{row('ticket, other seeds (A/A)', noise.values)}   {shown}")
    for reference in record.references:
        lines.append(f"{row(role_name(reference.role), reference.values)}   {reference.steps:,} steps, shown only")
    lines += [f"left out {one.role}: {one.why}" for one in record.left_out]
    if not record.decided:
        more = record.more_seeds
        lines.append("         " + (f"about {more} more seeds would likely decide" if more else record.reasons[-1]))
    cost = record.cost
    lines.append(f"cost     {cost.segments_trained} segments trained of {cost.segments_asked} asked for")
    return lines


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
