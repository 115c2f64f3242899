"""A ticket in use: its model rebuilt, compiled for its mask, timed against dense engines, exported; the records."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.structure.shrink import shrink
from ticketry.core.ticket import Ticket
from ticketry.engine.bench.by_layer import timed_layers
from ticketry.engine.bench.case import Case
from ticketry.engine.bench.compare import Comparison, compare
from ticketry.engine.bench.cores import choose
from ticketry.engine.bench.curve import curve
from ticketry.engine.bench.dense import Call, Contender, Shrunk, Sparse
from ticketry.engine.bench.rivals import rivals
from ticketry.engine.bench.timing import Timing
from ticketry.engine.export import Exported, export
from ticketry.engine.inputs import at_batch
from ticketry.errors import MaskError, StructureError, TicketError, UsageError
from ticketry.evidence.subject import made_task
from ticketry.lab.files import write_json
from ticketry.lab.paths import Paths
from ticketry.lab.segment import digest_of
from ticketry.tasks.base import Task

if TYPE_CHECKING:
    from ticketry.engine.compiled import Compiled

FORMAT = 1
WEIGHTS = ("trained", "start")

_EXAMPLES = 2

Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """A ticket with its model, ready to be run."""

    path: Path
    ticket: Ticket
    task: Task
    model: nn.Module
    """With the ticket's weights, pruned ones 0, in evaluation mode."""
    inputs: Tensor
    """Examples of what the model takes."""
    weights: str
    """trained or start."""

    @property
    def mask(self) -> Mask:
        """Which weights are kept."""
        return self.ticket.mask

    def about(self) -> dict[str, Any]:
        """What every record says of it."""
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


def source_of(
    path: str | Path, *, task: Task | None = None, weights: str = "trained", data: Path | None = None
) -> Source:
    """Read a ticket and rebuild its model.

    Args:
        task: for a ticket whose task cannot be made again by the name that is written in it.
        weights: trained, or start for those that the ticket's training starts from.
        data: folder of data sets, for a task that takes its example inputs from them.

    Raises:
        TicketError: if there is no sound ticket, it does not name its task, has not been trained, or does not fit.
    """
    if weights not in WEIGHTS:
        raise UsageError(f"the weights of a ticket are {' or '.join(WEIGHTS)}, not {weights!r}")
    ticket = Ticket.load(path, trained=weights == "trained")
    if weights == "trained" and ticket.trained is None:
        raise TicketError(f"{path} has not been trained: give --weights start for the weights its training starts from")
    told = ticket.info.get("task")
    if task is None:
        if not isinstance(told, dict):
            raise TicketError(f"{path} does not tell its task, from which its model is built: name it with --task")
        task = made_task(told)
    if isinstance(told, dict) and (why := task.unfit(told.get("key", {}))):  # a file may have changed since, too
        raise TicketError(f"{path} does not fit the task {task.name}: {why}")
    model = ticket.apply(task.build(), weights).eval().requires_grad_(False)
    return Source(Path(path), ticket, task, model, task.example(_EXAMPLES, data), weights)


def model_name(task: Task, model: nn.Module) -> str:
    """The network's name, or its class."""
    return str(task.key().get("model") or type(model).__name__)


# -- compile -----------------------------------------------------------------------------------------------------------


def compiled(source: Source, *, precision: str = "fp32", threads: int | None = None) -> tuple[Compiled, float]:
    """The ticket's model with kernels for its mask, which has run once; and the seconds that it took until then."""
    from ticketry.engine.compiled import compile

    began = time.perf_counter()
    # A task's model is on the CPU.
    made = compile(source.model, source.mask, source.inputs, threads=threads, precision=precision)
    fast = cast("Compiled", made)
    fast(source.inputs)  # its kernels are made at the first call
    return fast, time.perf_counter() - began


