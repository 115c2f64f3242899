"""Create user-defined tasks in any process: by a name module:object, or by the class and options of a task object."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import partial, wraps
from inspect import Parameter
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.errors import TaskError, TicketryError, UsageError
from ticketry.records.metric import Metric
from ticketry.registry import Registry, digest_source, load_object, put_current_folder_on_path
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Spec, Task

_ATTRIBUTES = {"name": str, "metric": Metric, "recipe": Recipe}
_METHODS = ("build", "load", "loss", "measure", "summary")
_METHODS_OF_COURSES = ("build", "course")


def load(spec: Spec, registry: Registry[Any], *, annotated: bool = False) -> Task:
    """Create the task `spec.name`, which is registered by an installed package or has the form module:object.

    The object is a task, a subclass of `Task`, or a function that returns a task; this is checked before a call.
    Classes and functions are called with the options (and the model, if requested) as keyword arguments. Option values
    that look like numbers, true or false are converted. A function with an argument `spec` gets the whole request
    instead.
    The key of the task contains a digest of the source code of the object, see `registry.digest_source`. If
    `annotated`, as for names from files, a function is called only if its annotation says that it returns a task.
    """
    found = registry.get(spec.name)
    _check_makes_tasks(found, spec.name, annotated=annotated)
    task = _create_task(found, spec)
    for attribute, kind in _ATTRIBUTES.items():
        if not isinstance(getattr(task, attribute, None), kind):
            raise TaskError(f"{spec.name}: a task's {attribute} is a {kind.__name__}, see ticketry.tasks.task.Task")
    for method in _METHODS_OF_COURSES if _overrides_method(task, "course") else _METHODS:
        if not _overrides_method(task, method):
            raise TaskError(f"{spec.name}: {type(task).__name__} has no {method}, see ticketry.tasks.task.Task")
        _check_signature(task, method, spec.name)
    try:
        source = digest_source(registry.find_target(spec.name), type(task))
    except UsageError as error:
        raise TaskError(f"{spec.name}: {error}") from None
    return OwnTask(task, spec, source)


class OwnTask(Task):
    """Wraps a user-defined task to give it the requested name and a key; all other members are the wrapped task's."""

    def __init__(self, inner: Task, spec: Spec, source: str) -> None:
        self.inner = inner
        self.name = inner.name
        self.metric = inner.metric
        self.recipe = inner.recipe
        self.spec: Spec = spec
        self.source = source
        """SHA-256 of the source code."""

    def key(self) -> Mapping[str, object]:
        """Return the name, the digest of the source, the options, and the wrapped task's key if it defines one."""
        return {
            "name": self.spec.name,
            "source": self.source,
            "options": _arguments_from_options(self.spec),
            "key": self.inner.key() if _overrides_method(self.inner, "key") else None,
        }

    def unfit(self, key: Mapping[str, object]) -> str:
        theirs = key.get("key")
        return self.inner.unfit(theirs) if isinstance(theirs, Mapping) else ""


def _make_delegating_method(name: str) -> Callable[..., Any]:
    @wraps(getattr(Task, name))
    def method(self: OwnTask, *args: Any, **named: Any) -> Any:
        return getattr(self.inner, name)(*args, **named)

    return method


for _name, _method in vars(Task).items():
    if callable(_method) and not _name.startswith("_") and _name not in vars(OwnTask):
        setattr(OwnTask, _name, _make_delegating_method(_name))


def _check_makes_tasks(found: object, name: str, *, annotated: bool) -> None:
    """Raise an error unless an object is a task, a subclass of `Task`, or a Python function that may return a task."""
    if isinstance(found, Task):
        return
    if isinstance(found, type):
        if issubclass(found, Task):
            return
        raise TaskError(f"{name} is no task but {found!r}: name a Task, a subclass of Task or a function")
    inner = inspect.unwrap(found.func if isinstance(found, partial) else found) if callable(found) else found
    if not (inspect.isfunction(inner) or inspect.ismethod(inner)):
        raise TaskError(f"{name} is no task but {found!r}: name a Task, a subclass of Task or a function in Python")
    annotation = inspect.get_annotations(inner).get("return")
    if annotation is None:
        if annotated:
            raise TaskError(
                f"{name} does not say that it returns a task, and a function that a file names is called only if it"
                " does: write -> Task behind its arguments, or name it yourself with --task"
            )
        return
    returns = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", repr(annotation))
    known = isinstance(annotation, type) and issubclass(annotation, Task)
    if not (known or (isinstance(annotation, str) and _annotation_is_task(inner, annotation))):
        raise TaskError(f"{name} returns {returns}, which is no task: name a function that returns a Task")


def _annotation_is_task(function: Any, annotation: str) -> bool:
    """Return whether `annotation` is the name of a subclass of `Task`, or an unknown name that ends in Task."""
    first, *rest = annotation.strip("'\" ").split(".")
    found = function.__globals__.get(first)
    for part in rest:
        found = getattr(found, part, None)
    if found is None:
        return annotation.strip("'\" ").endswith("Task")
    return isinstance(found, type) and issubclass(found, Task)


def _create_task(found: Any, spec: Spec) -> Task:
    arguments: dict[str, Any] = _arguments_from_options(spec)
    if isinstance(found, Task):
        if arguments:
            raise TaskError(f"{spec.name} is a task already and takes no options, but got {arguments}")
        return found
    try:
        signature = inspect.signature(found)
    except ValueError as error:  # of a function written in C
        raise TaskError(
            f"{spec.name} is no task but {found!r}: name a Task, a subclass of Task or a function"
        ) from error
    if "spec" in signature.parameters:
        arguments = {"spec": spec}
    else:
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise TaskError(f"{spec.name} takes {signature}, but got {arguments}: {error}") from error
    try:
        task = found(**arguments)
    except TicketryError:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(f"{spec.name} failed with {arguments}: {type(error).__name__}: {error}") from error
    if not isinstance(task, Task):
        raise TaskError(f"{spec.name} returned no task but {task!r}")
    return task


