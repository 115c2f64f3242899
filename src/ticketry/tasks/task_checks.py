"""Checks of the values that a task's own methods return, with messages for the author of the task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ticketry.errors import TaskError, TicketryError
from ticketry.records.schema import LARGEST
from ticketry.tasks.task import Split, Splits, Task

_SPLITS: Sequence[str] = ("train", "validation", "test")
T = TypeVar("T")


def build_model(task: Task) -> nn.Module:
    """A new model of the task.

    Raises:
        TaskError: if `Task.build` gives none, or one without parameters, with some that have no shape yet, or whose
            state dict has anything but tensors.
    """
    model = task.build()
    if not isinstance(model, nn.Module):
        raise TaskError(f"{_method(task, 'build')} gave {_describe(model)}: return a torch.nn.Module")
    if why := _find_problem(model):
        raise TaskError(f"{_method(task, 'build')} gave {_describe(model)} {why}")
    return model


def _find_problem(model: nn.Module) -> str:
    """Why no lab can train and store it; an empty text if one can."""
    if not any(True for _ in model.parameters()):
        return "without a parameter: there is nothing to train"
    if unshaped := [name for name, one in model.named_parameters() if is_lazy(one)]:
        return f"whose {unshaped[0]} has no shape yet: call a lazy module once in build()"
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            return f"whose state dict has {_describe(value)} as {name!r}: states are stored as tensors"
    return ""


def load_splits(task: Task, data: Path | None) -> Splits:
    """The task's examples.

    Raises:
        TaskError: if `Task.load` gives anything but `Splits` of tensors, or a split with more or fewer targets than
            inputs.
    """
    splits = task.load(data)
    if not isinstance(splits, Splits):
        raise TaskError(
            f"{_method(task, 'load')} gave {_describe(splits)}: return ticketry.Splits(train, validation, test), each a"
            " ticketry.Split(inputs, targets)"
        )
    for name in _SPLITS:
        split = getattr(splits, name)
        if not isinstance(split, Split):
            raise TaskError(
                f"{_method(task, 'load')} gave {_describe(split)} as its {name} split: make it"
                " ticketry.Split(inputs, targets)"
            )
        for what in ("inputs", "targets"):
            if not isinstance(own := getattr(split, what), Tensor):
                raise TaskError(
                    f"{_method(task, 'load')} gave {_describe(own)} as the {what} of its {name} split: give a"
                    " torch tensor"
                )
        if len(split.inputs) != len(split.targets):
            raise TaskError(
                f"{_method(task, 'load')} gave {len(split.inputs)} inputs and {len(split.targets)} targets in its"
                f" {name} split: each input has one target"
            )
    return splits


def sized(task: Task, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of the task's course.

    Raises:
        TaskError: if one is missing, or a split has no examples.
    """
    for split in _SPLITS:
        if not sizes.get(split):
            raise TaskError(f"the task {task.name!r} has no examples in its {split} split")
    return {split: int(sizes[split]) for split in _SPLITS}


def prepared(task: Task, inputs: Tensor) -> Tensor:
    """Return the inputs of the model.

    Raises:
        TaskError: if `Task.prepare` fails, or gives no tensor.
    """
    found = _call_method(task, "prepare", task.prepare, inputs)
    if not isinstance(found, Tensor):
        raise TaskError(f"{_method(task, 'prepare')} gave {_describe(found)}: return a tensor")
    return found


