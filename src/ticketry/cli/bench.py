"""ticketry bench TICKET: time a ticket side by side with dense engines."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ticketry.cli.arguments import OutputOptions, parse, show_status, write_output
from ticketry.cli.screen.speed import print_timing
from ticketry.errors import UsageError
from ticketry.experiments.options import BenchOptions, ModelOptions
from ticketry.records.schema import as_json

if TYPE_CHECKING:
    from ticketry.records.speed import BenchRecord, CurveRecord

_DESCRIPTION = """\
Time a ticket against dense engines: in one process, in turns, on the same cores, after comparing all outputs with eager
torch. The time saved is relative to the fastest dense engine (median of the ratios of all rounds). The smaller model of
a ticket of whole channels is timed in the dense engines too. Dense engines: eager, channels_last, compile
(torch.compile with freezing), onnxruntime, openvino; by default all that are installed.

examples:
  ticketry bench .ticketry/runs/RUN/tickets/replicate-0-level-09 --batch 1,8,64
  ticketry bench .ticketry/runs/RUN --batch 1,64     (all tickets: its report then has accuracy against time)
  ticketry bench my-ticket --against openvino,onnxruntime --precision bf16 --threads 2
  ticketry bench model.tk --ticket my-ticket --cold
  ticketry bench my-ticket --densities 0.02,0.1,0.3,1 --pattern groups:32 --figure curve.svg"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Arguments(OutputOptions, ModelOptions, BenchOptions):
    what: Annotated[Path, tyro.conf.Positional]
    """The folder of a ticket, or a model file that `ticketry compile` made of a ticket; or a run, by its folder or its
    name in the store."""
    replicates: int = 1
    """Number of replicates to time of a run, counted from the first."""
    ticket: Path | None = None
    """The ticket that a model file was compiled from; the dense engines run its model."""
    figure: Path | None = None
    """With --densities: SVG file for a figure of time against density."""
    brief: bool = False
    """Omit the table of layers."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """File for the JSON object, with all samples."""
    store: Path = Path(".ticketry")
    """Store that keeps the measurements for its reports, if the ticket is of one of its runs."""


def main(words: Sequence[str]) -> int:
    """Run `ticketry bench` and return its exit code."""
    arguments: Any = parse(_Arguments, words, prog="ticketry bench", description=_DESCRIPTION)
    from ticketry.experiments.record_files import find_run_folder

    command = shlex.join(["ticketry", "bench", *words])
    is_run = (arguments.what / "tickets").is_dir()  # also one that has not ended, without a record
    if run := arguments.what if is_run else find_run_folder(arguments.what, arguments.store):
        return _bench_run(dataclasses.replace(arguments, what=run), command)
    record = as_json(_bench_ticket(arguments, command))
    if arguments.figure:
        from ticketry.report import time_by_density_svg

        write_output(arguments.figure, time_by_density_svg(record))
    if arguments.output:
        write_output(arguments.output, json.dumps(record, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(record))
        return 0
    print_timing(record, layers=not arguments.brief)
    files = {"figure": arguments.figure, "data": arguments.output}
    print("\n".join(f"{what:<8} {file}" for what, file in files.items() if file))
    return 0


def _bench_run(arguments: _Arguments, command: str) -> int:
    """Time the tickets of a run's first replicates, print the results, and return 0."""
    if arguments.densities or arguments.ticket:
        raise UsageError(f"{arguments.what} is a run, whose own tickets are timed: leave --densities and --ticket away")
    from ticketry.experiments.bench import list_run_tickets

    store, records = arguments.what.resolve().parents[1], []
    for ticket in list_run_tickets(arguments.what, arguments.replicates):
        record = as_json(_bench_ticket(dataclasses.replace(arguments, what=ticket, store=store), command))
        records.append(record)
        if not arguments.json:
            print_timing(record, layers=False)
            print()
    benches = {"run": arguments.what.resolve().name, "benches": records}
    if arguments.output:
        write_output(arguments.output, json.dumps(benches, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(benches))
    else:
        print(f"next     ticketry report {benches['run']} --store {store}")
    return 0


def _bench_ticket(arguments: _Arguments, command: str) -> BenchRecord | CurveRecord:
    """Time a ticket, a model file, or a network under synthetic masks; return the record."""
    if arguments.figure and not arguments.densities:
        raise UsageError("--figure draws time against density: give --densities too")
    from ticketry.experiments.bench import bench_ticket

    with show_status("timing") as say:
        return bench_ticket(
            arguments.what,
            arguments,
            arguments,
            ticket=arguments.ticket,
            store=arguments.store,
            say=say,
            command=command,
        )
