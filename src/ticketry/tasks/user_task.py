"""Tasks of the user: named as module:object, or created in Python and named by their class and options."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import is_dataclass
from functools import partial, wraps
from inspect import Parameter
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.errors import TaskError, TicketryError, UsageError
from ticketry.records.metric import Metric
from ticketry.registry import Registry, digest_source, import_from_here
from ticketry.registry import load as load_object
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Spec, Task

_ATTRIBUTES = {"name": str, "metric": Metric, "recipe": Recipe}
_METHODS = ("build", "load", "loss", "measure", "summary")
_METHODS_OF_COURSES = ("build", "course")


def load(spec: Spec, registry: Registry[Any], *, annotated: bool = False) -> Task:
    """The task of an installed package, or that `spec.name` = module:object names.

    The object is a Task, or a subclass of Task or a function that returns one. The latter two are called with the
    options (and the model, if one is asked for) as keyword arguments; values that look like numbers, true or false
    become such. A function of `spec` gets the whole request instead. The task's key holds the digest of the source of
    the module, of those that define the object and the task's class, and of what these reach: see `registry.sources`.

    Whether the object is one of these is checked before anything of it is called.

    Args:
        annotated: whether a function is called only if its annotation says that it returns a task: of a name that was
            read from a file.

    Raises:
        PluginError: if the package's module cannot be imported or has no such object.
        TaskError: if one's own cannot, or the object does not make a task.
    """
    found = registry.get(spec.name)
    _check_makes_tasks(found, spec.name, annotated=annotated)
    task = _make(found, spec)
    _check(task, spec.name)
    try:
        source = digest_source(registry.find_target(spec.name), type(task))
    except UsageError as error:
        raise TaskError(f"{spec.name}: {error}") from None
    return OwnTask(task, spec, source)


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

    def unfit(self, key: Mapping[str, object]) -> str:
        theirs = key.get("key")
        return self.inner.unfit(theirs) if isinstance(theirs, Mapping) else ""


def _handed_on(name: str) -> Callable[..., Any]:
    @wraps(getattr(Task, name))
    def method(self: OwnTask, *args: Any, **named: Any) -> Any:
        return getattr(self.inner, name)(*args, **named)

    return method


for _name, _method in vars(Task).items():
    if callable(_method) and not _name.startswith("_") and _name not in vars(OwnTask):
        setattr(OwnTask, _name, _handed_on(_name))


def _check_makes_tasks(found: object, name: str, *, annotated: bool) -> None:
    """Refuse what is not a task, nor a class of tasks, nor a function in Python that may return one."""
    if isinstance(found, Task):
        return
    if isinstance(found, type):
        if issubclass(found, Task):
            return
        raise TaskError(f"{name} is no task but {found!r}: name a Task, a subclass of Task or a function")
    inner = inspect.unwrap(found.func if isinstance(found, partial) else found) if callable(found) else found
    if not (inspect.isfunction(inner) or inspect.ismethod(inner)):
        raise TaskError(f"{name} is no task but {found!r}: name a Task, a subclass of Task or a function in Python")
    told = inspect.get_annotations(inner).get("return")
    if told is None:
        if annotated:
            raise TaskError(
                f"{name} does not say that it returns a task, and a function that a file names is called only if it"
                " does: write -> Task behind its arguments, or name it yourself with --task"
            )
        return
    returns = told if isinstance(told, str) else getattr(told, "__name__", repr(told))
    known = isinstance(told, type) and issubclass(told, Task)
    if not (known or (isinstance(told, str) and _of_this_module(inner, told))):
        raise TaskError(f"{name} returns {returns}, which is no task: name a function that returns a Task")


def _of_this_module(function: Any, annotation: str) -> bool:
    """Whether an annotation in quotes is a class of tasks, or one that is known to type checkers only and called so."""
    first, *rest = annotation.strip("'\" ").split(".")
    found = function.__globals__.get(first)
    for part in rest:
        found = getattr(found, part, None)
    if found is None:
        return annotation.strip("'\" ").endswith("Task")
    return isinstance(found, type) and issubclass(found, Task)


def _make(found: Any, spec: Spec) -> Task:
    arguments: dict[str, Any] = _arguments(spec)
    if isinstance(found, Task):
        if arguments:
            raise TaskError(f"{spec.name} is a task already and takes no options, but got {arguments}")
        return found
    if "spec" in _bind(found, arguments, spec.name):
        arguments = {"spec": spec}
    try:
        made = found(**arguments)
    except TicketryError:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(f"{spec.name} failed with {arguments}: {type(error).__name__}: {error}") from error
    if not isinstance(made, Task):
        raise TaskError(f"{spec.name} returned no task but {made!r}")
    return made


def _bind(function: Callable[..., object], arguments: Mapping[str, object], name: str) -> Container[str]:
    """The parameters of the function; a `TaskError` if it does not take the arguments."""
    try:
        signature = inspect.signature(function)
    except ValueError as error:  # of a function written in C
        raise TaskError(f"{name} is no task but {function!r}: name a Task, a subclass of Task or a function") from error
    try:
        if "spec" not in signature.parameters:
            signature.bind(**arguments)
    except TypeError as error:
        raise TaskError(f"{name} takes {signature}, but got {dict(arguments)}: {error}") from error
    return signature.parameters


def _arguments(spec: Spec) -> dict[str, Any]:
    arguments: dict[str, Any] = {name: _value(text) for name, text in spec.options}
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
            raise TaskError(f"{name}: a task's {attribute} is a {kind.__name__}, see ticketry.tasks.task.Task")
    for method in _METHODS_OF_COURSES if _overrides(task, "course") else _METHODS:
        if not _overrides(task, method):
            raise TaskError(f"{name}: {type(task).__name__} has no {method}, see ticketry.tasks.task.Task")
        _check_call(task, method, name)


def _check_call(task: Task, method: str, name: str) -> None:
    """Refuse a method that does not take what `Task` has it called with, before a training meets it."""
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


def _overrides(task: Task, method: str) -> bool:
    return getattr(type(task), method) is not getattr(Task, method)


_WORDS = (bool, int, float, str, PurePath)
"""Types that an option can be written as."""
_PLAIN = (*_WORDS, bytes, type(None))


def recreate(task: object, get: Callable[..., Task]) -> Task:
    """The task itself if it has a key; else the one that its class and its constructor's arguments name.

    What is trained then is that one, which any process can make again, under its key. It is taken for the same only if
    it holds the very values that `task` does.

    Args:
        task: what was given as a task.
        get: `catalogue.get`.

    Raises:
        TaskError: if it is no task, or no name and options make the same one.
    """
    if not isinstance(task, Task):
        raise TaskError(_explain_no_task(task))
    kind = type(task)
    if task.spec is not None or isinstance(task, OwnTask) or kind.key is not Task.key:
        return task
    name = f"{kind.__module__}:{kind.__qualname__}"
    if why := _explain_unnamed(kind, name):
        raise TaskError(
            f'the task {kind.__name__} {why}: write the class into a module, and name it tk.task("module:'
            f"{kind.__name__}\", options={{…}}); or give it a key() that returns what tells its numbers from another's"
        )
    options = _options(task, name)
    written = ", ".join(f"{argument}={value!r}" for argument, value in options.items())
    made = get(name, model=options.pop("model", None), options=options)
    if not isinstance(made, OwnTask):
        raise _difference_error(name, "that name is of a task that is built in")
    ours, theirs = vars(task), vars(made.inner)
    for attribute in {**ours, **theirs}:
        if attribute not in ours or attribute not in theirs or not _are_equal(ours[attribute], theirs[attribute]):
            raise _difference_error(
                name, f"its {attribute} is not that of {kind.__name__}({written}), or cannot be compared"
            )
    return made


def _explain_no_task(given: object) -> str:
    what = f"task= is a task or its name, not {given!r}" if given is None else f"task= is no {type(given).__name__}"
    if isinstance(given, nn.Module):
        return (
            f"{what}: a task is a network with its data, loss and metric. Write a subclass of tk.Task whose build()"
            " returns it (docs/tasks.md), or prune it in your own loop by tk.prune and tk.hold"
        )
    if isinstance(given, type) and issubclass(given, Task):
        return f"task= is a task, not the class {given.__name__}: call it, {given.__name__}()"
    return f'{what}: give a name ("digits", "my_tasks:Line") or a tk.Task'


def _explain_unnamed(kind: type[Task], name: str) -> str:
    """Why no other process can find a class by its name; empty if it can."""
    if kind.__module__ == "__main__":
        return "is of a script or a notebook, in which other processes cannot find it"
    if "<locals>" in kind.__qualname__:
        return "is of a class inside a function, in which other processes cannot find it"
    import_from_here()
    try:
        found = load_object(name)
    except TicketryError as error:
        return f"cannot be made again by its name {name} ({error})"
    return "" if found is kind else f"is of a class that is not the one that {name} is now"


def _options(task: Task, name: str) -> dict[str, Any]:
    """The arguments of its constructor that are not their defaults, each by the attribute of the same name."""
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
    """Whether two values are known to be equal, and of one kind; of others than plain ones it is not."""
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
