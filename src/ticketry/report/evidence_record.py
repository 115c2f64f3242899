"""Evidence records: of verifications and of stability here, of speed in `speed_record`; read into types as runs are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ticketry.report.nodes import Node
from ticketry.report.record import Judgement, Task, read_density, read_judgement, read_role, read_task
from ticketry.report.speed_record import KINDS, Speed, read_speed

FORMAT = 1
_ADVICE = "Make it again with the command that wrote it; what is in the store is not trained again"


@dataclass(frozen=True)
class Network:
    """One role's networks of a verification, one a seed."""

    role: str
    values: tuple[float, ...]
    """The test metric, by seed."""
    budget: int | None
    """Training steps of each."""
    parameters: int | None
    """Weights that are not zero."""
    model: str


@dataclass(frozen=True)
class Reference:
    """The dense network trained for as long as the whole search, or for as many operations."""

    role: str
    steps: int | None
    values: tuple[float, ...]
    note: str


@dataclass(frozen=True)
class Noise:
    """The same ticket under other seeds, minus itself: what a difference of nothing looks like (A/A)."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Verify:
    """One ticket against the dense network and controls, over paired seeds."""

    name: str
    run: str
    ticket: str
    replicate: int
    level: int
    density: float
    method: str
    task: Task
    judgement: Judgement
    looks: tuple[int, ...]
    networks: tuple[Network, ...]
    noise: Noise | None
    references: tuple[Reference, ...]
    left_out: tuple[tuple[str, str], ...]
    """(role, why)."""
    cost: Mapping[str, Any]
    environment: Mapping[str, Any]
    command: str


@dataclass(frozen=True)
class Distances:
    """Between two networks trained from the same start."""

    l2: float
    angle: float
    """Degrees."""


@dataclass(frozen=True)
class Curve:
    """The error along the straight line between two networks."""

    split: str
    recalibrated: int
    """Batches from which the statistics of batch normalisation were recomputed; 0 for none."""
    height: float
    """NaN where it is not finite."""
    alphas: tuple[float, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True)
class StabilityRow:
    """One network's stability from one rewind step."""

    replicate: int
    step: int
    level: int
    density: float
    role: str
    value: float | None
    pruning: Distances | None
    data_order: Distances | None
    layers: tuple[tuple[str, float | None, float | None], ...]
    """(name, L2 distance under pruning, under data order)."""
    barriers: tuple[Curve, ...]


@dataclass(frozen=True)
class Rewind:
    """A step that was rewound to, and the run that did so."""

    asked: str
    step: int
    run: str


@dataclass(frozen=True)
class StabilityStudy:
    """Stability over rewind steps."""

    name: str
    runs: tuple[str, ...]
    task: Task
    rewinds: tuple[Rewind, ...]
    total_steps: int
    replicates: int
    rows: tuple[StabilityRow, ...]
    cost: Mapping[str, Any]
    environment: Mapping[str, Any]
    command: str


Evidence = Verify | StabilityStudy | Speed


def read_evidence(record: Mapping[str, Any]) -> Evidence:
    """The typed view of a record of a verification, of stability, or of what a ticket saves.

    Raises:
        StoreError: if it is of another format or kind, or if something is missing from it or impossible.
    """
    root = Node(record, "", "evidence record", _ADVICE)
    root.check_format(FORMAT)
    kind = root.choice("kind", ("verify", "stability", *KINDS))
    if kind in KINDS:
        return read_speed(root)
    return _verify(root) if kind == "verify" else _stability(root)


def _verify(root: Node) -> Verify:
    return Verify(
        name=root.text("name"),
        run=root.text("run", ""),
        ticket=root.text("ticket", ""),
        replicate=root.integer("replicate", least=0),
        level=root.integer("level", least=0),
        density=read_density(root),
        method=root.text("method", ""),
        task=read_task(root.node("task")),
        judgement=read_judgement(root),
        looks=tuple(int(look) for look in root.numbers("looks")),
        networks=tuple(_network(node) for node in root.nodes("networks")),
        noise=_noise(root.node("noise")) if "noise" in root else None,
        references=tuple(
            Reference(
                read_role(node), node.integer_or_none("steps", least=0), node.numbers("values"), node.text("note", "")
            )
            for node in root.nodes("references", optional=True)
        ),
        left_out=tuple((node.text("role"), node.text("why")) for node in root.nodes("left_out", optional=True)),
        cost=root.mapping("cost"),
        environment=root.mapping("environment"),
        command=root.text("command", ""),
    )


def _network(node: Node) -> Network:
    values = node.numbers("values")
    if not values:
        node.fail("values", "is empty")
    return Network(
        role=read_role(node),
        values=values,
        budget=node.integer_or_none("budget", least=0),
        parameters=node.integer_or_none("parameters", least=0),
        model=node.text("model", ""),
    )


def _noise(node: Node) -> Noise:
    return Noise(
        n=node.integer("n", least=0),
        mean=node.number("mean"),
        sd=node.number_or_none("sd"),
        low=node.number_or_none("low"),
        high=node.number_or_none("high"),
    )


def _stability(root: Node) -> StabilityStudy:
    study = StabilityStudy(
        name=root.text("name"),
        runs=root.texts("runs"),
        task=read_task(root.node("task")),
        rewinds=tuple(
            Rewind(node.text("asked", ""), node.integer("step", least=0), node.text("run", ""))
            for node in root.nodes("rewinds")
        ),
        total_steps=root.integer("total_steps", least=1),
        replicates=root.integer("replicates", least=1),
        rows=tuple(_row(node) for node in root.nodes("rows")),
        cost=root.mapping("cost"),
        environment=root.mapping("environment"),
        command=root.text("command", ""),
    )
    seen: set[tuple[int, int, int, str]] = set()
    for index, row in enumerate(study.rows):
        identity = (row.replicate, row.step, row.level, row.role)
        if identity in seen:
            root.fail(f"rows[{index}]", f"is the second {row.role} of its replicate, step and level")
        seen.add(identity)
    return study


def _row(node: Node) -> StabilityRow:
    return StabilityRow(
        replicate=node.integer("replicate", least=0),
        step=node.integer("step", least=0),
        level=node.integer("level", least=0),
        density=read_density(node),
        role=read_role(node),
        value=node.number_or_none("value"),
        pruning=_distances(node.node("pruning")) if "pruning" in node else None,
        data_order=_distances(node.node("data_order")) if "data_order" in node else None,
        layers=tuple(
            (layer.text("name"), layer.number_or_none("pruning"), layer.number_or_none("data_order"))
            for layer in node.nodes("layers", optional=True)
        ),
        barriers=tuple(_curve(curve) for curve in node.nodes("barriers", optional=True)),
    )


def _distances(node: Node) -> Distances:
    return Distances(node.number("l2"), node.number("angle"))


def _curve(node: Node) -> Curve:
    alphas, errors = node.numbers("alphas"), node.measured("errors")
    if len(alphas) != len(errors):
        node.fail("errors", f"has {len(errors)} numbers for {len(alphas)} alphas")
    return Curve(
        split=node.text("split"),
        recalibrated=node.integer("recalibrated", least=0),
        height=node.measured_number("height"),
        alphas=alphas,
        errors=errors,
    )
