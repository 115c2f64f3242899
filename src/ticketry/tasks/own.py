"""A user's own task, named module:object: imported, made, checked and wrapped so that its source is part of its key."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from ticketry.errors import TaskError, TicketryError
from ticketry.tasks.base import Metric, Spec, Splits, Task
from ticketry.tasks.course import Course
from ticketry.tasks.recipe import Recipe

_ATTRIBUTES = {"name": str, "metric": Metric, "recipe": Recipe}
_METHODS = ("build", "load", "loss", "measure", "summary")
_METHODS_OF_COURSES = ("build", "course")


def load(spec: Spec) -> Task:
    """The task that `spec.name` = module:object names; modules of the current directory can be named.

    The object is a Task, or a subclass of Task or a function that returns one. The latter two are called with the
    options (and the model, if one is asked for) as keyword arguments; values that look like numbers, true or false
    become such. The task's key holds the digest of the source file of the module, and of those that define the object
    and the task's class; changes in other files that these import are not seen.

    Raises:
        TaskError: if the module cannot be imported or has no such object, or the object does not make a task.
    """
    module_name, _, path = spec.name.partition(":")
    module = _import(module_name, spec.name)
    try:
        found = attrgetter(path)(module)
    except AttributeError:
        raise TaskError(f"{spec.name}: the module {module_name} ({module.__file__}) has no {path!r}") from None
    task = _make(found, spec)
    _check(task, spec.name)
    return OwnTask(task, spec, _source_digest(module, (found, type(task)), spec.name))


class OwnTask(Task):
    """A user's task under the name that it was asked for. All but `key` is the user's."""

    def __init__(self, inner: Task, spec: Spec, source: str) -> None:
        self.inner = inner
        self.name = inner.name
        self.metric = inner.metric
        self.recipe = inner.recipe
        self.spec: Spec = spec
        self.source = source
        """sha256 of the source."""

    def key(self) -> Mapping[str, object]:
        """Name, source and options; and the task's own key if it has one."""
        return {
            "name": self.spec.name,
            "source": self.source,
            "options": _arguments(self.spec),
            "key": self.inner.key() if _overrides(self.inner, "key") else None,
        }

    def of_replicate(self, number: int) -> Mapping[str, str]:
        return self.inner.of_replicate(number)

    def untrained(self) -> Mapping[str, str]:
        return self.inner.untrained()

    def build(self) -> nn.Module:
        return self.inner.build()

    def narrower(self, parameters: int) -> str | None:
        return self.inner.narrower(parameters)

    def course(self, data: Path | None = None) -> Course | None:
        return self.inner.course(data)

    def steps_per_epoch(self, examples: int, recipe: Recipe) -> int:
        return self.inner.steps_per_epoch(examples, recipe)

    def unfit(self, key: Mapping[str, object]) -> str:
        theirs = key.get("key")
        return self.inner.unfit(theirs) if isinstance(theirs, Mapping) else ""

    def scored(self, size: int) -> int:
        return self.inner.scored(size)

    def load(self, data: Path | None = None) -> Splits:
        return self.inner.load(data)

    def prepare(self, inputs: Tensor) -> Tensor:
        return self.inner.prepare(inputs)

    def example(self, count: int, data: Path | None = None) -> Tensor:
        return self.inner.example(count, data)

    def augment(self, inputs: Tensor, names: tuple[str, ...], generator: torch.Generator) -> Tensor:
        return self.inner.augment(inputs, names, generator)

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        return self.inner.loss(outputs, targets, label_smoothing=label_smoothing)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return self.inner.measure(outputs, targets)

    def summary(self, sums: Mapping[str, float], count: int) -> dict[str, float]:
        return self.inner.summary(sums, count)


def _import(name: str, target: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:  # as `python -m` has it
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a user's module may do anything at all
        raise TaskError(
            f"{target}: the module {name!r} cannot be imported from {here}: {type(error).__name__}: {error}"
        ) from error


def _make(found: object, spec: Spec) -> Task:
    arguments = _arguments(spec)
    if isinstance(found, Task):
        if arguments:
            raise TaskError(f"{spec.name} is a task already and takes no options, but got {arguments}")
        return found
    if not callable(found):
        raise TaskError(f"{spec.name} is no task but {found!r}: name a Task, a subclass of Task or a function")
    _bind(found, arguments, spec.name)
    try:
        made = found(**arguments)
    except TicketryError:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(f"{spec.name} failed with {arguments}: {type(error).__name__}: {error}") from error
    if not isinstance(made, Task):
        raise TaskError(f"{spec.name} returned no task but {made!r}")
    return made


def _bind(function: Callable[..., object], arguments: Mapping[str, object], name: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError as error:  # of a function written in C
        raise TaskError(f"{name} is no task but {function!r}: name a Task, a subclass of Task or a function") from error
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise TaskError(f"{name} takes {signature}, but got {dict(arguments)}: {error}") from error


def _arguments(spec: Spec) -> dict[str, bool | int | float | str]:
    arguments = {name: _value(text) for name, text in spec.options}
    return arguments if spec.model is None else {**arguments, "model": spec.model}


def _value(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE):
        return float(text)
    return text


def _check(task: Task, name: str) -> None:
    for attribute, kind in _ATTRIBUTES.items():
        if not isinstance(getattr(task, attribute, None), kind):
            raise TaskError(f"{name}: a task's {attribute} is a {kind.__name__}, see ticketry.tasks.base.Task")
    for method in _METHODS_OF_COURSES if _overrides(task, "course") else _METHODS:
        if not _overrides(task, method):
            raise TaskError(f"{name}: {type(task).__name__} has no {method}, see ticketry.tasks.base.Task")


def _overrides(task: Task, method: str) -> bool:
    return getattr(type(task), method) is not getattr(Task, method)


def _source_digest(module: ModuleType, objects: tuple[object, ...], name: str) -> str:
    """sha256 of the source files of the module and of the user's modules that define the objects."""
    defining = {getattr(item, "__module__", None) for item in objects}
    modules = {module.__name__} | {part for part in defining if part in sys.modules and not _is_ours(part)}
    found = hashlib.sha256()
    for part in sorted(modules):
        file = sys.modules[part].__file__
        if file is None or not file.endswith(".py"):
            raise TaskError(f"{name}: {part} has no source file, without which its results have no key")
        found.update(Path(file).read_bytes())
    return found.hexdigest()


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "ticketry"
