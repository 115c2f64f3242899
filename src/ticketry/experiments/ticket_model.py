"""Rebuild the model of a ticket; compile it, export it, or give its mask a structure that hardware can use."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, cast

from msgspec import structs
from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.structure import coverage, together
from ticketry.core.structure.apply import apply_structuring, channel_score_needs_data, check_structure_score
from ticketry.core.structure.pattern import Structuring
from ticketry.core.ticket.ticket import Ticket
from ticketry.engine.adapters import compile
from ticketry.engine.export import Exported, export
from ticketry.errors import EngineError, TicketError, UsageError
from ticketry.evidence.rivals import build_task, read_task_description
from ticketry.experiments.decoding import decode_settings
from ticketry.experiments.options import ModelOptions, StructureOptions, ticket_path
from ticketry.experiments.record_files import normalise_record
from ticketry.experiments.run_record import build_structure_record
from ticketry.lab.costs.ledger import Sample
from ticketry.lab.training.supervised import course_of
from ticketry.records.schema import as_json
from ticketry.records.ticket import Structure, StructureRecord
from ticketry.tasks import catalogue
from ticketry.tasks.task import Task
from ticketry_engine import Compiled, load
from ticketry_engine.bench.compare import TOLERANCE
from ticketry_engine.bench.timing import Case
from ticketry_engine.example_inputs import relative_difference, resize_batch

WEIGHTS = ("trained", "start")

EXAMPLE_BATCH = 2
"""Batch size of the example inputs for compilation."""


@dataclass(frozen=True)
class TicketModel:
    """A ticket with its task, its rebuilt model and example inputs."""

    path: Path
    ticket: Ticket
    task: Task
    model: nn.Module
    """Model with the ticket's weights, in evaluation mode; pruned weights are 0."""
    inputs: Tensor
    weights: str
    """Which weights of the ticket the model has: trained, or start (before training)."""

    @property
    def mask(self) -> Mask:
        """Mask of the ticket: which weights are kept."""
        return self.ticket.mask

    def describe(self) -> dict[str, Any]:
        """Return the fields of a record that describe the ticket."""
        return {
            "ticket": str(self.path),
            "task": self.task.name,
            "model": model_name(self.task, self.model),
            "weights": self.weights,
            "density": self.mask.density,
            "kept": self.mask.kept,
            "prunable": self.mask.total,
            "parameters": sum(value.numel() for value in self.model.parameters()),
        }


def load_source(options: ModelOptions, ticket: str | PathLike[str]) -> TicketModel:
    """Read a ticket and rebuild its model according to `options`, see `load_ticket_model`."""
    task = catalogue.get(options.task) if options.task else None
    return load_ticket_model(ticket, task=task, weights=options.weights, data=options.data, trust=options.trust)


def load_ticket_model(
    path: str | PathLike[str],
    *,
    task: Task | None = None,
    weights: str = "trained",
    data: Path | None = None,
    trust: bool = False,
) -> TicketModel:
    """Read a ticket from a folder, rebuild its model, and load the model's weights.

    Args:
        task: the task, for a ticket that does not name its task.
        data: folder of data sets, for a task that takes its example inputs from a data set.
        trust: whether to import a task and network of user code that the ticket names, see `tasks.file_requests`.
    """
    if weights not in WEIGHTS:
        raise UsageError(f"weights must be {' or '.join(WEIGHTS)}, got {weights!r}")
    path = Path(path)
    ticket = Ticket.load(path, trained=weights == "trained")
    if weights == "trained" and ticket.trained is None:
        raise TicketError(f"{path} has no trained weights: give --weights start for those at the start of its training")
    task, told = task or build_task(ticket, trust=trust), read_task_description(ticket)
    if told and (why := task.unfit(told.key)):  # a file may have changed since, too
        raise TicketError(f"{path} does not fit the task {task.name}: {why}")
    model = ticket.apply(task.build(), weights).eval().requires_grad_(False)
    return TicketModel(path, ticket, task, model, task.example(EXAMPLE_BATCH, data), weights)


def model_name(task: Task, model: nn.Module) -> str:
    """Return the name of the task's network, or its class name if it has no name."""
    return str(task.key().get("model") or type(model).__name__)


def compile_source(
    source: TicketModel, *, precision: str = "fp32", threads: int | None = None
) -> tuple[Compiled, float]:
    """Compile the ticket's model and run it once; return the compiled model and the elapsed seconds."""
    began = time.perf_counter()
    made = compile(source.model, source.mask, source.inputs, threads=threads, precision=precision)
    fast = cast("Compiled", made)
    fast(source.inputs)  # compiles the kernels
    return fast, time.perf_counter() - began


FORMAT = 1


def execute_compile(source: TicketModel, output: Path, *, precision: str = "fp32", command: str = "") -> dict[str, Any]:
    """Compile the ticket's model into the file `output`, check the outputs of the file, and return a record."""
    fast, seconds = compile_source(source, precision=precision)
    written = fast.save(output)
    case = Case(source.model, resize_batch(source.inputs, 3, seed=1), precision)
    error = relative_difference(case.outputs(load(written)), case.reference())
    if not error <= TOLERANCE[precision]:
        raise EngineError(f"the compiled model is not equal to its source: relative error {error:.2g}")
    return {
        "format": FORMAT,
        "kind": "compile",
        **source.describe(),
        "path": str(written),
        "bytes": written.stat().st_size,
        "dense_bytes": sum(value.nbytes for value in source.model.state_dict().values()),
        "precision": precision,
        "compile_seconds": seconds,
        "relative_error": error,
        "layers": [structs.asdict(layer) for layer in fast.profile(source.inputs)],
        "command": command,
    }


