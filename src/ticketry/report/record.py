"""A run record, `run.json` as a dict, read into types: what is missing or wrong is named, never a KeyError."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from ticketry.errors import StoreError

FORMAT = 1
DENSE, TICKET = "dense", "ticket"
_LARGEST = 1e30
"""Beyond it, a metric is a mistake; below it, no sum or square overflows."""
_ROLE = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True)
class Metric:
    """The number by which networks are compared (the report's own copy: that of the tasks needs torch)."""

    name: str
    unit: str
    higher_is_better: bool

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

    def metric(self, split: str) -> float:
        return self.test if split == "test" else self.validation


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


def read(record: Mapping[str, Any]) -> Run:
    """The typed view of a run record.

    Raises:
        StoreError: if it is of another format or kind, or if something is missing from it or impossible.
    """
    root = _Node(record, "")
    version = root.integer("format", least=1)
    if version != FORMAT:
        raise StoreError(
            f"run record: format {version} is not the one this ticketry reads ({FORMAT}): "
            "install the version of ticketry that wrote it, or repeat the run"
        )
    if root.text("kind") != "search":
        root.fail("kind", "is not 'search', and only searches can be shown")
    method = root.text("method")
    task = _task(root.node("task"))
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
    )


def _task(node: _Node) -> Task:
    metric = node.node("metric")
    parameters = node.integer("parameters", least=0)
    prunable = node.integer("prunable", least=0)
    if prunable > parameters:
        node.fail("prunable", f"is more than all parameters ({parameters})")
    return Task(
        name=node.text("name"),
        model=node.text("model"),
        metric=Metric(metric.text("name"), metric.text("unit", ""), metric.boolean("higher_is_better")),
        parameters=parameters,
        prunable=prunable,
    )


def _points(root: _Node, task: Task) -> tuple[Point, ...]:
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


def _point(node: _Node, task: Task) -> Point:
    role = node.text("role")
    if not _ROLE.fullmatch(role):
        node.fail("role", f"is {role!r:.60}, not a name made of a-z, 0-9 and _")
    density = node.number("density")
    if not 0 < density <= 1:
        node.fail("density", f"is {density:g}, which does not lie in (0, 1]")
    return Point(
        replicate=node.integer("replicate", least=0),
        level=node.integer("level", least=0),
        role=role,
        density=density,
        validation=node.node("validation").number(task.metric.name),
        test=node.node("test").number(task.metric.name),
        layers=tuple(_layer(layer) for layer in node.nodes("layers", optional=True)),
    )


def _layer(node: _Node) -> Layer:
    total = node.integer("total", least=1)
    kept = node.integer("kept", least=0)
    if kept > total:
        node.fail("kept", f"is more than the layer's total ({total})")
    return Layer(node.text("name"), kept, total)


class _Node:
    """A JSON object and the place where it was found, so that every complaint can name it."""

    def __init__(self, value: Any, where: str) -> None:
        self._where = where
        if not isinstance(value, Mapping):
            self.fail("", f"is {_kind(value)}, not an object")
        self._value: Mapping[str, Any] = value

    def fail(self, key: str, problem: str) -> NoReturn:
        place = f"{self._where}.{key}".strip(".") or "the whole"
        raise StoreError(
            f"run record: {place} {problem}. "
            "Repeat the run to write the record anew; what is in the store is not trained again"
        )

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value.get(key, default)
        if not isinstance(value, str):
            self.fail(key, f"is {_kind(value)}, not text")
        return value

    def number(self, key: str) -> float:
        value = self._value.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(key, f"is {_kind(value)}, not a number")
        if not abs(value) <= _LARGEST:  # so written, it refuses NaN as well
            self.fail(key, f"is no finite number up to {_LARGEST:g}")
        return float(value)

    def integer(self, key: str, least: int) -> int:
        value = self._value.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(key, f"is {_kind(value)}, not a whole number")
        if value < least:
            self.fail(key, f"is {value}, less than {least}")
        return value

    def boolean(self, key: str) -> bool:
        value = self._value.get(key)
        if not isinstance(value, bool):
            self.fail(key, f"is {_kind(value)}, not true or false")
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self._value.get(key)
        return {} if value is None else _Node(value, self._path(key))._value

    def node(self, key: str) -> _Node:
        return _Node(self._value.get(key), self._path(key))

    def nodes(self, key: str, optional: bool = False) -> list[_Node]:
        value = self._value.get(key)
        if value is None and optional:
            return []
        if not isinstance(value, list | tuple):
            self.fail(key, f"is {_kind(value)}, not a list")
        return [_Node(item, f"{self._path(key)}[{index}]") for index, item in enumerate(value)]

    def _path(self, key: str) -> str:
        return f"{self._where}.{key}".strip(".")


def _kind(value: Any) -> str:
    """What a value is, in JSON's words."""
    if value is None:
        return "missing"
    names = {bool: "a truth value", str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"of type {type(value).__name__}")
