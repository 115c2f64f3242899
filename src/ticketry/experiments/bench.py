"""Time a ticket against dense engines or at several densities, or a model in three forms."""

from __future__ import annotations

import copy
import importlib.util
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from msgspec import structs
from torch import nn

from ticketry.budgets.latency import meet
from ticketry.budgets.request import Met
from ticketry.budgets.units import AUTO, CHANNELS
from ticketry.core.mask import Mask
from ticketry.core.structure.channel_masks import channels
from ticketry.core.structure.smaller_model import shrink
from ticketry.core.synthetic_masks import Pattern, synthetic
from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import BudgetWarning, LayerCollapseError, MaskError, StructureError, UsageError
from ticketry.experiments.decoding import decode_settings
from ticketry.experiments.options import BenchOptions, ModelOptions, SpeedupOptions, ticket_path
from ticketry.experiments.record_files import current_time, find_run_name, normalise_record
from ticketry.experiments.ticket_model import EXAMPLE_BATCH, TicketModel, compile_source, load_source
from ticketry.files import file_digest, list_matching
from ticketry.lab.lab import Lab
from ticketry.lab.retrain import retraining
from ticketry.lab.store.files import explain_os_errors, path_exists, write_with_digest
from ticketry.lab.store.paths import Paths
from ticketry.lab.store.store import digest_of
from ticketry.records.schema import as_json
from ticketry.records.ticket import BenchRecord, CurveRecord, SpeedRecord
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task
from ticketry_engine import Compiled, compile, load
from ticketry_engine.bench.compare import compare, time_layers
from ticketry_engine.bench.dense_engines import Call, Contender, ShrunkModel, Sparse, rivals
from ticketry_engine.bench.timing import Case, Timing, check_cores, choose_cores
from ticketry_engine.errors import EngineError
from ticketry_engine.example_inputs import resize_batch
from ticketry_engine.results import CurvePoint, TimeCurve, Timed

S = TypeVar("S", bound=SpeedRecord)
Say = Callable[[str], None]


def bench(
    what: str | PathLike[str] | Ticket,
    *,
    ticket: str | PathLike[str] | Ticket | None = None,
    store: str | PathLike[str] = ".ticketry",
    **options: Any,
) -> BenchRecord | CurveRecord:
    """Time a ticket side by side with dense engines, as ``ticketry bench`` does.

    Args:
        what: a ticket to time (its folder, a ticket of a run, or a loaded `Ticket`), or a model file.
        ticket: for a model file, the ticket that it was compiled from; the dense engines run the ticket's model.
        store: folder of the store; the record is saved in it if the ticket belongs to a run of this store.
        options: the fields of `BenchOptions` (``batch``, ``against``, ``densities`` …) and of `ModelOptions`.

    Raises:
        UsageError: for a wrong argument.
        EngineError: if a requested dense engine is not available, or outputs are not equal.
        TicketError: if there is no such ticket, or it is damaged.
        TrustError: if the ticket names a task or network that is not built in, or a path on this machine.

    Examples:
        >>> run = tk.run("iterative", levels=2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> timed = tk.bench(run.best(), batch=(1,), against=("eager",), rounds=1)
        >>> [(one.engine, one.sparse, one.seconds > 0) for one in timed.comparisons[0].times]
        [('eager', False, True), ('ticketry', True, True)]
    """
    asked, model = decode_settings(options, BenchOptions, ModelOptions, what="bench(…)")
    return bench_ticket(
        ticket_path(what), asked, model, ticket=None if ticket is None else ticket_path(ticket), store=Path(store)
    )


