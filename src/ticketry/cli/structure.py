"""ticketry structure TICKET: a ticket whose mask hardware can use, made of one that has none."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ticketry.cli.arguments import parse
from ticketry.cli.engine_tables import console, fits_table
from ticketry.cli.ticket_options import TicketOptions, read_source, saying
from ticketry.core.structuring import Structuring

_DESCRIPTION = """\
Give the mask of a ticket a structure that hardware can use, and save the ticket that results. It starts where the old
one did, in positions that are filled back too, and has not been trained: ticketry verify trains it, and tells whether
it still wins; ticketry bench --weights start tells what it saves.

  refill     whole channels, as many as each layer's kept weights fill; the others are emptied
  refill+    the same, and a share of the others (--plus) filled back, or up to a density (--density)
  regroup    groups of rows (--rows) that keep the same columns
  2:4        2 of every 4 inputs; or another N:M
  channels   whole channels by their score alone, to the ticket's density or --density: what refill is compared with

The table tells for each layer how many groups of how many rows it has, its density before and after, the share of the
kept weights' magnitude that is in the new mask (coverage), and the share of the new mask that was filled back; of
regroup also the coverage of a mask without structure by construction (null: the entries of each column shuffled) and of
random groups.

examples:
  ticketry structure .ticketry/runs/RUN/tickets/replicate-0-level-06 --to regroup --rows 8
  ticketry structure my-ticket --to refill+ --plus 0.3 -o my-channels
  ticketry structure my-ticket --to 2:4 --json"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Arguments(TicketOptions):
    ticket: Annotated[Path, tyro.conf.Positional]
    """The folder of a ticket."""
    to: str
    """refill, refill+, regroup, channels, 2:4 (or another N:M)."""
    rows: int = 16
    """Of regroup: rows of a group."""
    density: float | None = None
    """Share kept, of all that the new mask is of: of refill+, regroup, channels."""
    plus: float = 0.0
    """Of refill+: the share of the emptied channels that is filled back; 0 stands for 0.2."""
    method: str = "similarity"
    """Of regroup: similarity, hypergraph (extra hypergraph), paper or random."""
    collapse: str = "raise"
    """Of regroup, where a layer's weights do not pay for one column of each group: raise (an error), or keep."""
    score: str = "l1"
    """Of refill, refill+ and channels: what ranks channels, see `ticketry list scores`; of refill also remaining."""
    coupled: str = "agree"
    """Of refill and refill+: channels that go together across layers agree, or only inner ones go."""
    spare: tuple[str, ...] = ()
    """Names or patterns of layers that stay as they are (fc3, layer1.*); of refill and channels, with all channels."""
    seed: int = 0
    """Of what is drawn at random."""
    null: bool = True
    """Of regroup: measure the coverage of masks without structure too; --no-null saves the time."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The new ticket's folder; else the ticket's name with the structure behind it, in this folder."""


def main(words: Sequence[str]) -> int:
    """Structure a ticket."""
    arguments: Any = parse(_Arguments, words or ["--help"], prog="ticketry structure", description=_DESCRIPTION)
    options = ("rows", "density", "plus", "method", "collapse", "score", "coupled", "spare")
    by = Structuring(kind=arguments.to, **{name: getattr(arguments, name) for name in options})
    from ticketry.run_structure import execute_structure

    output = arguments.output or Path(f"{arguments.ticket.resolve().name}-{by.kind.replace(':', '-of-')}")
    with saying(f"{arguments.ticket.name}: {by}"):
        record = execute_structure(
            read_source(arguments, arguments.ticket),
            by,
            output,
            null=arguments.null,
            seed=arguments.seed,
            data=arguments.data,
            command=shlex.join(["ticketry", "structure", *words]),
        )
    if arguments.json:
        print(json.dumps(record))
    else:
        _show(record)
    return 0


def _show(record: Mapping[str, Any]) -> None:
    told = record["structure"]
    print(f"ticket   {record['ticket']}")
    print(f"         {record['model']} on {record['task']}, {100 * told['density_before']:.2f} % of its weights kept")
    kept = f"{100 * record['density']:.2f} % of {record['prunable']:,} prunable parameters kept"
    print(f"made     {record['path']}: {told['name']}; {kept}; in {record['seconds']:.2f} s, not trained")
    print()
    console().print(fits_table(told["layers"]))
