"""A task that was made in Python, as the request by name that makes the same one again: then it has a key."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from inspect import Parameter
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.errors import TaskError, TicketryError
from ticketry.registry import import_from_here, load
from ticketry.tasks.task import Task
from ticketry.tasks.user_task import OwnTask

_WORDS = (bool, int, float, str, PurePath)
"""What an option can be written as."""
_PLAIN = (*_WORDS, bytes, type(None))


def remade(task: object, get: Callable[..., Task]) -> Task:
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
        raise TaskError(_no_task(task))
    kind = type(task)
    if task.spec is not None or isinstance(task, OwnTask) or kind.key is not Task.key:
        return task
    name = f"{kind.__module__}:{kind.__qualname__}"
    if why := _unnamed(kind, name):
        raise TaskError(
            f'the task {kind.__name__} {why}: write the class into a module, and name it tk.task("module:'
            f"{kind.__name__}\", options={{…}}); or give it a key() that returns what tells its numbers from another's"
        )
    options = _options(task, name)
    written = ", ".join(f"{argument}={value!r}" for argument, value in options.items())
    made = get(name, model=options.pop("model", None), options=options)
    if not isinstance(made, OwnTask):
        raise _unlike(name, "that name is of a task that is built in")
    ours, theirs = vars(task), vars(made.inner)
    for attribute in {**ours, **theirs}:
        if attribute not in ours or attribute not in theirs or not _same(ours[attribute], theirs[attribute]):
            raise _unlike(name, f"its {attribute} is not that of {kind.__name__}({written}), or cannot be compared")
    return made


def _no_task(given: object) -> str:
    what = f"task= is a task or its name, not {given!r}" if given is None else f"task= is no {type(given).__name__}"
    if isinstance(given, nn.Module):
        return (
            f"{what}: a task is a network with its data, loss and metric. Write a subclass of tk.Task whose build()"
            " returns it (docs/tasks.md), or prune it in your own loop by tk.prune and tk.hold"
        )
    if isinstance(given, type) and issubclass(given, Task):
        return f"task= is a task, not the class {given.__name__}: call it, {given.__name__}()"
    return f'{what}: give a name ("digits", "my_tasks:Line") or a tk.Task'


def _unnamed(kind: type[Task], name: str) -> str:
    """Why no other process can find a class by its name; empty if it can."""
    if kind.__module__ == "__main__":
        return "is of a script or a notebook, in which other processes cannot find it"
    if "<locals>" in kind.__qualname__:
        return "is of a class inside a function, in which other processes cannot find it"
    import_from_here()
    try:
        found = load(name)
    except TicketryError as error:
        return f"cannot be made again by its name {name} ({error})"
    return "" if found is kind else f"is of a class that is not the one that {name} is now"


def _options(task: Task, name: str) -> dict[str, Any]:
    """The arguments of its constructor that are not their defaults, each by the attribute of the same name."""
    options = {}
    for one in inspect.signature(type(task)).parameters.values():
        if one.kind not in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY):
            raise _unlike(name, f"its constructor takes {one}")
        if one.name not in vars(task):
            raise _unlike(name, f"it keeps its constructor's argument {one.name!r} in no attribute of that name")
        value = vars(task)[one.name]
        if _same(value, one.default):
            continue
        if not isinstance(value, _WORDS):
            raise _unlike(name, f"its {one.name} is a {type(value).__name__}, which is no option's value")
        options[one.name] = value
    return options


def _same(one: object, other: object) -> bool:
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
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    return is_dataclass(one) and hasattr(one, "__dict__") and _same(vars(one), vars(other))


def _unlike(name: str, why: str) -> TaskError:
    return TaskError(
        f'no name and options make this task {name.partition(":")[2]} again ({why}): name it tk.task("{name}",'
        " options={…}), or, where options cannot say it, name a function that returns it"
    )
