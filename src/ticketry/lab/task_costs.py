"""Write files with the costs of a task's network, for searches with a budget of latency or bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ticketry.budgets.units import ENGINE, NONE, Base, retains_whole_blocks
from ticketry.errors import CostError, UsageError

if TYPE_CHECKING:
    from ticketry.budgets.cost_model import CostModel
    from ticketry.tasks.task import Task


HERE = "this machine"


@dataclass(frozen=True, kw_only=True)
class CostOptions:
    """Holds the options of the command `ticketry cost`, which measures the costs of a network's weights."""

    batch: int = 16
    """Number of examples in a call of the network."""
    threads: int = 1
    """Number of CPU threads that a call uses."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32 or bf16."""
    unit: Literal["seconds", "bytes"] = "seconds"
    """seconds (of a call), or bytes (of the file that ticketry compile writes)."""
    structure: str = NONE
    """For seconds: measure the costs for searches with this --structure, such as auto or rows:16; with none or weights,
    single weights are removed."""
    base: Base = "eager"
    """For seconds on this machine: also time the unpruned network in this engine, for searches whose --time is a share
    of that time. The value engine means the network that ticketry compiles without pruning; it is always timed."""
    target: str = HERE
    """Source of the seconds: "this machine", which is timed; a GPU profile (h100-bf16), for an estimate from the
    rates of that GPU; or a file with costs of the same network that were measured on another machine."""

    def __post_init__(self) -> None:
        for name in ("batch", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.structure != NONE and not retains_whole_blocks(self.structure):
            raise UsageError(
                f"structure must be single weights (none, weights), groups of rows (rows:16) or both (auto), got"
                f" {self.structure}"
            )
        if self.unit == "bytes" and self.structure != NONE:
            raise UsageError("the bytes of a weight do not depend on the structure: leave out structure")

    @property
    def is_base_timed(self) -> bool:
        """Whether the unpruned network is also timed in the engine `base`."""
        return self.unit == "seconds" and self.target == HERE and self.base != ENGINE


def measure_costs(
    task: Task, options: CostOptions, *, data: Path | None = None, say: Callable[[str], None] = lambda _: None
) -> CostModel:
    """Measure the costs of the weights of a task's network, in calls with the first training examples."""
    from ticketry.budgets import model_costs
    from ticketry.budgets.units import granularities_to_measure
    from ticketry.lab.masks import randomise_parameters_with_zeros
    from ticketry.lab.training.supervised import course_of
    from ticketry_engine.example_inputs import batch_size_of

    inputs = course_of(task, data).inputs(options.batch)
    if (examples := batch_size_of(inputs)) < options.batch:
        raise CostError(f"a call needs {options.batch} examples, and {task.name} has {examples} to train on")
    return model_costs.model(
        randomise_parameters_with_zeros(task.build()),
        inputs,
        options.target,
        unit=options.unit,
        granularities=granularities_to_measure(options.structure),
        threads=options.threads,
        precision=options.precision,
        bases=(options.base,) if options.is_base_timed else (),
        say=say,
    )


def find_or_measure_costs(
    task: Task,
    options: CostOptions,
    store: str | Path,
    *,
    data: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Return the file in the store with the costs that `options` describe; measure and write it if it is missing."""
    from ticketry.lab.store.store import open_store

    file = open_store(store).paths.costs(_costs_file_name(task, options))
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        measure_costs(task, options, data=data, say=say).save(file)
    return file


def _costs_file_name(task: Task, options: CostOptions) -> str:
    from ticketry.lab.store.store import digest_of
    from ticketry_engine.bench.timing import PROCESSOR, machine

    requested = {name: value for name, value in vars(options).items() if name != "base" or options.is_base_timed}
    described: dict[str, Any] = {"task": dict(task.key()), "options": requested}
    if options.unit == "seconds":
        here = machine(())
        described |= {fact: here[fact] for fact in PROCESSOR}
    return f"{options.unit}-{digest_of(described)[:12]}"
