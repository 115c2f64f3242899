"""What a task's network costs: in a file, for searches that aim at a time or at bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ticketry.core.costs.bases import ENGINE, Base
from ticketry.core.structuring import NONE, in_blocks
from ticketry.errors import CostError, UsageError

if TYPE_CHECKING:
    from ticketry.core.costs.cost_model import CostModel
    from ticketry.tasks.task import Task


HERE = "this machine"


@dataclass(frozen=True, kw_only=True)
class CostOptions:
    """What costs are of, in the words of the command line."""

    batch: int = 16
    """Examples in a call."""
    threads: int = 1
    """Of a call."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32 or bf16, of a call."""
    unit: Literal["seconds", "bytes"] = "seconds"
    """seconds (of a call), or bytes (of the file that ticketry compile writes)."""
    structure: str = NONE
    """Of seconds: what searches with this --structure need to know, such as auto or rows:16; none and weights are
    single weights."""
    base: Base = "eager"
    """Of seconds on this machine: also time the network in this, for searches whose --time is a share of it. engine is
    the network compiled without pruning, which is timed in any case."""
    target: str = HERE
    """this machine, which is timed; or the profile of another, by which time is estimated: a name such as zen4-avx2, a
    file, or calibrated, see docs/budgets.md."""

    def __post_init__(self) -> None:
        for name in ("batch", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is 1 or more, not {getattr(self, name)}")
        if self.structure != NONE and not in_blocks(self.structure):
            raise UsageError(
                f"costs are of single weights (none, weights), of groups of rows (rows:16) or of both (auto), not of"
                f" {self.structure}"
            )
        if self.unit == "bytes" and self.structure != NONE:
            raise UsageError("a weight takes as many bytes whatever is kept beside it: leave structure away")

    @property
    def times_base(self) -> bool:
        """Whether the network is also timed in its base."""
        return self.unit == "seconds" and self.target == HERE and self.base != ENGINE


def costs_of(
    task: Task, options: CostOptions, *, data: Path | None = None, say: Callable[[str], None] = lambda _: None
) -> CostModel:
    """What a task's network costs, for a call with its first examples.

    Args:
        data: folder in which data sets are looked for first.
        say: is told what is done now.

    Raises:
        CostError: for a profile of other threads or precision, or fewer examples than a call has.
        EngineError: for a network that cannot be captured.
    """
    from ticketry.engine.cost import public
    from ticketry.lab.measured_time import filled
    from ticketry.lab.training.supervised import course_of
    from ticketry_engine.example_inputs import batch_of

    inputs = course_of(task, data).inputs(options.batch)
    if (examples := batch_of(inputs)) < options.batch:
        raise CostError(f"a call of {options.batch} examples is asked for, and {task.name} has {examples} to train on")
    return public.model(
        filled(task.build()),
        inputs,
        options.target,
        unit=options.unit,
        granularities=public.granularities_of(options.structure),
        threads=options.threads,
        precision=options.precision,
        bases=(options.base,) if options.times_base else (),
        say=say,
    )


def kept_costs(
    task: Task,
    options: CostOptions,
    store: str | Path,
    *,
    data: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """The file of a store with these costs, of this processor where they are seconds; measured if it is not there."""
    from ticketry.lab.store.opening import open_store

    file = open_store(store).paths.costs(_name(task, options))
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        costs_of(task, options, data=data, say=say).save(file)
    return file


def _name(task: Task, options: CostOptions) -> str:
    from ticketry.lab.store.store import digest_of
    from ticketry_engine.bench.machine import PROCESSOR, machine

    asked = {name: value for name, value in vars(options).items() if name != "base" or options.times_base}
    described: dict[str, Any] = {"task": dict(task.key()), "options": asked}
    if options.unit == "seconds":
        here = machine(())
        described |= {fact: here[fact] for fact in PROCESSOR}
    return f"{options.unit}-{digest_of(described)[:12]}"
