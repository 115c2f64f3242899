"""ticketry bench TICKET: against dense engines, side by side."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ticketry.cli.arguments import parse
from ticketry.cli.engine_tables import console, curve_table, engines_table, layers_table, saved_table
from ticketry.cli.ticket_options import TicketOptions, read_source, saying, size
from ticketry.errors import UsageError

_DESCRIPTION = """\
Time a ticket against dense engines: in one process, in turns, on the same cores, after comparing all outputs with eager
torch. What is saved is told against the fastest dense engine, as the median of the ratios of each round. A channel-wise
ticket's smaller model is timed in the dense engines too.

engines: eager, channels_last, compile (torch.compile with freezing), onnxruntime, openvino. Without --against all that
are installed; one that is named has to be there.

examples:
  ticketry bench .ticketry/runs/RUN/tickets/replicate-0-level-09 --batch 1,8,64
  ticketry bench .ticketry/runs/RUN --batch 1,64     (all tickets: its report then has accuracy against time)
  ticketry bench my-ticket --against openvino,onnxruntime --precision bf16 --threads 2
  ticketry bench model.tk --ticket my-ticket --cold
  ticketry bench my-ticket --densities 0.02,0.1,0.3,1 --pattern groups:32 --figure curve.svg"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Arguments(TicketOptions):
    what: Annotated[Path, tyro.conf.Positional]
    """The folder of a ticket, or a model file that `ticketry compile` made of one; or the folder of a run."""
    replicates: int = 1
    """Of a run: time the tickets of so many of its replicates, the first ones."""
    ticket: Path | None = None
    """Of a model file: the ticket that it was made of, whose model the dense engines run."""
    batch: tuple[int, ...] = (1, 8, 64)
    """Examples in a call."""
    against: tuple[str, ...] = ()
    """Dense engines; by default all that are installed."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32 or bf16, of all engines."""
    threads: int = 1
    """Of each engine, each kept on a core of its own."""
    rounds: int = 15
    """How often every engine is timed, in turns."""
    cold: bool = False
    """Empty the caches before every call; otherwise calls follow each other."""
    clock: Literal["wall", "cpu"] = "wall"
    """wall, or cpu: time that the threads of this process have computed, for a machine that others use too."""
    cores: tuple[int, ...] = ()
    """Which ones, as many as threads; by default the idlest."""
    tune: bool = False
    """Time several plans of the engine at each batch first, and keep the fastest, instead of trusting estimates."""
    densities: tuple[float, ...] = ()
    """Time the ticket's network under synthetic masks of these densities instead of the ticket's own mask."""
    pattern: str = "unstructured"
    """Of synthetic masks: unstructured, groups:ROWS (neighbours share their columns), groups:ROWS:any (rows that
    lie anywhere), groups:ROWS:pairs (neighbouring inputs are kept together), channels."""
    figure: Path | None = None
    """With --densities: an SVG file of time against density."""
    brief: bool = False
    """Leave the table of layers away."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """A file for the JSON object, all samples in it."""
    store: Path = Path(".ticketry")
    """The store whose report shall show what was measured, where the ticket is of one of its runs."""


def main(words: Sequence[str]) -> int:
    """Time a ticket."""
    arguments: Any = parse(_Arguments, words or ["--help"], prog="ticketry bench", description=_DESCRIPTION)
    if (arguments.what / "tickets").is_dir():
        return _run(arguments, shlex.join(["ticketry", "bench", *words]))
    record = measured(arguments, shlex.join(["ticketry", "bench", *words]))
    figures = _drawn(record, arguments.figure) if arguments.figure else []
    if arguments.output:
        _write(arguments.output, json.dumps(record, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(record))
        return 0
    show(record, layers=not arguments.brief)
    print("\n".join(f"{what:<8} {file}" for what, file in [*figures, *_kept(arguments)]))
    return 0


def _run(arguments: _Arguments, command: str) -> int:
    """All tickets of a run, the densest first."""
    if arguments.densities or arguments.ticket:
        raise UsageError(f"{arguments.what} is a run, whose own tickets are timed: leave --densities and --ticket away")
    tickets = sorted((arguments.what / "tickets").iterdir(), key=_place_of)
    tickets = [ticket for ticket in tickets if _place_of(ticket)[1] < arguments.replicates]
    if not tickets:
        raise UsageError(f"{arguments.what} has no tickets of its first {arguments.replicates} replicates")
    store, records = arguments.what.resolve().parents[1], []
    for ticket in tickets:
        record = measured(dataclasses.replace(arguments, what=ticket, store=store), command)
        records.append(record)
        if not arguments.json:
            show(record, layers=False)
            print()
    told = {"run": arguments.what.resolve().name, "benches": records}
    if arguments.output:
        _write(arguments.output, json.dumps(told, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(told))
    else:
        print(f"next     ticketry report {told['run']} --store {store}")
    return 0


def _place_of(ticket: Path) -> tuple[int, int]:
    """Level and replicate in the name of a run's ticket."""
    found = re.fullmatch(r"replicate-(\d+)-level-(\d+)", ticket.name)
    if found is None:
        raise UsageError(f"{ticket} is no ticket that a run has saved")
    return int(found[2]), int(found[1])


