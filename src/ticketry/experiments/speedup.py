"""Measure the speed of a model in three forms: compiled, compiled with channels pruned, and with weights pruned."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ticketry.budgets.granularity import AUTO, CHANNELS
from ticketry.budgets.units import Base
from ticketry.errors import LayerCollapseError, StructureError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from ticketry.budgets.approach import Met
    from ticketry.core.mask import Mask
    from ticketry.records.speed import Timed
    from ticketry.tasks.recipe import Recipe
    from ticketry.tasks.task import Task

Say = Callable[[str], None]

UNPRUNED, CHANNELS_STEP, WEIGHTS_STEP = "1 compiled, unpruned", "2 whole channels", "3 weights and rows"
STEPS = {CHANNELS_STEP: CHANNELS, WEIGHTS_STEP: AUTO}
"""Structure that each pruning step prunes, by name of the step."""


@dataclass(frozen=True, kw_only=True)
class SpeedupOptions:
    """Options of the speed comparison."""

    batch: tuple[int, ...] = (1, 16)
    """Batch sizes; each has its own table."""
    time: str = "50%"
    """Latency budget of steps 2 and 3: a share of the latency of --base, or an amount such as 5ms."""
    base: Base = "engine"
    """What a fraction in --time is relative to: engine (step 1), eager, torch.compile, onnxruntime or openvino."""
    threads: int = 1
    """Threads of every engine."""
    rounds: int = 7
    """Number of timings of each engine; engines are timed in turns."""
    clock: Literal["wall", "cpu"] = "wall"
    """wall, or cpu: processor time of this process, for a machine with other load."""

    def __post_init__(self) -> None:
        if not self.batch or min(self.batch) < 1:
            raise UsageError(f"batch must be 1 or more, got {min(self.batch, default=0)}")
        for name in ("threads", "rounds"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class SpeedupRow:
    """A row of the table: one way to run the model."""

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
    """A table of timings at one batch size."""

    batch: int
    rows: tuple[SpeedupRow, ...]
    machine: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the table as JSON values."""
        return asdict(self)


def load_model(named: str) -> tuple[nn.Module, Any]:
    """Return the model and example inputs that ``FILE.py:function`` returns when it is called.

    Args:
        named: a Python file and a function in it, such as ``MODEL.py:build``.

    Raises:
        UsageError: if there is no such file or function, or the function does not return a model and inputs.
    """
    from torch import nn

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
    """Compare the speed of a model without training it; yield a table for each batch size.

    Args:
        model: model in evaluation mode; its weights are not changed.
        example_inputs: inputs of one call, from which batches are built.
        options: what to compare.
        say: called with each line of progress.

    Raises:
        EngineError: if the model cannot be captured.
    """
    from ticketry_engine.example_inputs import at_batch

    for batch in options.batch:
        inputs = at_batch(example_inputs, batch)
        with _collect_budget_warnings() as said:
            masks, notes = _choose_masks(model, inputs, options, say)
            timed = _time_steps(model, inputs, masks, options, say)
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
        task: the task; with each mask, training starts from the trained weights and repeats the whole schedule.
        options: what to compare.
        store: store of the trainings.
        recipe: recipe of all trainings; by default the task's own.
        workers: number of processes that train; 0 trains in this process.
        data: folder of data sets, searched first.
        say: called with each line of progress.
    """
    from ticketry.lab.lab import Lab
    from ticketry.lab.retrain import retraining

    metric, recipe = task.metric.name, recipe or task.recipe
    with Lab(store, workers=workers, data=data) as lab:
        say("training the dense network")
        dense = lab.train(lab.segment(task, start=0, recipe=recipe), label="dense")
        for batch in options.batch:
            model, inputs = lab.model(task, dense).eval(), lab.course(task).inputs(batch)
            with _collect_budget_warnings() as said:
                masks, notes = _choose_masks(model, inputs, options, say)
                timed = _time_steps(model, inputs, masks, options, say)
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
    """Return the mask of each pruning step, and the reason for each step without a mask."""
    from ticketry.budgets.latency import meet

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


def _time_steps(model: nn.Module, inputs: Any, masks: Mapping[str, Mask], options: SpeedupOptions, say: Say) -> Timed:
    """Check that dense engines and all steps give equal outputs, then time them in turns."""
    import copy

    import torch

    from ticketry_engine import compile
    from ticketry_engine.bench.compare import compare
    from ticketry_engine.bench.dense_engines import Contender, Sparse, rivals
    from ticketry_engine.bench.timing import Case, Timing

    def compiled(mask: Mask | None) -> Callable[[Case], Any]:
        return lambda case: compile(case.model, mask, case.kwargs or case.args, threads=options.threads)

    plain = copy.deepcopy(model).eval().requires_grad_(False)
    contenders: list[Contender] = [*rivals(("eager", "compile", "onnxruntime", "openvino"))]
    contenders.append(Sparse(compiled(None), UNPRUNED))
    for name, mask in masks.items():
        masked = copy.deepcopy(plain)
        with torch.no_grad():
            mask.apply_(masked)
        contenders.append(Sparse(compiled(mask), name, model=masked))
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
    """Return the table of one batch size; the dense engines come first."""
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
    """Yield a list that contains, after the `with` block, the block's warnings about budgets."""
    from ticketry.errors import BudgetWarning

    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    for one in caught:
        if issubclass(one.category, BudgetWarning):
            found.append(str(one.message))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
