"""Defines results of the engine: layers of a compiled model, times of several engines, and times at densities."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field
from msgspec.structs import force_setattr

Place = Literal["engine", "torch"]
"""Place in which a layer is computed: "engine" (kernels) or "torch"."""


# -- types of the numbers in results, and the base class of records ----------------------------------------------------


LARGEST = 1e30
"""Largest number that a result may have; sums and squares of smaller numbers do not overflow."""
LARGEST_COUNT = 10**18

Number = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
"""A finite number."""
Positive = Annotated[float, Meta(gt=0, le=LARGEST, extra={"problem": "not more than 0"})]
NotNegative = Annotated[float, Meta(ge=0, le=LARGEST, extra={"problem": "is less than 0"})]
Density = Annotated[float, Meta(gt=0, le=1, extra={"problem": "which does not lie in (0, 1]"})]
"""Share of the weights that are retained."""
Share = Annotated[float, Meta(ge=0, le=1, extra={"problem": "which does not lie in [0, 1]"})]
NearShare = Annotated[float, Meta(ge=-1e-9, le=1 + 1e-9, extra={"problem": "which is no share"})]
"""A share that rounding may have moved slightly out of [0, 1]."""
Count = Annotated[int, Meta(ge=0, le=LARGEST_COUNT)]
AtLeastOne = Annotated[int, Meta(ge=1, le=LARGEST_COUNT)]


class RecordPart(msgspec.Struct, frozen=True):
    """Base class of dataclasses that are stored as JSON; unknown keys are ignored when they are read."""


class EngineTime(RecordPart, frozen=True):
    """Times of one engine at one batch size."""

    engine: str
    sparse: bool
    seconds: Positive | None = None
    """Median time of a call in seconds; None if the engine was not timed."""
    low: Number | None = None
    """First quartile of the times of a call, in seconds."""
    high: Number | None = None
    """Third quartile of the times of a call, in seconds."""
    wall: tuple[Number, ...] = ()
    """Elapsed seconds per call in each round."""
    cpu: tuple[Number, ...] = ()
    """Processor seconds per call in each round, summed over threads."""
    calls: Count = 0
    """Number of calls in the sample of a round."""
    error: Number | None = None
    """Relative error of the outputs, compared with eager torch in float32."""
    prepare_seconds: Number | None = None
    """Seconds to compile or load the model."""
    why: str = ""
    """Reason why the engine was not timed; "" if it was."""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def timed(self) -> bool:
        return self.seconds is not None


class Saved(RecordPart, frozen=True):
    """Share of time that a sparse engine saves relative to another engine: 1 - its time / the other time."""

    engine: str
    against: str
    saved: Number
    """Median over rounds; negative if the sparse engine is slower."""
    low: Number
    high: Number
    confidence: Number
    """Confidence of the interval from `low` to `high` for the median."""


class Timed(RecordPart, frozen=True, kw_only=True):
    """Times of all engines at one batch size; the engines were called in turn, so that noise affects all equally."""

    batch: AtLeastOne
    precision: str
    threads: AtLeastOne
    cores: tuple[Count, ...] | None = None
    """Numbers of the cores to which the threads were pinned; None if the system cannot pin threads."""
    rounds: AtLeastOne
    cold: bool
    clock: str
    times: tuple[EngineTime, ...]
    saved: tuple[Saved, ...]
    machine: dict[str, Any] = field(default_factory=dict)
    fastest_dense: str | None = None
    """Name of the fastest dense engine; None if no dense engine was timed."""

    @property
    def fastest(self) -> EngineTime | None:
        """Return the times of the fastest dense engine; None if no dense engine was timed."""
        return next((row for row in self.times if row.engine == self.fastest_dense), None)

    @property
    def how(self) -> str:
        """Return a text with the number format, threads, caches, rounds and clock of the measurement."""
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        caches = "cold" if self.cold else "hot"
        return f"{self.precision}, {threads}, {caches} caches, {self.rounds} rounds, {self.clock} time"


class Layer(RecordPart, frozen=True):
    """One operation of a compiled model, as a row of `Compiled.layers`.

    Examples:
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> fast = tk.compile(model, tk.prune(model, density=0.25, distribution="uniform"), torch.randn(4, 64))
        >>> layer = fast.layers()[0]
        >>> layer.name, layer.kind, layer.where, layer.density, layer.kept
        ('0', 'linear', 'engine', 0.25, 1024)
    """

    name: str
    """Name of the module whose weights the operation uses, or else the name of the value that it computes."""
    kind: str
    """Name of the operation, such as "linear"."""
    where: Place
    kernel: str = ""
    """Names of the kernels that run the operation; "" before the first call."""
    density: Share | None = None
    """Share of the layer's weights that are retained; None for an operation without weights."""
    kept: Count | None = None
    """Number of retained weights; None for an operation without weights."""
    rows: str = ""
    """Number of rows in groups with equal columns: "1" if all rows differ, "2-16" for a range; "" without weights."""
    seconds: Number | None = None
    """Seconds of the operation in one call; None before profiling."""
    share: Number | None = None
    """Share of the operation in the time of the whole call; None before profiling."""
    why: str = ""
    """Reason why the operation runs in torch, or "fp32: ..." if it runs in float32 in a model compiled for bf16."""


class SpeedLayer(Layer, frozen=True):
    """A layer of a compiled model with its time, and with the time of the same layer without a mask."""

    dense_seconds: Number | None = None
    """Seconds of the layer in the same engine without a mask; None if they were not measured."""

    @property
    def saved(self) -> float | None:
        """Return the share of the layer's time without a mask that the mask saves; None if the layer was not timed."""
        return 1 - self.seconds / self.dense_seconds if self.seconds is not None and self.dense_seconds else None


class CurvePoint(RecordPart, frozen=True):
    """Times of a compiled model with a mask of one density."""

    density: Density
    """Density of the mask, which may differ from the requested one by rounding."""
    seconds: Positive
    low: Positive
    high: Positive
    ideal: Positive
    """Density times the seconds of the fastest dense engine."""
    saved: Number
    """Median over rounds of the share of time that is saved compared with the fastest dense engine."""
    saved_low: Number | None = None
    saved_high: Number | None = None


class TimeCurve(RecordPart, frozen=True, kw_only=True):
    """Times at several densities for one batch size, in descending order of density."""

    pattern: str = ""
    points: tuple[CurvePoint, ...]
    break_even: Number | None = None
    """Largest measured density at which, and at all smaller ones, the model is as fast as the fastest dense engine."""
    comparison: Timed

    def __post_init__(self) -> None:
        force_setattr(self, "points", tuple(sorted(self.points, key=lambda point: -point.density)))
