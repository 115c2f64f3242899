"""ticketry verify, ticketry stability: test tickets with fresh seeds, and measure the stability of tickets."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import tyro

from ticketry.cli.arguments import OutputOptions, parse
from ticketry.cli.search import SearchArguments, read_arguments, request_from_arguments
from ticketry.errors import UsageError
from ticketry.evidence.settings import VerifySettings
from ticketry.experiments.options import LabOptions
from ticketry.records.evidence import StabilityRecord, StabilityRow
from ticketry.records.schema import as_json

_VERIFY = """\
Verify a ticket: train it again from its start with fresh seeds, beside the dense network and controls that should lose,
for equally many steps. If the ticket keeps weights of its search (one-shot, gradual or dynamic pruning, gates), or with
--about procedure, the whole search is repeated instead. Seeds are added until an interim analysis decides or the limit
is reached. The ticket wins if it is no worse than dense by more than the margin and better than every control; it
matches if only the former holds.

examples:
  ticketry verify .ticketry/runs/RUN/tickets/replicate-0-level-09
  ticketry verify RUN --density 0.1
  ticketry verify RUN --density 0.1 --about procedure
  ticketry verify my-ticket --margin 0.2 --interim 5,10,20
  ticketry verify my-ticket --claim matches --controls none --seeds 5 --json"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Verify(OutputOptions, LabOptions):
    ticket: tyro.conf.Positional[Path]
    """The folder of a ticket; or a run, by its folder or its name in the store."""
    density: float | None = None
    """Density of the run's ticket to verify; by default the sparsest level that looks like a winner."""
    settings: tyro.conf.OmitArgPrefixes[VerifySettings] = dataclasses.field(default_factory=VerifySettings)
    task: str = ""
    """Task, for a ticket that does not name its task."""
    trust: bool = False
    """Trust the ticket: import and run the task, network and method that it names."""


def verify(words: Sequence[str]) -> int:
    """Run `ticketry verify` and return its exit code."""
    arguments: Any = parse(_Verify, words, prog="ticketry verify", description=_VERIFY)
    from ticketry.cli.progress import Progress
    from ticketry.cli.results import make_interim_printer, summarise_verification
    from ticketry.experiments.request import resolve_task
    from ticketry.experiments.verify import find_ticket, verify_ticket

    task = resolve_task(arguments.task) if arguments.task else None
    ticket = find_ticket(arguments.ticket, arguments.store, arguments.density)
    with Progress(f"verifying {ticket.name}") as progress:
        record = verify_ticket(
            ticket,
            arguments.settings,
            arguments,
            task=task,
            trust=arguments.trust,
            command=shlex.join(["ticketry", "verify", *words]),
            on_event=progress.on_event,
            on_interim=make_interim_printer(progress),
        )
    print(json.dumps(as_json(record)) if arguments.json else "\n".join(summarise_verification(record)))
    return 0


_STABILITY = """\
Search at several rewind steps, and measure how stable the tickets are. Each ticket, and other masks with its weights,
are compared with the dense network (stability to pruning) and with themselves under another data order (stability to
data order), by L2 distance, angle and error barrier. All options of `ticketry search` apply too.

examples:
  ticketry stability --task digits --rewinds 0,3%,20% --densities 0.3,0.1
  ticketry stability --task fashion-mnist --density 0.1 --masks none --points 30 --splits test --json"""


def stability(words: Sequence[str]) -> int:
    """Run `ticketry stability` and return its exit code."""
    from ticketry.evidence.settings import StabilitySettings

    flat: Any = tyro.conf.OmitArgPrefixes
    extra = [("stability", flat[StabilitySettings], dataclasses.field(default=StabilitySettings()))]
    chosen, arguments = read_arguments(
        words, command="stability", default="iterative", base=SearchArguments, extra=extra, description=_STABILITY
    )
    from ticketry.cli.progress import Progress
    from ticketry.experiments.stability import run_stability_analysis

    command = shlex.join(["ticketry", "stability", *words])
    if arguments.name:
        raise UsageError("stability trains several runs, one for each rewind step: leave out --name")
    request = request_from_arguments(chosen, arguments)
    with Progress(f"stability of {request.method.name} on {request.task.name}") as progress:
        found = run_stability_analysis(
            request, arguments.stability, arguments, command=command, on_event=progress.on_event
        )
    report = found.report()
    if arguments.json:
        print(json.dumps({**as_json(found.record), "report": str(report)}))
    else:
        print("\n".join([*summarise_stability(found.record), "", f"report   {report}"]))
    return 0


def summarise_stability(record: StabilityRecord) -> list[str]:
    """Return a stability analysis as lines of text: means over replicates for each density, role and rewind step."""
    from ticketry.report.wording import role_name

    header = f"{'rewind':>14}  {'mask':<22} {'test':>7}  {'pruning':>15}  {'data order':>15}  barriers"
    lines = [f"L2 distance and angle over the kept weights, means of {record.replicates} replicate(s)"]
    rows: dict[tuple[float, str], dict[int, list[StabilityRow]]] = {}
    for row in record.rows:
        rows.setdefault((round(row.density, 6), row.role), {}).setdefault(row.step, []).append(row)
    names = {rewind.step: rewind.asked for rewind in record.rewinds}
    for density in sorted({density for density, _ in rows}, reverse=True):
        lines += ["", f"density {100 * density:.2f} %", header]
        for (at, role), by_step in rows.items():
            for step, found in sorted(by_step.items()) if at == density else ():
                place, value = f"{names[step]} (step {step})", fmean(row.value or 0.0 for row in found)
                pruning, order = (_format_distance(found, name) for name in ("pruning", "data_order"))
                line = f"{place:>14}  {role_name(role):<22} {value:7.2f}  {pruning:>15}  {order:>15}"
                lines.append(f"{line}  {_format_barriers(found)}")
    cost = record.cost
    asked, trained = cost.segments_asked or 0, cost.segments_trained or 0
    return [*lines, "", f"cost     {trained} segments trained of {asked} asked for ({trained / max(asked, 1):.0%})"]


def _format_distance(rows: Sequence[StabilityRow], name: str) -> str:
    found = [apart for row in rows if (apart := getattr(row, name)) is not None]
    if not found:
        return "–"
    angles = [one.angle for one in found if one.angle is not None]
    return f"{fmean(one.l2 for one in found):.2f}" + (f" ({fmean(angles):.1f}°)" if angles else "")


def _format_barriers(rows: Sequence[StabilityRow]) -> str:
    heights: dict[str, list[float]] = {}
    for row in rows:
        for one in row.barriers:
            heights.setdefault(f"{one.split}{' recal.' if one.recalibrated else ''}", []).append(one.height)
    return ", ".join(f"{name} {fmean(values):.2f}" for name, values in heights.items())
