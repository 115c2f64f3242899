"""Time against density: one model under synthetic masks of several densities, beside the dense engines."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ticketry.engine.bench.case import Case
from ticketry.engine.bench.compare import Comparison, compare
from ticketry.engine.bench.dense import Call, Contender, Sparse
from ticketry.engine.bench.masks import Pattern, synthetic
from ticketry.engine.bench.timing import Timing
from ticketry.errors import EngineError

DENSITIES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.26, 0.33, 0.42, 0.5, 0.65, 0.8, 1.0)


@dataclass(frozen=True)
class CurvePoint:
    """One density."""

    density: float
    """Of the mask, which is what rounding leaves of the one that was asked for."""
    seconds: float
    low: float
    high: float
    ideal: float
    """density times the fastest dense engine's seconds."""
    saved: float
    """Median over rounds of the share of time saved against the fastest dense engine."""
    saved_low: float
    saved_high: float


@dataclass(frozen=True)
class Curve:
    """Points, the densest first."""

    pattern: str
    points: tuple[CurvePoint, ...]
    comparison: Comparison

    @property
    def break_even(self) -> float | None:
        """The largest density measured from which down every one is at least as fast as the fastest dense engine."""
        found = None
        for point in reversed(self.points):
            if point.saved < 0:
                break
            found = point.density
        return found

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "pattern": self.pattern,
            "points": [asdict(point) for point in self.points],
            "break_even": self.break_even,
            "comparison": self.comparison.describe(),
        }


def curve(
    case: Case,
    dense: Sequence[Contender],
    compile_case: Callable[[Case], Call],
    *,
    pattern: Pattern | str = "unstructured",
    densities: Sequence[float] = DENSITIES,
    timing: Timing | None = None,
    seed: int = 0,
    required: Sequence[str] = (),
    on_cores: Sequence[int] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Curve:
    """Time the model under masks of all densities, and the dense engines on the whole model, in the same rounds.

    Args:
        case: of the whole model; dense engines take as long for zeros as for anything else.
        compile_case: makes the sparse engine of a case whose model has its pruned weights at zero.

    Raises:
        UsageError: for a pattern that is none, or a density outside (0, 1].
        EngineError: as `compare`.
    """
    pattern = Pattern.parse(pattern) if isinstance(pattern, str) else pattern
    rows: dict[str, float] = {}
    contenders: list[Contender] = list(dense)
    for density in sorted(set(densities), reverse=True):
        mask = synthetic(case.model, pattern, density, seed=seed, example_inputs=case.inputs)
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
    return Curve(str(pattern), tuple(points), found)