def execute_compile(source: Source, output: Path, *, precision: str = "fp32", command: str = "") -> dict[str, Any]:
    """Compile the ticket, write the model file, read it back and compare it with the ticket's model; the record."""
    from ticketry.engine.compiled import load

    fast, seconds = compiled(source, precision=precision)
    written = fast.save(output)
    case = Case(source.model, at_batch(source.inputs, 3, seed=1), precision)
    found = compare_once(load(written), case)
    return {
        "format": FORMAT,
        "kind": "compile",
        **source.about(),
        "path": str(written),
        "bytes": written.stat().st_size,
        "dense_bytes": sum(value.nbytes for value in source.model.state_dict().values()),
        "precision": precision,
        "compile_seconds": seconds,
        "relative_error": found,
        "layers": layers_of(fast, source.inputs),
        "command": command,
    }


def compare_once(call: Call, case: Case) -> float:
    """The relative error of a compiled model on a case.

    Raises:
        EngineError: if it is larger than a model in that number format may have.
    """
    from ticketry.engine.bench.compare import TOLERANCE
    from ticketry.engine.inputs import difference, outputs_of
    from ticketry.errors import EngineError

    error = difference(outputs_of(call(*case.inputs)), case.reference())
    if not error <= TOLERANCE[case.precision]:
        raise EngineError(f"the compiled model is not equal to its source: relative error {error:.2g}")
    return error


def layers_of(fast: Compiled, inputs: Tensor) -> list[dict[str, Any]]:
    """A row for each layer, timed."""
    return [asdict(layer) for layer in fast.profile(inputs)]


# -- bench -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BenchSettings:
    """What is timed against what."""

    batches: tuple[int, ...] = (1, 8, 64)
    against: tuple[str, ...] | None = None
    """Names of dense engines, all of which must be there; None for those that are."""
    precision: str = "fp32"
    threads: int = 1
    timing: Timing = field(default_factory=Timing)
    cores: tuple[int, ...] | None = None
    tune: bool = False
    """Time several plans of the engine at each batch, and keep the fastest."""

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1:
            raise UsageError(f"batches have at least one example, not {min(self.batches, default=0)}")
        if self.cores is not None and len(self.cores) != self.threads:
            raise UsageError(f"{self.threads} threads need as many cores, not {len(self.cores)}")
        choose(self.threads, load={})  # there are as many


def execute_bench(
    source: Source,
    settings: BenchSettings,
    *,
    file: Path | None = None,
    store: Path | None = None,
    say: Say = lambda _: None,
    command: str = "",
) -> dict[str, Any]:
    """Time the ticket in its engine against dense ones, at each batch; the record.

    Where the mask is channel-wise the physically smaller model is timed in the dense engines too.

    Args:
        file: a model file to time, instead of compiling the ticket.
        store: the record is kept in its folder `evidence`, if the ticket is of one of its runs.
    """
    dense = rivals(settings.against)
    say(f"compiling {source.path.name}")
    fast, seconds = _engine(source, file, settings)
    small = shrunk_model(source)
    contenders: list[Contender] = [*dense, Sparse(lambda case: _planned(fast, case, settings))]
    if small is not None:
        contenders += [Shrunk(engine, small) for engine in dense]
    found = [_compared(source, settings, contenders, batch, _at(batch, say)) for batch in settings.batches]
    last = at_batch(source.inputs, settings.batches[-1])[0]
    record = {
        **_head(source, settings, "bench", command),
        "structure": "channel-wise" if small is not None else "unstructured or group-wise",
        "compile_seconds": seconds,
        "weight_bytes": fast.weight_bytes,
        "table_batches": sorted({_EXAMPLES, *settings.batches}),
        "dense_bytes": sum(value.nbytes for value in source.model.parameters()),
        "comparisons": [one.describe() for one in found],
        "layers_batch": settings.batches[-1],
        "layers": timed_layers(fast, source.model, source.mask, last, settings.precision),
    }
    return _kept(record, source, store)