def execute_export(
    source: TicketModel,
    output: Path,
    *,
    format: str,
    shrink: bool | None = None,
    batch: int | None = None,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Export the ticket's model to the file `output`, and return a record as a dict."""
    facts: Mapping[str, str] = {
        "task": source.task.name,
        "model": model_name(source.task, source.model),
        "density": f"{source.mask.density:.6g}",
    }
    made: Exported = export(
        source.model, source.mask, source.inputs, output, format=format, shrink=shrink, batch=batch, facts=facts
    )
    return {
        "format": FORMAT,
        "kind": "export",
        **source.describe(),
        "export": made.describe(),
        "command": shlex.join(command),
    }


_OUTDATED = ("value", "dense_value", "metrics", "level", "search_steps", "trained_state")
"""Entries of a ticket that become invalid when its mask is restructured."""


def restructure(
    ticket: str | PathLike[str] | Ticket, to: str, *, output: str | PathLike[str] | None = None, **options: Any
) -> StructureRecord:
    """Give a ticket's mask a structure that hardware can use, as ``ticketry structure`` does.

    Args:
        ticket: folder of a ticket, a ticket of a run, or a loaded `Ticket` (its folder is read again).
        to: the structure: refill, refill+, regroup, channels, 2:4 (or another N:M).
        output: the new ticket's folder; by default in the current folder, named after the ticket and the structure.
        options: the fields of `StructureOptions` (``rows``, ``density``, ``score`` …) and of `ModelOptions`.

    Returns:
        The record; the new ticket is at its ``path``.

    Raises:
        UsageError: for a wrong argument.
        StructureError, MaskError, LayerCollapseError: see `structure.refill`, `regroup`, `n_m`, `channels`.
        TicketError: if there is no such ticket, or it is damaged.
        TrustError: if the ticket names a task or network that is not built in, or a path on this machine.

    Examples:
        >>> run = tk.run("iterative", levels=2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> record = tk.restructure(run.best(), "2:4", output="two-of-four")
        >>> tk.Ticket.load(record.path).density
        0.5
    """
    asked, model = decode_settings(options, StructureOptions, ModelOptions, what="restructure(…)")
    return restructure_ticket(ticket_path(ticket), to, asked, model, output=None if output is None else Path(output))


def restructure_ticket(
    ticket: Path,
    to: str,
    options: StructureOptions,
    model: ModelOptions,
    *,
    output: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    command: str = "",
) -> StructureRecord:
    """Give a ticket's mask a structure, save the new ticket, and return the record: see `restructure`.

    The new ticket has the initial weights of the old ticket, also where the structure adds weights. The new ticket is
    not trained; ``ticketry verify`` trains it with the ticket's recipe.
    """
    own = {field.name for field in fields(Structuring)}
    by = Structuring(kind=to, **{name: value for name, value in vars(options).items() if name in own})
    check_structure_score(by)
    say(str(by))
    source = load_source(model, ticket)
    began = time.perf_counter()
    made = _restructure_mask(source, by, options.seed, model.data)
    seconds = time.perf_counter() - began
    before = source.mask
    fits = coverage(source.model, before, made, null=options.null and by.kind == "regroup", seed=options.seed)
    structure = build_structure_record(by, before.density, [one.as_json() for one in (*fits.values(), together(fits))])
    folder = output or Path(f"{ticket.resolve().name}-{by.kind.replace(':', '-of-')}")
    written = Ticket(made, source.ticket.start, _ticket_info(source.ticket, made, by, structure)).save(folder)
    about = {**source.describe(), "density": made.density, "kept": made.kept, "prunable": made.total}
    return normalise_record(
        StructureRecord(**about, path=str(written), seconds=seconds, structure=structure, command=command)
    )


def _restructure_mask(source: TicketModel, by: Structuring, seed: int, data: Path | None) -> Mask:
    model = source.ticket.apply(source.task.build(), source.weights)
    examples: dict[str, Any] = {}
    if channel_score_needs_data(by):
        course = course_of(source.task, data)
        examples = {"batches": Sample(seed=seed).draw(course, model), "loss": course.loss}
    return apply_structuring(by, model, source.mask, source.inputs, seed=seed, **examples)


def _ticket_info(ticket: Ticket, made: Mask, by: Structuring, structure: Structure) -> dict[str, Any]:
    info = {name: value for name, value in ticket.info.items() if name not in _OUTDATED}
    info["structure"] = {**as_json(structure), "of": ticket.mask.digest}
    if isinstance(info.get("segment"), dict):  # how to train it, written by a search
        segment = {name: value for name, value in info["segment"].items() if name != "shrunk"}
        info["segment"] = {**segment, "mask": made.digest, **({"shrunk": True} if by.whole_channels else {})}
    return info