def bench_ticket(
    what: Path,
    options: BenchOptions,
    model: ModelOptions,
    *,
    ticket: Path | None = None,
    store: Path,
    say: Say = lambda _: None,
    command: str = "",
) -> BenchRecord | CurveRecord:
    """Time a ticket, a model file, or a ticket's network under synthetic masks; return the record. See `bench`."""
    file = what if what.is_file() else None
    if file and ticket is None:
        raise UsageError(f"dense engines need the model of {file}: name its ticket with --ticket")
    if file and options.densities:
        raise UsageError(f"--densities needs a ticket, got the model file {file}")
    if not file and ticket is not None:
        raise UsageError(f"--ticket belongs to a model file, got {what}")
    choose_cores(options.threads, load={})  # there are as many
    check_cores(options.cores)
    kept_in = store if path_exists(store / "store.json") else None
    say("reading the ticket")
    source = load_source(model, ticket or what)
    if not options.densities:
        return execute_bench(source, options, file=file, store=kept_in, say=say, command=command)
    return execute_density_sweep(source, options, store=kept_in, say=say, command=command)


def list_run_tickets(run: Path, replicates: int) -> list[Path]:
    """Return the ticket folders in the folder `run` that belong to its first `replicates` replicates, densest first."""
    with explain_os_errors(run, "read"):
        found = sorted(list_matching(run / "tickets", "*"), key=_parse_ticket_name)
    found = [ticket for ticket in found if _parse_ticket_name(ticket)[1] < replicates]
    if not found:
        raise UsageError(f"{run} has no tickets of its first {replicates} replicates")
    return found


def _parse_ticket_name(ticket: Path) -> tuple[int, int]:
    """Return the level (pruning step) and the replicate, which the folder name of a run's ticket contains."""
    found = re.fullmatch(r"replicate-(\d+)-level-(\d+)", ticket.name)
    if found is None:
        raise UsageError(f"{ticket} is not a ticket of a run")
    return int(found[2]), int(found[1])


def execute_bench(
    source: TicketModel,
    options: BenchOptions,
    *,
    file: Path | None = None,
    store: Path | None = None,
    say: Say = lambda _: None,
    command: str = "",
) -> BenchRecord:
    """Time the compiled ticket against dense engines at each batch size, and return the record.

    If the mask removes whole channels, the physically smaller model is timed in the dense engines too.

    Args:
        file: a model file to time, instead of compiling the ticket.
        store: the store; its folder `evidence` gets the record if the ticket belongs to a run of this store.
    """
    dense = rivals(options.against or None)
    say(f"compiling {source.path.name}")
    if file is None:
        fast, seconds = compile_source(source, precision=options.precision, threads=options.threads)
    else:
        began = time.perf_counter()
        fast = load(file, threads=options.threads, precision=options.precision)
        fast(source.inputs)
        seconds = time.perf_counter() - began
    small = shrunk_model(source)
    contenders: list[Contender] = [*dense, Sparse(lambda case: _tune_if_requested(fast, case, options))]
    if small is not None:
        contenders += [ShrunkModel(engine, small) for engine in dense]
    found = [compare(case, contenders, **how) for case, how in _yield_cases(source, options, say)]
    last = resize_batch(source.inputs, options.batch[-1])[0]
    layers = time_layers(fast, source.model, source.mask, last, options.precision)
    record = BenchRecord(
        **_common_record_fields(source, options, store, command),
        structure="channel-wise" if small is not None else "unstructured or group-wise",
        compile_seconds=seconds,
        weight_bytes=fast.weight_bytes,
        table_batches=tuple(sorted({EXAMPLE_BATCH, *options.batch})),
        dense_bytes=sum(value.nbytes for value in source.model.parameters()),
        comparisons=tuple(found),
        layers_batch=options.batch[-1],
        layers=tuple(layers),
    )
    return _store_record(record, store, options, file)


def execute_density_sweep(
    source: TicketModel,
    options: BenchOptions,
    *,
    store: Path | None = None,
    say: Say = lambda _: None,
    command: str = "",
) -> CurveRecord:
    """Time the ticket's network under synthetic masks of the densities in `options`, and return the record."""
    found = [
        time_densities(
            case,
            rivals(options.against or None),
            lambda case: _tune_if_requested(
                compile_source(replace(source, model=case.model), precision=options.precision)[0], case, options
            ),
            pattern=options.pattern,
            densities=options.densities,
            **how,
        )
        for case, how in _yield_cases(source, options, say)
    ]
    record = CurveRecord(
        **_common_record_fields(source, options, store, command), pattern=options.pattern, seed=0, curves=tuple(found)
    )
    return _store_record(record, store, options)


