"""Results of the engine: layers of a compiled model, timings of several engines, latency against density."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field
from msgspec.structs import force_setattr

Place = Literal["engine", "torch"]
"""Location in which a layer is computed."""


# -- Kinds of numbers that results are declared with, and the base of their parts --------------------------------------


LARGEST = 1e30
"""Beyond it, a number is a mistake; below it, no sum or square overflows."""
LARGEST_COUNT = 10**18

Number = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
"""Finite."""
Positive = Annotated[float, Meta(gt=0, le=LARGEST, extra={"problem": "not more than 0"})]
NotNegative = Annotated[float, Meta(ge=0, le=LARGEST, extra={"problem": "is less than 0"})]
Density = Annotated[float, Meta(gt=0, le=1, extra={"problem": "which does not lie in (0, 1]"})]
"""Fraction kept."""
Share = Annotated[float, Meta(ge=0, le=1, extra={"problem": "which does not lie in [0, 1]"})]
NearShare = Annotated[float, Meta(ge=-1e-9, le=1 + 1e-9, extra={"problem": "which is no share"})]
"""A share up to rounding: `share` puts it into [0, 1]."""
Count = Annotated[int, Meta(ge=0, le=LARGEST_COUNT)]
AtLeastOne = Annotated[int, Meta(ge=1, le=LARGEST_COUNT)]


class RecordPart(msgspec.Struct, frozen=True):
    """A part of a record. Fields that are not known are ignored when it is read."""


class EngineTime(RecordPart, frozen=True):
    """One engine at one batch size."""

    engine: str
    sparse: bool
    seconds: Positive | None = None
    """Median of a call; None where it was not timed."""
    low: Number | None = None
    """First quartile."""
    high: Number | None = None
    """Third quartile."""
    wall: tuple[Number, ...] = ()
    """Seconds of a call, of each round."""
    cpu: tuple[Number, ...] = ()
    """Likewise, summed over threads."""
    calls: Count = 0
    """In each sample."""
    error: Number | None = None
    """Error of the outputs relative to eager torch in float32."""
    prepare_seconds: Number | None = None
    """Seconds to compile or load."""
    why: str = ""
    """Why it was not timed."""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def timed(self) -> bool:
        return self.seconds is not None


class Saved(RecordPart, frozen=True):
    """Time saved by a sparse engine against the fastest dense one: 1 - ratio of times in the same round."""

    engine: str
    against: str
    saved: Number
    """Median over rounds; negative where it is slower."""
    low: Number
    high: Number
    confidence: Number
    """Confidence level of the interval."""


class Timed(RecordPart, frozen=True, kw_only=True):
    """All engines at one batch size, timed side by side."""

    batch: AtLeastOne
    precision: str
    threads: AtLeastOne
    cores: tuple[Count, ...] | None = None
    """The threads were kept there; None where the system cannot."""
    rounds: AtLeastOne
    cold: bool
    clock: str
    times: tuple[EngineTime, ...]
    saved: tuple[Saved, ...]
    machine: dict[str, Any] = field(default_factory=dict)
    fastest_dense: str | None = None
    """The engine; None if no dense one was timed."""

    @property
    def fastest(self) -> EngineTime | None:
        """The fastest dense engine."""
        return next((row for row in self.times if row.engine == self.fastest_dense), None)

    @property
    def how(self) -> str:
        """Number format, threads, caches, rounds."""
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        caches = "cold" if self.cold else "hot"
        return f"{self.precision}, {threads}, {caches} caches, {self.rounds} rounds, {self.clock} time"


class Layer(RecordPart, frozen=True):
    """One operation of a compiled model.

    Examples:
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> fast = tk.compile(model, tk.prune(model, density=0.25, distribution="uniform"), torch.randn(4, 64))
        >>> layer = fast.layers()[0]
        >>> layer.name, layer.kind, layer.where, layer.density, layer.kept
        ('0', 'linear', 'engine', 0.25, 1024)
    """

    name: str
    """The module whose weights it has, else the name of the value it makes."""
    kind: str
    """The operation."""
    where: Place
    kernel: str = ""
    """The kernels it runs in, empty before the first call."""
    density: Share | None = None
    """Weights kept / all weights of the layer; None for what has no weights."""
    kept: Count | None = None
    """Weights kept."""
    rows: str = ""
    """Output rows that share their columns: "1" where all differ, "2-16" for a spread; empty without weights."""
    seconds: Number | None = None
    """Seconds of one call, after profiling."""
    share: Number | None = None
    """Share of the whole call's time."""
    why: str = ""
    """Why it is in torch; "fp32: ..." for why it computes in float32 though the model is compiled for bf16."""


class SpeedLayer(Layer, frozen=True):
    """Times of a layer of a compiled model, and of the same layer without a mask."""

    dense_seconds: Number | None = None
    """In the same engine where nothing is pruned; None where that was not measured."""

    @property
    def saved(self) -> float | None:
        """Share of that time which is saved."""
        return 1 - self.seconds / self.dense_seconds if self.seconds is not None and self.dense_seconds else None


class CurvePoint(RecordPart, frozen=True):
    """One density."""

    density: Density
    """Density of the mask, which may differ from the requested one by rounding."""
    seconds: Positive
    low: Positive
    high: Positive
    ideal: Positive
    """density times the fastest dense engine's seconds."""
    saved: Number
    """Median over rounds of the share of time saved against the fastest dense engine."""
    saved_low: Number | None = None
    saved_high: Number | None = None


class TimeCurve(RecordPart, frozen=True, kw_only=True):
    """Time against density at one batch size, the densest first."""

    pattern: str = ""
    points: tuple[CurvePoint, ...]
    break_even: Number | None = None
    """The largest density measured from which down every one is at least as fast as the fastest dense engine."""
    comparison: Timed

    def __post_init__(self) -> None:
        force_setattr(self, "points", tuple(sorted(self.points, key=lambda point: -point.density)))