def execute_curve(
    source: Source,
    settings: BenchSettings,
    *,
    pattern: str,
    densities: Sequence[float],
    seed: int = 0,
    store: Path | None = None,
    say: Say = lambda _: None,
    command: str = "",
) -> dict[str, Any]:
    """Time the ticket's network under synthetic masks of other densities; the record."""
    found = []
    for batch in settings.batches:
        case = Case(source.model, at_batch(source.inputs, batch), settings.precision, settings.threads)
        found.append(
            curve(
                case,
                rivals(settings.against),
                lambda case: _planned(
                    compiled(replace(source, model=case.model), precision=settings.precision)[0], case, settings
                ),
                pattern=pattern,
                densities=densities,
                timing=settings.timing,
                seed=seed,
                required=settings.against or (),
                on_cores=settings.cores,
                say=_at(batch, say),
            )
        )
    record = {
        **_head(source, settings, "bench-curve", command),
        "pattern": pattern,
        "seed": seed,
        "curves": [one.describe() for one in found],
    }
    return _kept(record, source, store)


def _compared(
    source: Source, settings: BenchSettings, contenders: Sequence[Contender], batch: int, say: Say
) -> Comparison:
    case = Case(source.model, at_batch(source.inputs, batch), settings.precision, settings.threads)
    return compare(case, contenders, settings.timing, required=settings.against or (), on_cores=settings.cores, say=say)


def _at(batch: int, say: Say) -> Say:
    return lambda text: say(f"batch {batch}: {text}")


def _planned(fast: Compiled, case: Case, settings: BenchSettings) -> Compiled:
    """With the plan for the case's batch that is fastest here, if that was asked for."""
    return fast.tune(*case.inputs) if settings.tune else fast


def _engine(source: Source, file: Path | None, settings: BenchSettings) -> tuple[Compiled, float]:
    """Compiled now, or read; with the seconds that it took."""
    if file is None:
        return compiled(source, precision=settings.precision, threads=settings.threads)
    from ticketry.engine.compiled import load

    began = time.perf_counter()
    fast = load(file, threads=settings.threads)
    fast(source.inputs)
    return fast, time.perf_counter() - began


def shrunk_model(source: Source) -> nn.Module | None:
    """The physically smaller model of a channel-wise mask; None for other masks."""
    try:
        small = shrink(source.model, source.mask, source.inputs)
    except (MaskError, StructureError):
        return None
    before = sum(value.numel() for value in source.model.parameters())
    smaller = sum(value.numel() for value in small.parameters()) < before
    return small.eval().requires_grad_(False) if smaller else None


def _head(source: Source, settings: BenchSettings, kind: str, command: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": kind,
        **source.about(),
        "precision": settings.precision,
        "threads": settings.threads,
        "tuned": settings.tune,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
    }


def _kept(record: dict[str, Any], source: Source, store: Path | None) -> dict[str, Any]:
    """The record with its name and the run that it belongs to; in the store, if the ticket is of a run of it."""
    run = run_of(store, source.path) if store is not None else ""
    asked = {
        name: record.get(name) for name in ("kind", "ticket", "weights", "precision", "threads", "tuned", "pattern")
    }
    batches = [one["batch"] for one in record.get("comparisons", [])]
    name = f"{record['kind']}-{digest_of({**asked, 'batches': batches})[:8]}"
    record = json.loads(json.dumps({**record, "name": name, "run": run}))
    if store is not None and run:
        write_json(Paths(store).evidence(name), record)
    return record


def run_of(store: Path, ticket: Path) -> str:
    """The run of that store which saved the ticket, by where it is; an empty text for one from elsewhere."""
    try:
        return ticket.resolve().relative_to(Paths(store).runs.resolve()).parts[0]
    except (ValueError, IndexError):
        return ""


# -- export ------------------------------------------------------------------------------------------------------------


def execute_export(
    source: Source,
    output: Path,
    *,
    format: str,
    shrink: bool | None = None,
    batch: int | None = None,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Export the ticket's model; the record."""
    facts: Mapping[str, str] = {
        "task": source.task.name,
        "model": model_name(source.task, source.model),
        "density": f"{source.mask.density:.6g}",
    }
    made: Exported = export(
        source.model,
        source.mask,
        source.inputs,
        output,
        format=format,
        shrink=shrink,
        batch=batch,
        facts=facts,
    )
    return {
        "format": FORMAT,
        "kind": "export",
        **source.about(),
        "export": made.describe(),
        "command": shlex.join(command),
    }