def _yield_cases(source: TicketModel, options: BenchOptions, say: Say) -> Iterator[tuple[Case, dict[str, Any]]]:
    """Yield the case (model and inputs) of each batch size, and the arguments that say how to time the case."""
    for batch in options.batch:
        yield (
            Case(source.model, resize_batch(source.inputs, batch), options.precision, options.threads),
            {
                "timing": Timing(rounds=options.rounds, cold=options.cold, clock=options.clock),
                "required": options.against,
                "on_cores": options.cores or None,
                "say": lambda text, batch=batch: say(f"batch {batch}: {text}"),
            },
        )


def _tune_if_requested(fast: Compiled, case: Case, options: BenchOptions) -> Compiled:
    return fast.tune(*case.args, **case.kwargs) if options.tune else fast


def shrunk_model(source: TicketModel) -> nn.Module | None:
    """Return the physically smaller model if the mask removes whole channels; otherwise None."""
    try:
        small = shrink(source.model, source.mask, source.inputs)
    except (MaskError, StructureError):
        return None
    before = sum(value.numel() for value in source.model.parameters())
    smaller = sum(value.numel() for value in small.parameters()) < before
    return small.eval().requires_grad_(False) if smaller else None


def _common_record_fields(
    source: TicketModel, options: BenchOptions, store: Path | None, command: str
) -> dict[str, Any]:
    return {
        **source.describe(),
        "name": "",
        "run": find_run_name(store, source.path) if store is not None else "",
        "precision": options.precision,
        "threads": options.threads,
        "tuned": options.tune,
        "date": current_time(),
        "command": command,
    }


def _store_record(record: S, store: Path | None, options: BenchOptions, file: Path | None = None) -> S:
    """Return `record` with a name built from a digest of its request; save it if its ticket belongs to a stored run."""
    values = as_json(record)
    request = {name: values.get(name) for name in ("kind", "ticket", "weights")}
    request |= {one.name: getattr(options, one.name) for one in fields(BenchOptions)}
    request |= {"file": file and file_digest(file)}
    name = f"{values['kind']}-{digest_of(request)[:8]}"
    record = normalise_record(structs.replace(record, name=name))
    if store is not None and record.run:
        write_with_digest(Paths(store).evidence(name), as_json(record))
    return record


DENSITIES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.26, 0.33, 0.42, 0.5, 0.65, 0.8, 1.0)


