"""ticketry speedup: print how much faster a model runs compiled, and with channels or weights pruned."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ticketry.cli.arguments import OutputOptions, parse, show_status
from ticketry.errors import UsageError
from ticketry.experiments.speedup import Speedup, SpeedupOptions

if TYPE_CHECKING:
    from rich.table import Table

_DESCRIPTION = """\
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
class _Arguments(OutputOptions, SpeedupOptions):
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


def main(words: Sequence[str]) -> int:
    """Run `ticketry speedup` and return its exit code."""
    arguments: Any = parse(_Arguments, words, prog="ticketry speedup", description=_DESCRIPTION)
    if bool(arguments.what) == bool(arguments.task):
        raise UsageError("name either a model (MODEL.py:build) or a task (--task)")
    found = []
    with show_status("speedup") as say:
        for one in _compute_tables(arguments, say):
            found.append(one)
    if arguments.json:
        found_json = {
            "command": shlex.join(["ticketry", "speedup", *words]),
            "tables": [one.as_json() for one in found],
        }
        print(json.dumps(found_json))
        return 0
    from ticketry.cli.screen.speed import make_console

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


def _compute_tables(arguments: Any, say: Any) -> Iterator[Speedup]:
    from ticketry.experiments.speedup import load_model, speedups, task_speedups

    if arguments.what:
        return speedups(*load_model(arguments.what), arguments, say=say)
    from ticketry.cli.search import build_task

    task = build_task(arguments.task, arguments.model, arguments.option)
    return task_speedups(
        task, arguments, store=arguments.store, workers=arguments.workers, data=arguments.data, say=say
    )


def speedup_table(found: Speedup) -> Table:
    """Return a table with a row for each way to run the model.

    Args:
        found: the timings at one batch size.
    """
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
