"""A ticket as a file that runs: compiled for its mask, or exported for other runtimes; with its record."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import structs
from torch import Tensor

from ticketry.engine.export import Exported, export
from ticketry.errors import EngineError
from ticketry.experiments.ticket_model import Source, compiled, model_name
from ticketry_engine.bench.compare import TOLERANCE
from ticketry_engine.bench.dense_engines import Call
from ticketry_engine.bench.workload import Case
from ticketry_engine.compiled import Compiled, load
from ticketry_engine.example_inputs import at_batch, difference

FORMAT = 1


def execute_compile(source: Source, output: Path, *, precision: str = "fp32", command: str = "") -> dict[str, Any]:
    """Compile the ticket, write the model file, read it back and compare it with the ticket's model; the record."""
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
    error = difference(case.outputs(call), case.reference())
    if not error <= TOLERANCE[case.precision]:
        raise EngineError(f"the compiled model is not equal to its source: relative error {error:.2g}")
    return error


def layers_of(fast: Compiled, inputs: Tensor) -> list[dict[str, Any]]:
    """A row for each layer, timed."""
    return [structs.asdict(layer) for layer in fast.profile(inputs)]


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