def time_densities(
    case: Case,
    dense: Sequence[Contender],
    compile_case: Callable[[Case], Call],
    *,
    pattern: Pattern | str = "unstructured",
    densities: Sequence[float] = DENSITIES,
    seed: int = 0,
    timing: Timing | None = None,
    required: Sequence[str] = (),
    on_cores: Sequence[int] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> TimeCurve:
    """Time the compiled model at each of `densities` and the unpruned model in dense engines, in alternation.

    Args:
        case: the unpruned model with its inputs; dense engines run only this model, since zeros do not speed them up.
        compile_case: compiles the model of a case (model and inputs) in which pruned weights are zero.
        required: names of dense engines that must be available.
    """
    pattern = Pattern.parse(pattern) if isinstance(pattern, str) else pattern
    rows: dict[str, float] = {}
    contenders: list[Contender] = list(dense)
    for density in sorted(set(densities), reverse=True):
        if pattern.kind == "channels":
            mask = channels(case.model, case.inputs, density, score="l1", distribution="uniform")
        else:
            mask = synthetic(case.model, pattern, density, seed=seed)
        masked: nn.Module = mask.apply_(copy.deepcopy(case.model))
        name = f"density {density:g}"
        rows[name] = mask.density
        contenders.append(Sparse(compile_case, name, model=masked))
    found = compare(case, contenders, timing, required=required, on_cores=on_cores, say=say)
    fastest = found.fastest
    if fastest is None or fastest.seconds is None:
        raise EngineError("no dense engine was timed")
    saved = {one.engine: one for one in found.saved}
    points = [
        CurvePoint(
            rows[row.engine],
            row.seconds,
            row.low or row.seconds,
            row.high or row.seconds,
            rows[row.engine] * fastest.seconds,
            saved[row.engine].saved,
            saved[row.engine].low,
            saved[row.engine].high,
        )
        for row in found.times
        if row.engine in rows and row.seconds is not None
    ]
    return TimeCurve(pattern=str(pattern), points=tuple(points), break_even=break_even(points), comparison=found)


def break_even(points: Sequence[CurvePoint]) -> float | None:
    """Return the largest density such that no point up to this density is slower than dense; None without one.

    The `points` are sorted by density, the densest first.
    """
    found = None
    for point in reversed(points):
        if point.saved < 0:
            break
        found = point.density
    return found


UNPRUNED, CHANNELS_STEP, WEIGHTS_STEP = "1 compiled, unpruned", "2 whole channels", "3 weights and rows"
STEPS = {CHANNELS_STEP: CHANNELS, WEIGHTS_STEP: AUTO}
"""Structure that each pruning step prunes, by name of the step."""


@dataclass(frozen=True)
class SpeedupRow:
    """A row of a `Speedup` table, with the timing of one engine or pruning step."""

    name: str
    seconds: float | None
    """Median latency in seconds; None if it could not be measured."""
    speed: float | None
    """Speed relative to eager PyTorch; 2 is twice as fast."""
    density: float | None = None
    """Share of the weights that is retained; None for dense engines."""
    value: float | None = None
    """Metric of the task after training; None without a task."""
    note: str = ""


@dataclass(frozen=True)
class Speedup:
    """A table that compares engines and pruning steps at one batch size."""

    batch: int
    rows: tuple[SpeedupRow, ...]
    machine: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the table as JSON values."""
        return asdict(self)


def load_model(named: str) -> tuple[nn.Module, Any]:
    """Return the model and example inputs that ``FILE.py:function`` returns when it is called."""
    file, _, name = named.rpartition(":")
    path = Path(file)
    if not file.endswith(".py") or not name:
        raise UsageError(f"the model must be a Python file and a function, such as MODEL.py:build, got {named!r}")
    if not path.is_file():
        raise UsageError(f"the file {file} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    build = getattr(module, name, None)
    if not callable(build):
        raise UsageError(f"{file} has no function {name!r}")
    found = build()
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], nn.Module)):
        raise UsageError(
            f"{named} must return the model and its example inputs, (model, inputs), got {type(found).__name__}"
        )
    return found[0].eval(), found[1]


def speedups(
    model: nn.Module, example_inputs: Any, options: SpeedupOptions, *, say: Say = lambda _: None
) -> Iterator[Speedup]:
    """Time a model in dense engines, compiled, and pruned in two ways; yield a table for each batch size.

    The model is pruned to the latency budget of `options` once by whole channels, and once by single weights and groups
    of rows. Nothing is trained.

    Args:
        model: model in evaluation mode; its weights are not changed.
        example_inputs: inputs of one call; to get another batch size, examples are left out, or repeated with noise.
    """
    for batch in options.batch:
        inputs = resize_batch(example_inputs, batch)
        with _collect_budget_warnings() as said:
            masks, notes = _choose_masks(model, inputs, options, say)
            timed = _time_pruning_steps(model, inputs, masks, options, say)
        yield _build_table(batch, timed, masks, notes, {}, tuple(said))


def task_speedups(
    task: Task,
    options: SpeedupOptions,
    *,
    store: str | Path,
    recipe: Recipe | None = None,
    workers: int = 0,
    data: Path | None = None,
    say: Say = lambda _: None,
) -> Iterator[Speedup]:
    """Train a task's network, prune it, and train it again with each mask; yield a table for each batch size.

    Args:
        task: the task; each pruned network starts from the trained weights and is trained for the whole schedule.
        recipe: recipe of all trainings; by default the task's recipe.
    """
    metric, recipe = task.metric.name, recipe or task.recipe
    with Lab(store, workers=workers, data=data) as lab:
        say("training the dense network")
        dense = lab.train(lab.segment(task, start=0, recipe=recipe), label="dense")
        for batch in options.batch:
            model, inputs = lab.model(task, dense).eval(), lab.course(task).inputs(batch)
            with _collect_budget_warnings() as said:
                masks, notes = _choose_masks(model, inputs, options, say)
                timed = _time_pruning_steps(model, inputs, masks, options, say)
            values = dict.fromkeys(("eager", UNPRUNED), dense.metrics["test"][metric])
            for name, mask in masks.items():
                say(f"training with {name[2:]}")
                segment = retraining(
                    *(lab, task, recipe),
                    retrain="rewind_lr",
                    mask=mask,
                    rewound=dense,
                    trained=dense,
                    order_seed=0,
                    entered=0,
                )
                values[name] = lab.train(segment, label=name).metrics["test"][metric]
            yield _build_table(batch, timed, masks, notes, values, tuple(said))


def _choose_masks(
    model: nn.Module, inputs: Any, options: SpeedupOptions, say: Say
) -> tuple[dict[str, Mask], dict[str, str]]:
    """Return two dicts by pruning step: masks, and, for steps without a mask, the reason why there is none."""
    masks: dict[str, Mask] = {}
    notes: dict[str, str] = {}
    for step, structure in STEPS.items():
        say(f"choosing {step[2:]} for {options.time} of {options.base}")
        try:
            found: Met = meet(
                model, inputs, options.time, base=options.base, structure=structure, threads=options.threads
            )
        except (UsageError, LayerCollapseError, StructureError) as error:
            notes[step] = str(error)
            continue
        if found.pruned:
            masks[step] = found.mask
        else:
            notes[step] = str(found.latencies)
    return masks, notes


def _time_pruning_steps(
    model: nn.Module, inputs: Any, masks: Mapping[str, Mask], options: SpeedupOptions, say: Say
) -> Timed:
    """Check that dense engines and pruned models give the outputs of eager mode, then time all in alternation."""

    def make_compiler(mask: Mask | None) -> Callable[[Case], Any]:
        return lambda case: compile(case.model, mask, case.kwargs or case.args, threads=options.threads)

    plain = copy.deepcopy(model).eval().requires_grad_(False)
    contenders: list[Contender] = [*rivals(("eager", "compile", "onnxruntime", "openvino"))]
    contenders.append(Sparse(make_compiler(None), UNPRUNED))
    for name, mask in masks.items():
        masked = copy.deepcopy(plain)
        with torch.no_grad():
            mask.apply_(masked)
        contenders.append(Sparse(make_compiler(mask), name, model=masked))
    given = inputs if isinstance(inputs, tuple | Mapping) else (inputs,)
    case = Case(plain, given, "fp32", options.threads)
    return compare(case, contenders, Timing(rounds=options.rounds, clock=options.clock), say=say)


def _build_table(
    batch: int,
    timed: Timed,
    masks: Mapping[str, Mask],
    notes: Mapping[str, str],
    values: Mapping[str, float | None],
    said: tuple[str, ...],
) -> Speedup:
    """Return the speedup table of one batch size; the rows of dense engines come first."""
    seconds = {one.engine: one.seconds for one in timed.times}
    why = {one.engine: one.why for one in timed.times} | dict(notes)
    eager = seconds.get("eager")
    rows = []
    for name in (*seconds, *(step for step in STEPS if step not in seconds)):
        took = seconds.get(name)
        density = masks[name].density if name in masks else 1.0 if name == UNPRUNED else None
        rows.append(
            SpeedupRow(
                {"compile": "torch.compile"}.get(name, name),
                took,
                eager / took if eager and took else None,
                density,
                values.get(name),
                why.get(name, ""),
            )
        )
    return Speedup(batch, tuple(rows), timed.machine, said)


@contextmanager
def _collect_budget_warnings() -> Iterator[list[str]]:
    """Yield a list to which all warnings about budgets are appended at the end of the `with` block."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    for one in caught:
        if issubclass(one.category, BudgetWarning):
            found.append(str(one.message))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
