"""ticketry export TICKET, ticketry compile TICKET: write a ticket as a model file."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ticketry.cli.arguments import OutputOptions, format_bytes, output_file, parse, show_status
from ticketry.cli.screen.speed import layers_table, make_console
from ticketry.experiments.options import ModelOptions

_DESCRIPTION = """\
Export a ticket for other runtimes. A channel-wise ticket becomes a physically smaller model; any other is written with
zeros in place of the removed weights. The file is read back and compared with its source on random
inputs of several batch sizes: ONNX in ONNX Runtime, an archive in torch.

examples:
  ticketry export .ticketry/runs/RUN/tickets/replicate-0-level-09 --format onnx -o model.onnx
  ticketry export my-ticket --format pt2 --shrink no --json"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Arguments(OutputOptions, ModelOptions):
    ticket: Annotated[Path, tyro.conf.Positional]
    """The folder of a ticket."""
    format: Literal["onnx", "pt2"] | None = None
    """onnx, or pt2 (an archive of torch.export). By default the ending of --output decides; without it, onnx."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The file; by default the ticket's name with the format's ending, in this folder."""
    shrink: Literal["auto", "yes", "no"] = "auto"
    """Remove pruned channels: if there are any (auto), or fail if there are none (yes), or never (no)."""
    batch: int | None = None
    """The only batch size that the model takes; by default it takes any batch size."""


def main(words: Sequence[str]) -> int:
    """Run `ticketry export` and return its exit code."""
    arguments: Any = parse(_Arguments, words, prog="ticketry export", description=_DESCRIPTION)
    from ticketry.engine.export import FORMATS, format_of
    from ticketry.experiments.ticket_model import execute_export, load_source

    output = output_file(arguments.output, arguments.ticket, arguments.format or FORMATS[0])
    format = format_of(output, arguments.format)
    with show_status(f"exporting {arguments.ticket.name}"):
        record = execute_export(
            load_source(arguments, arguments.ticket),
            output,
            format=format,
            shrink={"auto": None, "yes": True, "no": False}[arguments.shrink],
            batch=arguments.batch,
            command=["ticketry", "export", *words],
        )
    print(json.dumps(record) if arguments.json else "\n".join(summarise_export(record)))
    return 0


def summarise_export(record: dict[str, Any]) -> list[str]:
    """Return lines of text that describe an export record."""
    made = record["export"]
    parameters, dense = made["parameters"], made["dense_parameters"]
    if made["shrunk"]:
        what = f"shrunk: {parameters:,} parameters of {dense:,} ({100 * parameters / dense:.1f} %)"
    else:
        what = f"masked: {parameters:,} parameters, {made['nonzero']:,} of them not 0"
    any_batch = "any batch" if made["batch"] is None else f"batches of {made['batch']}"
    batches = ", ".join(str(check["batch"]) for check in made["checks"])
    worst = max(check["error"] for check in made["checks"])
    lines = [
        f"ticket   {record['ticket']}",
        f"         {record['model']} on {record['task']}, {100 * record['density']:.2f} % of its weights kept",
        f"file     {made['path']}: {format_bytes(made['bytes'])}, {any_batch}",
        f"         {what}",
        f"checked  in {made['runtime']} with batches of {batches}: equal to its source, relative error {worst:.1g}",
    ]
    if made["why_not_shrunk"] and not made["shrunk"]:
        lines.append(f"note     not smaller, for {made['why_not_shrunk'].partition(':')[0]}")
    return lines


_COMPILE = """\
Compile a ticket for its mask, and write a model file that loads without the model's source:

  fast = ticketry.engine.load("model.tk")

The file holds JSON and safetensors, no pickle. Its kernels are made for the processor on which it is loaded. Before it
is kept, it is read back and compared with the ticket's model.

examples:
  ticketry compile .ticketry/runs/RUN/tickets/replicate-0-level-09 -o model.tk
  ticketry compile my-ticket --json"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Compile(OutputOptions, ModelOptions):
    ticket: Annotated[Path, tyro.conf.Positional]
    """The folder of a ticket."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The model file; by default the ticket's name with .tk, in this folder."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the arithmetic: fp32 or bf16."""
    layers: bool = False
    """Print the table of layers: kernel, density, time, and why a layer has no kernel."""


def compile(words: Sequence[str]) -> int:
    """Run `ticketry compile` and return its exit code."""
    arguments: Any = parse(_Compile, words, prog="ticketry compile", description=_COMPILE)
    from ticketry.experiments.ticket_model import execute_compile, load_source

    output = output_file(arguments.output, arguments.ticket, "tk")
    with show_status(f"compiling {arguments.ticket.name}"):
        record = execute_compile(
            load_source(arguments, arguments.ticket),
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
        make_console().print(layers_table(record["layers"]))
    return 0
