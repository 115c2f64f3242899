"""A run record, `run.json` as a dict, read into types: what is missing or wrong is named, never a KeyError."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ticketry.report.moments import Moment, read_moment
from ticketry.report.nodes import Node
from ticketry.report.phases import Phases, read_phases
from ticketry.report.rounds import GateRound, read_rounds
from ticketry.report.structure_record import Structure, read_structure

FORMAT = 1
DENSE, TICKET = "dense", "ticket"
VERDICTS = ("wins", "matches", "loses", "undecided")
_ROLE = re.compile(r"[a-z][a-z0-9_]{0,39}")
_ADVICE = "Repeat the run to write the record anew; what is in the store is not trained again"


@dataclass(frozen=True)
class Metric:
    """The number by which networks are compared (the report's own copy: that of the tasks needs torch)."""

    name: str
    unit: str
    higher_is_better: bool
    scale: str = "linear"
    """Of its axis: linear or log."""
    summary: str = "mean"
    """Over replicates: mean, or iqm (interquartile mean)."""

    @property
    def words(self) -> str:
        """Its name as it is read: bits per character."""
        return self.name.replace("_", " ")

    @property
    def sign(self) -> int:
        """1 if more is better, else -1."""
        return 1 if self.higher_is_better else -1


@dataclass(frozen=True)
class Task:
    """What was trained: names, the metric and the sizes behind every density."""

    name: str
    model: str
    metric: Metric
    parameters: int
    """All parameters of the model; 0 if the run has not got so far as to know."""
    prunable: int
    """Parameters in the scope: the denominator of every density; 0 if not known yet."""


@dataclass(frozen=True)
class Layer:
    """One tensor of the scope and how many of its elements a mask keeps."""

    name: str
    kept: int
    total: int

    @property
    def density(self) -> float:
        return self.kept / self.total


@dataclass(frozen=True)
class FirstLayer:
    """What a mask keeps of the first layer: bits of a convolution's filters, or shares of the weights of each input."""

    name: str
    kind: str
    """``filters`` or ``inputs``."""
    shape: tuple[int, ...]
    """Filters: (out, in, height, width). Inputs: (channels, height, width)."""
    data: bytes
    """Filters: bits packed in C order, the highest bit of a byte first, 1 = kept. Inputs: a byte each, 255 = all."""


@dataclass(frozen=True)
class Point:
    """One trained network."""

    replicate: int
    level: int
    role: str
    density: float
    """Fraction kept of the prunable parameters, in (0, 1]."""
    validation: float
    """The task's metric on the validation split."""
    test: float
    layers: tuple[Layer, ...]
    """Empty where the record has none."""
    steps: int | None = None
    """Training steps of its own segment."""
    budget: int | None = None
    """Training steps since its weights were drawn."""
    seconds: float | None = None
    """Training seconds of its own segment."""
    search_steps: int | None = None
    """Of the trainings that its mask comes from, if they are no networks of the record; None if they are."""
    search_seconds: float | None = None
    key: str = ""
    """Of the segment in the store."""
    first_layer: FirstLayer | None = None
    phases: Phases | None = None
    """What it cost; None if the record does not tell it by phase."""
    moment: Moment | None = None
    """When it was pruned; None where that is not told."""
    structure: Structure | None = None
    """That its mask was given after it was found."""
    ticket: str = ""
    """Its folder."""

    def metric(self, split: str) -> float:
        return self.test if split == "test" else self.validation


@dataclass(frozen=True)
class Difference:
    """Ticket minus one other network over paired seeds; above 0, the ticket is the better one."""

    role: str
    mean: float
    low: float | None
    high: float | None
    p: float | None
    steps: int | None = None
    """Training steps of the other network, if they are not those of the ticket."""


@dataclass(frozen=True)
class Judgement:
    """What the paired differences of one level, or of one ticket, show."""

    verdict: str
    """One of `VERDICTS`."""
    claim: str
    margin: float
    confidence: float
    n: int
    difference: float
    interval: tuple[float, float] | None
    p: float
    p_holm: float | None
    more_seeds: int | None
    reasons: tuple[str, ...]
    comparisons: tuple[Difference, ...]
    beside: tuple[Difference, ...] = ()
    """Networks with more training steps, that the verdict does not rest on."""


@dataclass(frozen=True)
class LevelVerdict:
    """The judgement of one level of a run."""

    level: int
    density: float
    judgement: Judgement


@dataclass(frozen=True)
class Run:
    """A whole run. The mappings are shown as they are and may be empty; keys that are not known are ignored."""

    name: str
    method: str
    title: str
    task: Task
    points: tuple[Point, ...]
    settings: Mapping[str, Any]
    recipe: Mapping[str, Any]
    steps: Mapping[str, Any]
    cost: Mapping[str, Any]
    environment: Mapping[str, Any]
    command: str
    config: str
    verdicts: tuple[LevelVerdict, ...] = ()
    verdict_error: str = ""
    """Why there are no verdicts; empty if that is not told."""
    rounds: tuple[GateRound, ...] = ()
    """The trainings with gates that masks come from, where there are any."""


def read(record: Mapping[str, Any]) -> Run:
    """The typed view of a run record.

    Raises:
        StoreError: if it is of another format or kind, or if something is missing from it or impossible.
    """
    root = Node(record, "", "run record", _ADVICE)
    root.check_format(FORMAT)
    if root.text("kind") != "search":
        root.fail("kind", "is not 'search', and only searches can be shown")
    method = root.text("method")
    task = read_task(root.node("task"))
    return Run(
        name=root.text("run"),
        method=method,
        title=root.text("title", method),
        task=task,
        points=_points(root, task),
        settings=root.mapping("settings"),
        recipe=root.mapping("recipe"),
        steps=root.mapping("steps"),
        cost=root.mapping("cost"),
        environment=root.mapping("environment"),
        command=root.text("command", ""),
        config=root.text("config", ""),
        verdicts=tuple(
            LevelVerdict(node.integer("level", least=0), read_density(node), read_judgement(node))
            for node in root.nodes("verdicts", optional=True)
        ),
        verdict_error=root.text("verdict_error", ""),
        rounds=read_rounds(root, task.metric.name),
    )


def read_task(node: Node) -> Task:
    """The task of a record of any kind."""
    metric = node.node("metric")
    summary = metric.text("summary", "mean")
    if summary not in ("mean", "iqm"):
        metric.fail("summary", f"is {summary!r:.60}, neither mean nor iqm")
    parameters = node.integer("parameters", least=0)
    prunable = node.integer("prunable", least=0)
    if prunable > parameters:
        node.fail("prunable", f"is more than all parameters ({parameters})")
    return Task(
        name=node.text("name"),
        model=node.text("model"),
        metric=Metric(
            metric.text("name"),
            metric.text("unit", ""),
            metric.boolean("higher_is_better"),
            metric.text("scale", "linear"),  # older records have none
            summary,
        ),
        parameters=parameters,
        prunable=prunable,
    )


def read_role(node: Node) -> str:
    role = node.text("role")
    if not _ROLE.fullmatch(role):
        node.fail("role", f"is {role!r:.60}, not a name made of a-z, 0-9 and _")
    return role


def read_density(node: Node) -> float:
    density = node.number("density")
    if not 0 < density <= 1:
        node.fail("density", f"is {density:g}, which does not lie in (0, 1]")
    return density


def read_judgement(node: Node) -> Judgement:
    """A verdict with the numbers it rests on, of a level of a run or of a verify record."""
    return Judgement(
        verdict=node.choice("verdict", VERDICTS),
        claim=node.text("claim"),
        margin=node.number("margin"),
        confidence=node.number("confidence"),
        n=node.integer("n", least=0),
        difference=node.number("difference"),
        interval=node.interval("interval"),
        p=node.number("p"),
        p_holm=node.number_or_none("p_holm"),
        more_seeds=node.integer_or_none("more_seeds", least=0),
        reasons=node.texts("reasons"),
        comparisons=_differences(node, "comparisons"),
        beside=_differences(node, "beside"),
    )


def _differences(node: Node, key: str) -> tuple[Difference, ...]:
    return tuple(
        Difference(
            read_role(one),
            one.number("mean"),
            one.number_or_none("low"),
            one.number_or_none("high"),
            one.number_or_none("p"),
            one.integer_or_none("steps", least=0),
        )
        for one in node.nodes(key, optional=True)
    )


def _points(root: Node, task: Task) -> tuple[Point, ...]:
    points = tuple(_point(node, task) for node in root.nodes("points"))
    seen: set[tuple[int, int, str]] = set()
    for index, point in enumerate(points):
        identity = (point.replicate, point.level, point.role)
        if identity in seen:
            root.fail(
                f"points[{index}]",
                f"is the second {point.role} of replicate {point.replicate} at level {point.level}: "
                "it would be counted twice",
            )
        seen.add(identity)
    return points


def _point(node: Node, task: Task) -> Point:
    seconds = node.number_or_none("seconds")
    return Point(
        role=read_role(node),
        density=read_density(node),
        replicate=node.integer("replicate", least=0),
        level=node.integer("level", least=0),
        validation=node.node("validation").number(task.metric.name),
        test=node.node("test").number(task.metric.name),
        layers=tuple(_layer(layer) for layer in node.nodes("layers", optional=True)),
        steps=node.integer_or_none("steps", least=0),
        budget=node.integer_or_none("budget", least=0),
        seconds=seconds if seconds is None or seconds >= 0 else node.fail("seconds", "is less than 0"),
        search_steps=node.integer_or_none("search_steps", least=0),
        search_seconds=node.number_or_none("search_seconds"),
        key=node.text("key", ""),
        first_layer=_first_layer(node.node("first_layer")) if "first_layer" in node else None,
        phases=read_phases(node),
        moment=read_moment(node),
        structure=read_structure(node),
        ticket=node.text("ticket", ""),
    )


def _layer(node: Node) -> Layer:
    total = node.integer("total", least=1)
    kept = node.integer("kept", least=0)
    if kept > total:
        node.fail("kept", f"is more than the layer's total ({total})")
    return Layer(node.text("name"), kept, total)


def _first_layer(node: Node) -> FirstLayer:
    kind = node.choice("kind", ("filters", "inputs"))
    shape = tuple(int(size) for size in node.numbers("shape"))
    if len(shape) != (4 if kind == "filters" else 3) or not all(1 <= size <= 1 << 20 for size in shape):
        node.fail("shape", f"is not that of {kind}")
    try:
        data = base64.b64decode(node.text("data"), validate=True)
    except (binascii.Error, ValueError):
        node.fail("data", "is not base64")
    elements = math.prod(shape)
    if len(data) != (-(-elements // 8) if kind == "filters" else elements):
        node.fail("data", f"is {len(data)} bytes long, which does not fit the shape")
    return FirstLayer(node.text("name"), kind, shape, data)