def outputs(task: Task, model: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The model's, of prepared inputs.

    Raises:
        TaskError: if the model fails, or gives no tensor.
    """
    found = _call_method(task, "", model, inputs)
    if not isinstance(found, Tensor):
        raise TaskError(
            f"the model of the task {task.name!r} gave {_describe(found)}: losses and metrics need one tensor, so"
            " build one whose forward returns that"
        )
    return found


def loss(task: Task, outputs: Tensor, targets: Tensor, **options: float) -> Tensor:
    """Loss of a batch.

    Raises:
        TaskError: if `Task.loss` fails.
    """
    return _call_method(task, "loss", task.loss, outputs, targets, **options)


def _call_method(task: Task, method: str, call: Callable[..., T], *tensors: Tensor, **options: float) -> T:
    """Call a method of the task; if it fails, the error names the method and its arguments."""
    try:
        return call(*tensors, **options)
    except (TicketryError, torch.OutOfMemoryError):  # which say enough
        raise
    except Exception as error:
        raise _failed(task, method, error, *tensors) from error


def _failed(task: Task, method: str, error: Exception, *tensors: Tensor) -> TaskError:
    where = _method(task, method) if method else f"the model of the task {task.name!r}"
    told = " and ".join(f"{_describe(tensor)} ({str(tensor.dtype).removeprefix('torch.')})" for tensor in tensors)
    alone = " (a single example: where the last batch of an epoch has one, choose another batch)"
    alone = alone if not method and tensors[0].shape[:1] == (1,) else ""
    return TaskError(f"{where} failed with {told}{alone}: {type(error).__name__}: {error}")


def differentiable(task: Task, loss: Any) -> Tensor:
    """A step's loss, which is differentiated next.

    Raises:
        TaskError: if it is no tensor, not a single number, or has no gradient.
    """
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss
    wanted = "a loss is one number, computed from the model's outputs by torch"
    if not isinstance(loss, Tensor):
        raise TaskError(f"a loss of the task {task.name!r} is {_describe(loss)}: {wanted}")
    if loss.numel() != 1:
        raise TaskError(
            f"a loss of the task {task.name!r} is a tensor of shape {list(loss.shape)}: {wanted}; take the mean over"
            " the batch"
        )
    raise TaskError(
        f"a loss of the task {task.name!r} has no gradient: {wanted}, without detach(), no_grad() or item(), and the"
        " model has a parameter that requires one"
    )


def sums(task: Task, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return the result of `Task.measure` for a batch.

    Raises:
        TaskError: if it fails, or that is no mapping from names to single numbers in tensors.
    """
    sums = _call_method(task, "measure", task.measure, outputs, targets)
    if not isinstance(sums, Mapping):
        raise TaskError(
            f"{_method(task, 'measure')} gave {_describe(sums)}: return a dict of sums over the batch, by name"
        )
    for name, value in sums.items():
        if not (isinstance(value, Tensor) and value.numel() == 1):
            raise TaskError(
                f"{_method(task, 'measure')} gave {_describe(value)} as {name!r}: sum it over the batch to a tensor of"
                " one number"
            )
    return dict(sums)


def measured(task: Task, metrics: Any) -> dict[str, float]:
    """The metrics of a split.

    Raises:
        TaskError: if they are no mapping from names to numbers, or the task's own metric is not among them.
    """
    giver = f"the metrics of the task {task.name!r} (summary, or its course's evaluate)"
    if not isinstance(metrics, Mapping):
        raise TaskError(f"{giver} are {_describe(metrics)}: return a dict of numbers by name")
    if task.metric.name not in metrics:
        there = ", ".join(map(repr, metrics)) or "none"
        raise TaskError(f"{giver} lack {task.metric.name!r}, by which its networks are compared; there are: {there}")
    found = {}
    for name, value in metrics.items():
        if not (isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)):
            raise TaskError(f"{giver} have {_describe(value)} as {name!r}: make it a number")
        found[name] = float(value)
    return found


def comparable(task: Task, metrics: Mapping[str, float], split: str) -> None:
    """Make sure that a trained network can be compared with others.

    Raises:
        TaskError: if what networks are compared by is not finite, or larger than records have it. Other metrics may be
            (a loss that overflows), and are null then, see `segment.replace_non_finite`.
    """
    value = metrics[task.metric.name]
    if math.isfinite(value) and abs(value) > LARGEST:
        raise TaskError(
            f"{task.metric.name} of the task {task.name!r} is {value:g} on its {split} split: records have numbers up"
            f" to {LARGEST:g}; give it in a larger unit, or its logarithm"
        )
    if not math.isfinite(value):
        raise TaskError(
            f"{task.metric.name} of the task {task.name!r} is {value} on its {split} split after a training whose"
            " losses are finite: no network can be compared by that; see what its summary divides by, or takes a root"
            " or an exponential of"
        )


def _method(task: Task, name: str) -> str:
    return f"{name}() of the task {task.name!r}"


def _describe(value: object) -> str:
    """Describe a value by its type, or by its text if that is more informative."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    return f"a {type(value).__name__}"
