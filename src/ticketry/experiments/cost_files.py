"""What a task's network costs, in a file: asked for by itself, or measured by a search before it begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ticketry.core.structuring import NONE, in_blocks
from ticketry.errors import CostError, UsageError
from ticketry.search.common.aims import Aimed

if TYPE_CHECKING:
    from ticketry.core.costs.cost_model import CostModel
    from ticketry.experiments.options import LabOptions
    from ticketry.experiments.request import SearchRequest
    from ticketry.tasks.task import Task


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
    target: str = "this machine"
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
    from ticketry.engine.example_inputs import batch_of
    from ticketry.lab.measured_time import filled
    from ticketry.lab.training.supervised import course_of

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
        say=say,
    )


def with_costs(
    request: SearchRequest, options: LabOptions, say: Callable[[str], None] = lambda _: None
) -> SearchRequest:
    """The request, with a file of this machine's costs in its settings where it asks for a time or bytes without one.

    The file is kept in the store, by network and processor: the same search finds it there.
    """
    settings = request.settings
    if not isinstance(settings, Aimed) or not settings.unmeasured:
        return request
    from ticketry.lab.store import open_store

    if settings.aim == "time":
        asked = CostOptions(structure=getattr(settings, "structure", NONE))
    else:
        asked = CostOptions(unit="bytes")
    file = open_store(options.store).paths.costs(_name(request.task, asked))
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        costs_of(request.task, asked, data=options.data, say=say).save(file)
    return replace(request, settings=replace(settings, profile=str(file)))


def _name(task: Task, options: CostOptions) -> str:
    from ticketry.engine.bench.machine import machine
    from ticketry.lab.store import digest_of

    described: dict[str, Any] = {"task": dict(task.key()), "options": vars(options)}
    if options.unit == "seconds":
        here = machine(())
        described |= {fact: here[fact] for fact in ("processor", "processor_kind")}
    return f"{options.unit}-{digest_of(described)[:12]}"
