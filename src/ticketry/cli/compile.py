"""ticketry compile TICKET: a file that runs."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ticketry.cli.arguments import Printing, format_bytes, output_file, parse, show_status
from ticketry.cli.screen.engine_tables import console, layers_table
from ticketry.experiments.options import ModelOptions

_DESCRIPTION = """\
Compile a ticket: write a model file that is made for its mask and loads without the model's source:

  fast = ticketry.engine.load("model.tk")

The file holds JSON and safetensors, no pickle. Its kernels are made for the processor on which it is loaded. Before it
is kept, it is read back and compared with the ticket's model.

examples:
  ticketry compile .ticketry/runs/RUN/tickets/replicate-0-level-09 -o model.tk
  ticketry compile my-ticket --json"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Arguments(Printing, ModelOptions):
    ticket: Annotated[Path, tyro.conf.Positional]
    """The folder of a ticket."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The model file; else the ticket's name with .tk, in this folder."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32 or bf16: of the arithmetic."""
    layers: bool = False
    """Show the table of layers: kernel, density, time, and why a layer is not in a kernel of its own."""


def main(words: Sequence[str]) -> int:
    """Compile a ticket."""
    arguments: Any = parse(_Arguments, words, prog="ticketry compile", description=_DESCRIPTION)
    from ticketry.experiments.ticket_model import execute_compile, source_by

    output = output_file(arguments.output, arguments.ticket, "tk")
    with show_status(f"compiling {arguments.ticket.name}"):
        record = execute_compile(
            source_by(arguments, arguments.ticket),
            output,
            precision=arguments.precision,
            command=shlex.join(["ticketry", "compile", *words]),
        )
    if arguments.json:
        print(json.dumps(record))
        return 0
    engine = [row for row in record["layers"] if row["where"] == "engine"]
    share = sum(row["share"] or 0 for row in engine)
    print(f"ticket   {record['ticket']}")
    print(f"         {record['model']} on {record['task']}, {100 * record['density']:.2f} % of its weights kept")
    written, dense = format_bytes(record["bytes"]), format_bytes(record["dense_bytes"])
    print(f"file     {record['path']}: {written}; the dense weights are {dense}")
    print(f"checked  read back: equal to its source, relative error {record['relative_error']:.1g}")
    print(f"layers   {len(engine)} of {len(record['layers'])} in the engine, {100 * share:.1f} % of the time")
    print(f"compiled in {record['compile_seconds']:.2f} s")
    if arguments.layers:
        console().print(layers_table(record["layers"]))
    return 0
