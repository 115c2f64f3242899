"""ticketry cost: measure what a task's network costs under masks, for searches with a budget."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ticketry.cli.arguments import OutputOptions, parse, show_status
from ticketry.lab.task_costs import CostOptions

_DESCRIPTION = """\
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
class _Arguments(OutputOptions, CostOptions):
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


def main(words: Sequence[str]) -> int:
    """Run `ticketry cost` and return its exit code."""
    arguments: Any = parse(_Arguments, words, prog="ticketry cost", description=_DESCRIPTION)
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