def _arguments_from_options(spec: Spec) -> dict[str, Any]:
    arguments: dict[str, Any] = {name: _parse_value(text) for name, text in spec.options}
    return arguments if spec.model is None else {**arguments, "model": spec.model}


def _parse_value(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE):
        return float(text)
    return text


def _check_signature(task: Task, method: str, name: str) -> None:
    """Raise an error unless the task's method `method` takes the same arguments as that method of `Task`."""
    _, *wanted = inspect.signature(getattr(Task, method)).parameters.values()
    named = {one.name: one.default for one in wanted if one.kind is one.KEYWORD_ONLY}
    given = [one.name for one in wanted if one.kind is not one.KEYWORD_ONLY]
    own = inspect.signature(getattr(task, method))
    try:
        own.bind(*given, **named)
    except TypeError as error:
        called = ", ".join([*given, *(f"{key}={value}" for key, value in named.items())])
        raise TaskError(
            f"{name}: {method} of {type(task).__name__} takes {own} and is called as {method}({called}): {error}"
        ) from None


def _overrides_method(task: Task, method: str) -> bool:
    return getattr(type(task), method) is not getattr(Task, method)


_WORDS = (bool, int, float, str, PurePath)
"""Types that the value of an option can have."""
_PLAIN = (*_WORDS, bytes, type(None))


def recreate(task: object, get: Callable[..., Task]) -> Task:
    """Return a task that any process can create again: `task` itself if it has a key, else a copy created by name.

    The copy is created by the name of the class, with the constructor arguments as options. All attributes of the copy
    must equal the attributes of `task`.
    """
    if not isinstance(task, Task):
        raise TaskError(_explain_not_a_task(task))
    kind = type(task)
    if task.spec is not None or isinstance(task, OwnTask) or kind.key is not Task.key:
        return task
    name = f"{kind.__module__}:{kind.__qualname__}"
    if why := _explain_unimportable_class(kind, name):
        raise TaskError(
            f'the task {kind.__name__} {why}: write the class into a module, and name it tk.task("module:'
            f'{kind.__name__}", options={{…}}); or give it a key() that identifies its results'
        )
    options = _find_non_default_arguments(task, name)
    call = ", ".join(f"{argument}={value!r}" for argument, value in options.items())
    copy = get(name, model=options.pop("model", None), options=options)
    if not isinstance(copy, OwnTask):
        raise _difference_error(name, "that name is of a task that is built in")
    ours, theirs = vars(task), vars(copy.inner)
    for attribute in {**ours, **theirs}:
        if attribute not in ours or attribute not in theirs or not _are_equal(ours[attribute], theirs[attribute]):
            raise _difference_error(
                name, f"its {attribute} is not that of {kind.__name__}({call}), or cannot be compared"
            )
    return copy


def _explain_not_a_task(given: object) -> str:
    what = f"task= is a task or its name, not {given!r}" if given is None else f"task= is no {type(given).__name__}"
    if isinstance(given, nn.Module):
        return (
            f"{what}: a task is a network with its data, loss and metric. Write a subclass of tk.Task whose build()"
            " returns it (docs/tasks.md), or prune it in your own loop by tk.prune and tk.hold"
        )
    if isinstance(given, type) and issubclass(given, Task):
        return f"task= is a task, not the class {given.__name__}: call it, {given.__name__}()"
    return f'{what}: give a name ("digits", "my_tasks:Line") or a tk.Task'


def _explain_unimportable_class(kind: type[Task], name: str) -> str:
    """Return as text why other processes cannot import the class `kind` by its name; empty if they can."""
    if kind.__module__ == "__main__":
        return "is of a script or a notebook, in which other processes cannot find it"
    if "<locals>" in kind.__qualname__:
        return "is of a class inside a function, in which other processes cannot find it"
    put_current_folder_on_path()
    try:
        found = load_object(name)
    except TicketryError as error:
        return f"cannot be created again by its name {name} ({error})"
    return "" if found is kind else f"is of a class that is not the one that {name} is now"


def _find_non_default_arguments(task: Task, name: str) -> dict[str, Any]:
    """Return the constructor arguments of a task that differ from their defaults.

    The values are read from the attributes with the names of the arguments.
    """
    options = {}
    for one in inspect.signature(type(task)).parameters.values():
        if one.kind not in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY):
            raise _difference_error(name, f"its constructor takes {one}")
        if one.name not in vars(task):
            raise _difference_error(
                name, f"it keeps its constructor's argument {one.name!r} in no attribute of that name"
            )
        value = vars(task)[one.name]
        if _are_equal(value, one.default):
            continue
        if not isinstance(value, _WORDS):
            raise _difference_error(name, f"its {one.name} is a {type(value).__name__}, which is no option's value")
        options[one.name] = value
    return options


def _are_equal(one: object, other: object) -> bool:
    """Return whether two values have the same type and are equal; return False if they cannot be compared."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, _PLAIN):
        return one == other
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_are_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(_are_equal(one[key], other[key]) for key in one)
    return is_dataclass(one) and hasattr(one, "__dict__") and _are_equal(vars(one), vars(other))


def _difference_error(name: str, why: str) -> TaskError:
    return TaskError(
        f'no name and options make this task {name.partition(":")[2]} again ({why}): name it tk.task("{name}",'
        " options={…}), or, where options cannot say it, name a function that returns it"
    )
