"""ticketry bench, cost, speedup: time tickets, layers and models."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ticketry.cli.arguments import OutputOptions, parse, show_status, write_output
from ticketry.cli.results import make_console, print_timing
from ticketry.errors import UsageError
from ticketry.experiments.options import BenchOptions, ModelOptions, SpeedupOptions
from ticketry.lab.task_costs import CostOptions
from ticketry.records.schema import as_json

if TYPE_CHECKING:
    from rich.table import Table

    from ticketry.experiments.bench import Speedup
    from ticketry.records.ticket import BenchRecord, CurveRecord


_BENCH = """\
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
class _Bench(OutputOptions, ModelOptions, BenchOptions):
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


def bench(words: Sequence[str]) -> int:
    """Run `ticketry bench` and return its exit code."""
    arguments: Any = parse(_Bench, words, prog="ticketry bench", description=_BENCH)
    from ticketry.experiments.record_files import find_run_folder

    command = shlex.join(["ticketry", "bench", *words])
    is_run = (arguments.what / "tickets").is_dir()  # also one that has not ended, without a record
    if run := arguments.what if is_run else find_run_folder(arguments.what, arguments.store):
        return _bench_run(dataclasses.replace(arguments, what=run), command)
    record = as_json(_bench_ticket(arguments, command))
    if arguments.figure:
        from ticketry.report.figures.evidence import time_by_density_svg

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


def _bench_run(arguments: _Bench, command: str) -> int:
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


def _bench_ticket(arguments: _Bench, command: str) -> BenchRecord | CurveRecord:
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


_COST = """\
Measure what the network of a task costs, layer by layer, by how many of its weights are kept, and write it to a file.
A search with --time or --bytes uses such a file (--profile). Without one it measures the costs itself, on this machine,
for batches of 16 examples in one thread. This command is for other batches and machines, and for inspection.

In seconds the network, untrained, is compiled under random masks and timed in turns with the whole of it, in seconds to
a minute; --target estimates them for a GPU by its profile. Bytes are counted.

examples:
  ticketry cost --task cifar10 --model resnet-20 -o costs.json
  ticketry search iterative --task cifar10 --model resnet-20 --time 0.3 --base engine --profile costs.json --measured
  ticketry cost --task cifar10 --batch 1 --threads 2 --structure auto -o costs.json
  ticketry cost --task cifar10 --target h100-bf16 --structure rows:64 -o h100.json
  ticketry cost --task digits --unit bytes -o bytes.json"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Cost(OutputOptions, CostOptions):
    task: str
    """Task: a name of `ticketry list tasks`, or package.module:object."""
    model: str = ""
    """Network: a name of `ticketry list models`, or package.module:object; by default the task's own."""
    option: tuple[str, ...] = ()
    """Options of the task, as name=value."""
    data: Path | None = None
    """Folder of data sets, searched first."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("costs.json")
    """The file to write."""


def cost(words: Sequence[str]) -> int:
    """Run `ticketry cost` and return its exit code."""
    arguments: Any = parse(_Cost, words, prog="ticketry cost", description=_COST)
    from ticketry.cli.search import build_task
    from ticketry.lab.task_costs import measure_costs

    task = build_task(arguments.task, arguments.model, arguments.option)
    with show_status(f"what {task.name} costs") as say:
        costs = measure_costs(task, arguments, data=arguments.data, say=say)
    costs.save(arguments.output)
    if arguments.json:
        values = {name: getattr(costs, name) for name in ("unit", "dense", "floor", "fixed", "spread", "digest")}
        print(json.dumps({"file": str(arguments.output), "task": task.name, **values}))
    else:
        print(costs)
        print(f"file     {arguments.output}")
    return 0


_SPEEDUP = """\
Time a model in eager PyTorch, torch.compile, ONNX Runtime and OpenVINO, and in three steps of ticketry, in turns:
  1 compiled without pruning
  2 with whole channels removed, for a latency budget
  3 with weights and groups of rows removed, for the same budget

Outputs are compared with eager PyTorch first. With --task the network is trained, pruned and trained on with each mask,
and the table has its accuracy. MODEL.py:build is a function without arguments that returns (model, example_inputs).

examples:
  ticketry speedup model.py:build
  ticketry speedup model.py:build --batch 1 --time 5ms --threads 2
  ticketry speedup --task cifar10 --model resnet-20 --time 50% --base onnxruntime"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Speedup(OutputOptions, SpeedupOptions):
    what: Annotated[str, tyro.conf.Positional] = ""
    """MODEL.py:build: a Python file, and a function in it that returns (model, example_inputs)."""
    task: str = ""
    """Task instead of MODEL.py: a name of `ticketry list tasks`, or package.module:object; its network is trained."""
    model: str = ""
    """Network, if it is not the task's own."""
    option: tuple[str, ...] = ()
    """Options of the task, as name=value."""
    data: Path | None = None
    """Folder of data sets, searched first."""
    store: Path = Path(".ticketry")
    """Folder of all trainings."""
    workers: int = 0
    """Number of processes that train; 0 trains in this process."""


def speedup(words: Sequence[str]) -> int:
    """Run `ticketry speedup` and return its exit code."""
    arguments: Any = parse(_Speedup, words, prog="ticketry speedup", description=_SPEEDUP)
    if bool(arguments.what) == bool(arguments.task):
        raise UsageError("name either a model (MODEL.py:build) or a task (--task)")
    from ticketry.cli.search import build_task
    from ticketry.experiments.bench import load_model, speedups, task_speedups

    with show_status("speedup") as say:
        if arguments.what:
            found = list(speedups(*load_model(arguments.what), arguments, say=say))
        else:
            task = build_task(arguments.task, arguments.model, arguments.option)
            lab = {"store": arguments.store, "workers": arguments.workers, "data": arguments.data}
            found = list(task_speedups(task, arguments, **lab, say=say))
    if arguments.json:
        found_json = {
            "command": shlex.join(["ticketry", "speedup", *words]),
            "tables": [one.as_json() for one in found],
        }
        print(json.dumps(found_json))
        return 0
    out = make_console()
    for one in found:
        out.print(speedup_table(one))
        for said in one.warnings:
            out.print(f"warning: {said}", markup=False, highlight=False)
    machine = found[0].machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    threads = f"{arguments.threads} thread{'' if arguments.threads == 1 else 's'}, {arguments.clock} time"
    out.print(f"{machine['processor']}, {threads}, load {machine['load']}; {versions}", highlight=False)
    return 0


def speedup_table(found: Speedup) -> Table:
    """Return the timings in `found` as a table for the terminal, with a row for each engine or pruning step."""
    from rich.table import Table

    values = any(row.value is not None for row in found.rows)
    notes = any(row.note for row in found.rows)
    table = Table(title=f"batch {found.batch}", title_justify="left")
    table.add_column("")
    for name in ("ms", "times as fast as eager", "weights retained, %", *(["accuracy"] if values else [])):
        table.add_column(name, justify="right")
    if notes:
        table.add_column("")
    for row in found.rows:
        cells = [
            "" if row.seconds is None else f"{1e3 * row.seconds:.3g}",
            "" if row.speed is None else f"{row.speed:.3g}",
            "" if row.density is None else f"{100 * row.density:.3g}",
            *(["" if row.value is None else f"{row.value:.4g}"] if values else []),
            *([row.note] if notes else []),
        ]
        table.add_row(row.name, *cells)
    return table
