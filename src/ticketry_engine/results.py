"""Results of the engine: the layers of a compiled model, timings beside dense engines, latency against density."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import field
from msgspec.structs import force_setattr

from ticketry_engine.support.record_fields import AtLeastOne, Count, Density, Number, Part, Positive, Share

Place = Literal["engine", "torch"]
"""Where a layer is computed."""


class EngineTime(Part, frozen=True):
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
    """Of the outputs, relative to eager torch in float32."""
    prepare_seconds: Number | None = None
    """What it took to compile or load."""
    why: str = ""
    """Why it was not timed."""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def timed(self) -> bool:
        return self.seconds is not None


class Saved(Part, frozen=True):
    """What a sparse engine saves against the fastest dense one: 1 - time / time in the same round."""

    engine: str
    against: str
    saved: Number
    """Median over rounds; negative where it is slower."""
    low: Number
    high: Number
    confidence: Number
    """Of the interval."""


class Timed(Part, frozen=True, kw_only=True):
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


class Layer(Part, frozen=True):
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
    """Of one call, once it was profiled."""
    share: Number | None = None
    """Of the whole call's time."""
    why: str = ""
    """Why it is in torch; "fp32: ..." for why it computes in float32 though the model is compiled for bf16."""


class SpeedLayer(Layer, frozen=True):
    """A layer of a compiled model beside the same layer without a mask."""

    dense_seconds: Number | None = None
    """In the same engine where nothing is pruned; None where that was not measured."""

    @property
    def saved(self) -> float | None:
        """Share of that time which is saved."""
        return 1 - self.seconds / self.dense_seconds if self.seconds is not None and self.dense_seconds else None


class CurvePoint(Part, frozen=True):
    """One density."""

    density: Density
    """Of the mask, which is what rounding leaves of the one that was asked for."""
    seconds: Positive
    low: Positive
    high: Positive
    ideal: Positive
    """density times the fastest dense engine's seconds."""
    saved: Number
    """Median over rounds of the share of time saved against the fastest dense engine."""
    saved_low: Number | None = None
    saved_high: Number | None = None


class TimeCurve(Part, frozen=True, kw_only=True):
    """Time against density at one batch size, the densest first."""

    pattern: str = ""
    points: tuple[CurvePoint, ...]
    break_even: Number | None = None
    """The largest density measured from which down every one is at least as fast as the fastest dense engine."""
    comparison: Timed

    def __post_init__(self) -> None:
        force_setattr(self, "points", tuple(sorted(self.points, key=lambda point: -point.density)))
