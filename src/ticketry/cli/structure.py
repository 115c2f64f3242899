"""ticketry structure TICKET: give a ticket's mask a structure that hardware can use, and save a new ticket."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ticketry.cli.arguments import OutputOptions, parse, show_status
from ticketry.cli.screen.speed import make_console, structure_fit_table
from ticketry.experiments.options import ModelOptions, StructureOptions
from ticketry.records.schema import as_json
from ticketry.records.structure import StructureRecord

_DESCRIPTION = """\
Give the mask of a ticket a structure that hardware can use, and save the ticket that results. It starts where the old
one did, also in positions that are filled back, and has not been trained. ticketry verify trains it and shows whether
it still wins; ticketry bench --weights start shows what it saves.

  refill     whole channels, as many as each layer's kept weights fill; the others are emptied
  refill+    the same, and a share of the others (--plus) filled back, or up to a density (--density)
  regroup    groups of rows (--rows) that keep the same columns
  2:4        2 of every 4 inputs; or another N:M
  channels   whole channels by their score alone, to the ticket's density or --density: what refill is compared with

The table has for each layer how many groups of how many rows it has, its density (fraction of weights kept) before and
after, the share of the kept weights' magnitude that is in the new mask (coverage), and the share of the new mask that
was filled back; for regroup also the coverage of a mask without structure by construction (null: the entries of each
column shuffled) and of random groups.

examples:
  ticketry structure .ticketry/runs/RUN/tickets/replicate-0-level-06 --to regroup --rows 8
  ticketry structure my-ticket --to refill+ --plus 0.3 -o my-channels
  ticketry structure my-ticket --to 2:4 --json"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Arguments(OutputOptions, ModelOptions, StructureOptions):
    ticket: Annotated[Path, tyro.conf.Positional]
    """The folder of a ticket."""
    to: str
    """Structure: refill, refill+, regroup, channels, 2:4 (or another N:M)."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The new ticket's folder; by default in this folder, named after the ticket and the structure."""


def main(words: Sequence[str]) -> int:
    """Run `ticketry structure` and return its exit code."""
    arguments: Any = parse(_Arguments, words, prog="ticketry structure", description=_DESCRIPTION)
    from ticketry.experiments.structure import restructure_ticket

    with show_status(arguments.ticket.name) as say:
        record = restructure_ticket(
            arguments.ticket,
            arguments.to,
            arguments,
            arguments,
            output=arguments.output,
            say=say,
            command=shlex.join(["ticketry", "structure", *words]),
        )
    if arguments.json:
        print(json.dumps(as_json(record)))
    else:
        _print_record(record)
    return 0


def _print_record(record: StructureRecord) -> None:
    structure = record.structure
    print(f"ticket   {record.ticket}")
    print(f"         {record.model} on {record.task}, {100 * structure.before:.2f} % of its weights kept")
    kept = f"{100 * record.density:.2f} % of {record.prunable:,} prunable parameters kept"
    print(f"made     {record.path}: {structure.name}; {kept}; in {record.seconds:.2f} s, not trained")
    print()
    make_console().print(structure_fit_table(as_json(structure)["layers"]))
