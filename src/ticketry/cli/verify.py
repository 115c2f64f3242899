"""ticketry verify TICKET|RUN: verify that a ticket wins, or that the procedure that found it wins."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from ticketry.cli.arguments import OutputOptions, parse
from ticketry.evidence.settings import VerifySettings
from ticketry.experiments.options import LabOptions
from ticketry.records.schema import as_json

if TYPE_CHECKING:
    from ticketry.records.evidence import VerifyRecord

_DESCRIPTION = """\
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
class _Arguments(OutputOptions, LabOptions):
    ticket: tyro.conf.Positional[Path]
    """The folder of a ticket; or a run, by its folder or its name in the store."""
    density: float | None = None
    """Density of the run's ticket to verify; by default the sparsest level that looks like a winner."""
    settings: tyro.conf.OmitArgPrefixes[VerifySettings] = dataclasses.field(default_factory=VerifySettings)
    task: str = ""
    """Task, for a ticket that does not name its task."""
    trust: bool = False
    """Trust the ticket: import and run the task, network and method that it names."""


def main(words: Sequence[str]) -> int:
    """Run `ticketry verify` and return its exit code."""
    arguments: Any = parse(_Arguments, words, prog="ticketry verify", description=_DESCRIPTION)
    command = shlex.join(["ticketry", "verify", *words])
    record = _run_verification(arguments, command)
    if arguments.json:
        print(json.dumps(as_json(record)))
    else:
        from ticketry.cli.screen.results import summarise_verification

        print("\n".join(summarise_verification(record)))
    return 0


def _run_verification(arguments: Any, command: str) -> VerifyRecord:
    from ticketry.cli.screen.progress import Progress
    from ticketry.cli.screen.results import make_interim_printer
    from ticketry.experiments.request import resolve_task
    from ticketry.experiments.verify import find_ticket, verify_ticket

    task = resolve_task(arguments.task) if arguments.task else None
    ticket = find_ticket(arguments.ticket, arguments.store, arguments.density)
    with Progress(f"verifying {ticket.name}") as progress:
        return verify_ticket(
            ticket,
            arguments.settings,
            arguments,
            task=task,
            trust=arguments.trust,
            command=command,
            on_event=progress.on_event,
            on_interim=make_interim_printer(progress),
        )
