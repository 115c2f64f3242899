"""ticketry export, compile, structure: write a ticket as a model file, or with a structured mask."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ticketry.cli.arguments import OutputOptions, format_bytes, output_file, parse, show_status
from ticketry.cli.results import layers_table, make_console, structure_fit_table
from ticketry.experiments.options import ModelOptions, StructureOptions
from ticketry.records.schema import as_json

_EXPORT = """\
Export a ticket for other runtimes. A channel-wise ticket becomes a physically smaller model; any other is written with
zeros in place of the removed weights. The file is read back and compared with its source on random
inputs of several batch sizes: ONNX in ONNX Runtime, an archive in torch.

examples:
  ticketry export .ticketry/runs/RUN/tickets/replicate-0-level-09 --format onnx -o model.onnx
  ticketry export my-ticket --format pt2 --shrink no --json"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Export(OutputOptions, ModelOptions):
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


def export(words: Sequence[str]) -> int:
    """Run `ticketry export` and return its exit code."""
    arguments: Any = parse(_Export, words, prog="ticketry export", description=_EXPORT)
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


_STRUCTURE = """\
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
class _Structure(OutputOptions, ModelOptions, StructureOptions):
    ticket: Annotated[Path, tyro.conf.Positional]
    """The folder of a ticket."""
    to: str
    """Structure: refill, refill+, regroup, channels, 2:4 (or another N:M)."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The new ticket's folder; by default in this folder, named after the ticket and the structure."""


def structure(words: Sequence[str]) -> int:
    """Run `ticketry structure` and return its exit code."""
    arguments: Any = parse(_Structure, words, prog="ticketry structure", description=_STRUCTURE)
    from ticketry.experiments.ticket_model import restructure_ticket

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
        return 0
    structure = record.structure
    print(f"ticket   {record.ticket}")
    print(f"         {record.model} on {record.task}, {100 * structure.before:.2f} % of its weights kept")
    kept = f"{100 * record.density:.2f} % of {record.prunable:,} prunable parameters kept"
    print(f"made     {record.path}: {structure.name}; {kept}; in {record.seconds:.2f} s, not trained")
    print()
    make_console().print(structure_fit_table(as_json(structure)["layers"]))
    return 0
