"""Call methods of a task and check the returned values.

Each function raises `TaskError`, with a message for the author of the task, if the method fails or returns something
else than the base class `Task` prescribes.
"""

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
    """Return a new model of the task; raise `TaskError` if `Task.build` fails or the model is unfit."""
    model = task.build()
    if not isinstance(model, nn.Module):
        raise TaskError(f"{_method_name(task, 'build')} gave {_describe(model)}: return a torch.nn.Module")
    problem = ""
    if not any(True for _ in model.parameters()):
        problem = " without a parameter: there is nothing to train"
    elif unshaped := [name for name, one in model.named_parameters() if is_lazy(one)]:
        problem = f" whose {unshaped[0]} has no shape yet: call a lazy module once in build()"
    else:
        for name, value in model.state_dict().items():
            if not isinstance(value, Tensor):
                problem = f" whose state dict has {_describe(value)} as {name!r}: states are stored as tensors"
    if problem:
        raise TaskError(f"{_method_name(task, 'build')} gave {_describe(model)}{problem}")
    return model


def load_splits(task: Task, data: Path | None) -> Splits:
    """Return the splits of the task; raise an error if `Task.load` returns anything invalid."""
    splits, gave = task.load(data), f"{_method_name(task, 'load')} gave"
    if not isinstance(splits, Splits):
        raise TaskError(
            f"{gave} {_describe(splits)}: return ticketry.Splits(train, validation, test),"
            " each a ticketry.Split(inputs, targets)"
        )
    for name in _SPLITS:
        split = getattr(splits, name)
        if not isinstance(split, Split):
            raise TaskError(f"{gave} {_describe(split)} as its {name} split: make it ticketry.Split(inputs, targets)")
        for what in ("inputs", "targets"):
            if not isinstance(own := getattr(split, what), Tensor):
                raise TaskError(f"{gave} {_describe(own)} as the {what} of its {name} split: give a torch tensor")
        if len(split.inputs) != len(split.targets):
            raise TaskError(
                f"{gave} {len(split.inputs)} inputs and {len(split.targets)} targets in its {name} split: each input"
                " has one target"
            )
    return splits


def check_sizes(task: Task, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return `sizes`, the number of examples in each split; raise an error if they are invalid."""
    for split in _SPLITS:
        if not sizes.get(split):
            raise TaskError(f"the task {task.name!r} has no examples in its {split} split")
    return {split: int(sizes[split]) for split in _SPLITS}


def prepare_inputs(task: Task, inputs: Tensor) -> Tensor:
    """Return the result of `Task.prepare`: the inputs of the model for the stored `inputs`."""
    found = _call_method(task, "prepare", task.prepare, inputs)
    if not isinstance(found, Tensor):
        raise TaskError(f"{_method_name(task, 'prepare')} gave {_describe(found)}: return a tensor")
    return found


def compute_outputs(task: Task, model: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Return the model's outputs for prepared inputs; raise an error that names the task if this fails."""
    found = _call_method(task, "", model, inputs)
    if not isinstance(found, Tensor):
        raise TaskError(
            f"the model of the task {task.name!r} gave {_describe(found)}: losses and metrics need one tensor, so"
            " build one whose forward returns that"
        )
    return found


def compute_loss(task: Task, outputs: Tensor, targets: Tensor, **options: float) -> Tensor:
    """Return the result of `Task.loss` for a batch; if the call fails, raise an error that names the task."""
    return _call_method(task, "loss", task.loss, outputs, targets, **options)


def _call_method(task: Task, method: str, call: Callable[..., T], *tensors: Tensor, **options: float) -> T:
    """Return `call(*tensors, **options)`, a call of the task's method `method`; errors name method and arguments."""
    try:
        return call(*tensors, **options)
    except (TicketryError, torch.OutOfMemoryError):  # their messages suffice
        raise
    except Exception as error:
        where = _method_name(task, method) if method else f"the model of the task {task.name!r}"
        arguments = " and ".join(f"{_describe(each)} ({str(each.dtype).removeprefix('torch.')})" for each in tensors)
        alone = ""
        if not method and tensors[0].shape[:1] == (1,):
            alone = " (a single example: where the last batch of an epoch has one, choose another batch)"
        raise TaskError(f"{where} failed with {arguments}{alone}: {type(error).__name__}: {error}") from error


def check_loss(task: Task, loss: Any) -> Tensor:
    """Return `loss`, the loss of a training step; raise an error if it cannot be differentiated."""
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


def measure_sums(task: Task, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return the result of `Task.measure` for a batch; raise an error if it is invalid."""
    sums = _call_method(task, "measure", task.measure, outputs, targets)
    gave = f"{_method_name(task, 'measure')} gave"
    if not isinstance(sums, Mapping):
        raise TaskError(f"{gave} {_describe(sums)}: return a dict of sums over the batch, by name")
    for name, value in sums.items():
        if not (isinstance(value, Tensor) and value.numel() == 1):
            raise TaskError(f"{gave} {_describe(value)} as {name!r}: sum it over the batch to a tensor of one number")
    return dict(sums)


def check_metrics(task: Task, metrics: Any) -> dict[str, float]:
    """Return the metrics of a split as floats; the metric of the task must be among them."""
    subject = f"the metrics of the task {task.name!r} (summary, or its course's evaluate)"
    if not isinstance(metrics, Mapping):
        raise TaskError(f"{subject} are {_describe(metrics)}: return a dict of numbers by name")
    if task.metric.name not in metrics:
        present = ", ".join(map(repr, metrics)) or "none"
        raise TaskError(
            f"{subject} lack {task.metric.name!r}, by which its networks are compared; there are: {present}"
        )
    found = {}
    for name, value in metrics.items():
        if not (isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)):
            raise TaskError(f"{subject} have {_describe(value)} as {name!r}: make it a number")
        found[name] = float(value)
    return found


def check_comparable(task: Task, metrics: Mapping[str, float], split: str) -> None:
    """Raise `TaskError` unless the metric of the task is finite and small enough for records.

    Other metrics may be infinite, NaN or too large; they are then stored as null.
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


def _method_name(task: Task, name: str) -> str:
    """Return the method `name` and the name of the task as words for an error message."""
    return f"{name}() of the task {task.name!r}"


def _describe(value: object) -> str:
    """Return a description of a value for an error message: its type, or its text if that says more."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    return f"a {type(value).__name__}"
