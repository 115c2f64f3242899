"""Time against density: one model under synthetic masks of several densities, beside the dense engines."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from ticketry.core.synthetic_masks import Pattern, synthetic
from ticketry_engine.bench.compare import compare
from ticketry_engine.bench.dense_engines import Call, Contender, Sparse
from ticketry_engine.bench.timing import Timing
from ticketry_engine.bench.workload import Case
from ticketry_engine.errors import EngineError
from ticketry_engine.results import CurvePoint, TimeCurve

DENSITIES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.26, 0.33, 0.42, 0.5, 0.65, 0.8, 1.0)


@dataclass(frozen=True)
class Sweep:
    """Synthetic masks of several densities."""

    pattern: Pattern | str = "unstructured"
    densities: Sequence[float] = DENSITIES
    seed: int = 0


def curve(
    case: Case,
    dense: Sequence[Contender],
    compile_case: Callable[[Case], Call],
    *,
    sweep: Sweep | None = None,
    timing: Timing | None = None,
    required: Sequence[str] = (),
    on_cores: Sequence[int] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> TimeCurve:
    """Time the model under masks of all densities, and the dense engines on the whole model, in the same rounds.

    Args:
        case: of the whole model; dense engines take as long for zeros as for anything else.
        compile_case: makes the sparse engine of a case whose model has its pruned weights at zero.

    Raises:
        UsageError: for a pattern that is none, or a density outside (0, 1].
        EngineError: as `compare`.
    """
    sweep = sweep or Sweep()
    pattern = Pattern.parse(sweep.pattern) if isinstance(sweep.pattern, str) else sweep.pattern
    rows: dict[str, float] = {}
    contenders: list[Contender] = list(dense)
    for density in sorted(set(sweep.densities), reverse=True):
        mask = synthetic(case.model, pattern, density, seed=sweep.seed, example_inputs=case.inputs)
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
    """The largest density measured from which down every one is at least as fast as the fastest dense engine.

    `points` are the densest first; None where the sparsest is slower.
    """
    found = None
    for point in reversed(points):
        if point.saved < 0:
            break
        found = point.density
    return found
