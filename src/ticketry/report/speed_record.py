"""Records of `ticketry bench`, of kind "bench" and "bench-curve", read into types as `record` reads runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ticketry.report.nodes import Node
from ticketry.report.record import read_density

KINDS = ("bench", "bench-curve")


@dataclass(frozen=True)
class EngineTime:
    """One engine at one batch size."""

    engine: str
    sparse: bool
    seconds: float | None
    """Median of a call; None where it was not timed."""
    low: float | None
    """First quartile."""
    high: float | None
    """Third quartile."""
    why: str
    """Why it was not timed."""


@dataclass(frozen=True)
class Saved:
    """Share of time that a sparse engine saves against the fastest dense one."""

    engine: str
    against: str
    saved: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Timed:
    """All engines at one batch size."""

    batch: int
    precision: str
    threads: int
    rounds: int
    cold: bool
    clock: str
    times: tuple[EngineTime, ...]
    saved: tuple[Saved, ...]
    fastest: str
    """The fastest dense engine; empty if none was timed."""
    machine: Mapping[str, Any]

    @property
    def how(self) -> str:
        """Number format, threads, caches, rounds."""
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        caches = "cold" if self.cold else "hot"
        return f"{self.precision}, {threads}, {caches} caches, {self.rounds} rounds, {self.clock} time"


@dataclass(frozen=True)
class SpeedLayer:
    """One layer of the compiled model."""

    name: str
    kind: str
    where: str
    """engine or torch."""
    kernel: str
    density: float | None
    rows: str
    """Rows that share their columns."""
    seconds: float | None
    share: float | None
    """Of the whole call's time."""
    why: str
    """Why it is in torch."""
    dense_seconds: float | None = None
    """In the same engine where nothing is pruned; None where that was not measured."""

    @property
    def saved(self) -> float | None:
        """Share of that time which is saved."""
        return 1 - self.seconds / self.dense_seconds if self.seconds is not None and self.dense_seconds else None


@dataclass(frozen=True)
class CurvePoint:
    """One density."""

    density: float
    seconds: float
    low: float
    high: float
    ideal: float
    saved: float


@dataclass(frozen=True)
class TimeCurve:
    """Time against density at one batch size, the densest first."""

    pattern: str
    points: tuple[CurvePoint, ...]
    timed: Timed


@dataclass(frozen=True)
class Speed:
    """A ticket beside dense engines; or, with `curves`, its network under synthetic masks of other densities."""

    name: str
    run: str
    ticket: str
    task: str
    model: str
    density: float
    compile_seconds: float | None
    weight_bytes: int | None
    """Of the kernels' tables."""
    dense_bytes: int | None
    comparisons: tuple[Timed, ...]
    layers: tuple[SpeedLayer, ...]
    layers_batch: int | None
    curves: tuple[TimeCurve, ...]
    command: str


def read_speed(root: Node) -> Speed:
    """The typed view of a record; `StoreError` if something is missing from it or impossible."""
    made = Speed(
        name=root.text("name"),
        run=root.text("run", ""),
        ticket=root.text("ticket", ""),
        task=root.text("task", ""),
        model=root.text("model", ""),
        density=read_density(root),
        compile_seconds=root.number_or_none("compile_seconds"),
        weight_bytes=root.integer_or_none("weight_bytes", least=0),
        dense_bytes=root.integer_or_none("dense_bytes", least=1),
        comparisons=tuple(_timed(node) for node in root.nodes("comparisons", optional=True)),
        layers=tuple(_layer(node) for node in root.nodes("layers", optional=True)),
        layers_batch=root.integer_or_none("layers_batch", least=1),
        curves=read_curves(root),
        command=root.text("command", ""),
    )
    if not (made.comparisons or made.curves):
        root.fail("comparisons", "is empty")
    return made


def read_curves(root: Node) -> tuple[TimeCurve, ...]:
    """The curves of a record; none if it has none."""
    return tuple(
        TimeCurve(
            node.text("pattern", ""),
            tuple(sorted(map(_point, node.nodes("points")), key=lambda point: -point.density)),
            _timed(node.node("comparison")),
        )
        for node in root.nodes("curves", optional=True)
    )


def _timed(node: Node) -> Timed:
    return Timed(
        batch=node.integer("batch", least=1),
        precision=node.text("precision"),
        threads=node.integer("threads", least=1),
        rounds=node.integer("rounds", least=1),
        cold=node.boolean("cold"),
        clock=node.text("clock"),
        times=tuple(_time(one) for one in node.nodes("times")),
        saved=tuple(_saved(one) for one in node.nodes("saved")),
        fastest=node.text("fastest_dense", "") if "fastest_dense" in node else "",
        machine=node.mapping("machine"),
    )


def _time(node: Node) -> EngineTime:
    seconds = node.number_or_none("seconds")
    if seconds is not None and seconds <= 0:
        node.fail("seconds", f"is {seconds:g}, not more than 0")
    return EngineTime(
        engine=node.text("engine"),
        sparse=node.boolean("sparse"),
        seconds=seconds,
        low=node.number_or_none("low"),
        high=node.number_or_none("high"),
        why=node.text("why", ""),
    )


def _saved(node: Node) -> Saved:
    return Saved(
        engine=node.text("engine"),
        against=node.text("against"),
        saved=node.number("saved"),
        low=node.number("low"),
        high=node.number("high"),
        confidence=node.number("confidence"),
    )


def _layer(node: Node) -> SpeedLayer:
    return SpeedLayer(
        name=node.text("name"),
        kind=node.text("kind"),
        where=node.choice("where", ("engine", "torch")),
        kernel=node.text("kernel", ""),
        density=node.number_or_none("density"),
        rows=node.text("rows", ""),
        seconds=node.number_or_none("seconds"),
        share=node.number_or_none("share"),
        why=node.text("why", ""),
        dense_seconds=node.number_or_none("dense_seconds"),
    )


def _point(node: Node) -> CurvePoint:
    seconds = {name: node.number(name) for name in ("seconds", "low", "high", "ideal")}
    for name, number in seconds.items():
        if number <= 0:
            node.fail(name, f"is {number:g}, not more than 0")
    return CurvePoint(read_density(node), **seconds, saved=node.number("saved"))