def measured(arguments: _Arguments, command: str) -> dict[str, Any]:
    """The record of what was asked for."""
    if arguments.figure and not arguments.densities:
        raise UsageError("--figure draws time against density: give --densities too")
    file = arguments.what if arguments.what.is_file() else None
    if file and arguments.ticket is None:
        raise UsageError(f"the dense engines need the model that {file} was made of: name its ticket with --ticket")
    if file and arguments.densities:
        raise UsageError("--densities makes masks of its own: name a ticket, not a model file")
    if not file and arguments.ticket is not None:
        raise UsageError(f"--ticket belongs to a model file, and {arguments.what} is none")
    from ticketry.engine.bench.timing import Timing
    from ticketry.run_engine import BenchSettings, execute_bench, execute_curve

    settings = BenchSettings(
        batches=arguments.batch,
        against=arguments.against or None,
        precision=arguments.precision,
        threads=arguments.threads,
        timing=Timing(rounds=arguments.rounds, cold=arguments.cold, clock=arguments.clock),
        cores=arguments.cores or None,
        tune=arguments.tune,
    )
    store = arguments.store if (arguments.store / "store.json").exists() else None
    with saying("timing") as say:
        say("reading the ticket")
        source = read_source(arguments, arguments.ticket or arguments.what)
        if arguments.densities:
            return execute_curve(
                source,
                settings,
                pattern=arguments.pattern,
                densities=arguments.densities,
                store=store,
                say=say,
                command=command,
            )
        return execute_bench(source, settings, file=file, store=store, say=say, command=command)


def show(record: Mapping[str, Any], *, layers: bool = True) -> None:
    """The tables of a record, on standard output."""
    out = console()
    curves = record.get("curves", [])
    comparisons = record.get("comparisons") or [curve["comparison"] for curve in curves]
    print("\n".join(_head(record, comparisons[0])))
    for curve in curves:
        out.print()
        out.print(curve_table(curve))
    if curves:
        return
    out.print()
    out.print(engines_table(comparisons))
    out.print()
    out.print(saved_table(comparisons))
    if layers:
        out.print()
        out.print(f"layers at batch {record['layers_batch']}, one thread")
        out.print(layers_table(record["layers"]))


def _head(record: Mapping[str, Any], one: Mapping[str, Any]) -> list[str]:
    machine = one["machine"]
    cores = "" if one["cores"] is None else f" (core{'s' if len(one['cores']) > 1 else ''} {_listed(one['cores'])})"
    threads = f"{one['threads']} thread{'s' if one['threads'] > 1 else ''}{cores}"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"ticket   {record['ticket']}",
        f"         {record['model']} on {record['task']}, {100 * record['density']:.2f} % of {record['prunable']:,}"
        f" prunable weights kept",
        f"timed    {one['precision']}, {threads}, {'cold' if one['cold'] else 'hot'} caches, {one['rounds']} rounds,"
        f" {one['clock']} time",
        f"machine  {machine['processor']}, {machine['cores']} cores, load {machine['load']}; {versions}",
    ]
    if "weight_bytes" in record:
        batches = f"batches of {_listed(record['table_batches'])}"
        weights = f"{size(record['weight_bytes'])} of tables for {batches}; dense weights {size(record['dense_bytes'])}"
        lines.append(f"engine   compiled in {record['compile_seconds']:.2f} s; {weights}")
    return lines


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _kept(arguments: _Arguments) -> list[tuple[str, Path]]:
    return [("data", arguments.output)] if arguments.output else []


def _drawn(record: Mapping[str, Any], file: Path) -> list[tuple[str, Path]]:
    from ticketry.report import time_by_density_svg

    _write(file, time_by_density_svg(record))
    return [("figure", file)]


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from error
