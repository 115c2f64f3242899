"""Divide a batch among processes so that together they train like one process, and check that they do.

Dropout, stochastic depth, noise and augmentation draw random numbers for examples. In each process `Draws` draws the
numbers for the whole batch, and uses those of the process's own examples. Whether random numbers belong to examples is
guessed from shapes, which may fail (a weight with 32 rows looks like a batch of 32 examples). So `check_parts` compares
some steps before a training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from ticketry.core.structure.model_copies import EagerMode
from ticketry.errors import TaskError, TrainingError
from ticketry.lab.training.precision import Arithmetic
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Course, PartOfBatch
from ticketry_engine.support.process_state import private_random_state
from ticketry_engine.support.seeds import mix_seeds, seed_torch

_LIKE = {"rand_like", "randn_like", "randint_like"}
_OF_SIZE = {"rand", "randn", "randint"}
_DRAWN_FROM = {"bernoulli", "normal", "poisson"}
"""Names of operations that draw random numbers for a tensor of probabilities, means or rates."""
_IN_PLACE = {
    "bernoulli_",
    "uniform_",
    "normal_",
    "random_",
    "exponential_",
    "geometric_",
    "cauchy_",
    "log_normal_",
}
_TOLERANCE = 1e-2
"""Maximum difference between the outputs of the parts and of the whole batch, relative to the norm of the outputs.
Rounding errors are smaller, and the effect of different dropout masks is larger."""
_NOISE = 0.1
"""Maximum of the random numbers that are added to constant parameters."""

Drawn = tuple[str, list[int]]
"""Name of a random operation of torch and the shape of its result."""


class Draws(EagerMode):  # type: ignore[no-untyped-call]
    """While active, gives the examples of a part of a batch the random numbers that they have in the whole batch.

    A tensor is assumed to belong to examples if its first dimension is a multiple of the number of examples, as for
    patches or tokens. All other random numbers are the same in all processes. A random operation that cannot be
    divided, such as a random order of the batch, raises `TrainingError`.
    """

    def __init__(self, part: PartOfBatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._part = part

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if not draws_random_numbers(func, args, given):
            return func(*args, **given)
        name = func.overloadpacket.__name__
        if name in _IN_PLACE:
            return self._draw_in_place(func, args, given)
        if name in _LIKE or (name in _DRAWN_FROM and args and isinstance(args[0], Tensor)):
            return self._draw_in_shape_of_tensor(func, args, given, filled=name in _DRAWN_FROM)
        if name in _OF_SIZE:
            return self._draw_with_size(func, args, given)
        if name == "native_dropout":
            return self._draw_dropout(func, *args)
        raise TrainingError(
            f"the network or its augmentation draws random numbers by torch's {name}, which cannot be cut among several"
            " devices: train it on one (--devices 1)"
        )

    def _draw_in_place(self, func: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        own = args[0]
        if (whole := self._whole_batch_shape(own.shape)) is None:
            return func(*args, **given)
        drawn = func(_empty_like(own, whole), *(self._embed_in_whole_batch(one) for one in args[1:]), **given)
        return own.copy_(drawn[self._own_rows_of_batch(own.shape)])

    def _draw_in_shape_of_tensor(
        self, func: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any], filled: bool
    ) -> Any:
        own = args[0]
        if (whole := self._whole_batch_shape(own.shape)) is None:
            return func(*args, **given)
        like = self._embed_in_whole_batch(own) if filled else _empty_like(own, whole)
        return func(like, *(self._embed_in_whole_batch(one) for one in args[1:]), **given)[
            self._own_rows_of_batch(own.shape)
        ]

    def _draw_with_size(self, func: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        place = next(number for number, one in enumerate(args) if isinstance(one, (list, tuple)))
        if (whole := self._whole_batch_shape(args[place])) is None:
            return func(*args, **given)
        return func(*args[:place], whole, *args[place + 1 :], **given)[self._own_rows_of_batch(args[place])]

    def _draw_dropout(self, func: Callable[..., Any], own: Tensor, p: float, train: bool | None) -> Any:
        if (whole := self._whole_batch_shape(own.shape)) is None or not train:
            return func(own, p, train)
        kept = func(torch.ones_like(_empty_like(own, whole)), p, train)[1][self._own_rows_of_batch(own.shape)]
        return own * kept * (1 / (1 - p) if p < 1 else 0.0), kept

    def _whole_batch_shape(self, shape: Sequence[int]) -> list[int] | None:
        """Return the shape that a tensor of `shape` has for the whole batch; None if its rows are not examples."""
        if not shape or not shape[0] or shape[0] % self._part.own:
            return None
        return [shape[0] // self._part.own * self._part.whole, *shape[1:]]

    def _own_rows_of_batch(self, shape: Sequence[int]) -> slice:
        each = shape[0] // self._part.own
        return slice(self._part.first * each, (self._part.first + self._part.own) * each)

    def _embed_in_whole_batch(self, value: Any) -> Any:
        """Embed a tensor of examples in a tensor of zeros for the whole batch; return any other value unchanged."""
        if not isinstance(value, Tensor) or (whole := self._whole_batch_shape(value.shape)) is None:
            return value
        found = _empty_like(value, whole).zero_()
        found[self._own_rows_of_batch(value.shape)] = value
        return found


def draws_random_numbers(func: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> bool:
    """Return whether the torch operation `func` draws random numbers when it is called with these arguments."""
    return _is_random_operation(func) and (
        "attention" not in func.overloadpacket.__name__ or _attention_dropout_probability(func, args, given) > 0
    )


@functools.lru_cache(maxsize=1024)
def _is_random_operation(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def _empty_like(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return an uninitialised tensor of a shape, with the memory layout of `tensor`, on which random numbers depend."""
    found = tensor.new_empty(shape)
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return found.to(memory_format=torch.channels_last)
    # Recurrent layers hold the examples of each word side by side. With one example, its axis has the words' stride.
    stride, size = tensor.stride(), tensor.shape
    axes = sorted(range(tensor.dim()), key=lambda axis: (-stride[axis], size[axis] == 1))
    if axes == list(range(tensor.dim())) or not tensor.permute(axes).is_contiguous():
        return found
    permuted = tensor.new_empty([shape[axis] for axis in axes])
    return permuted.permute([axes.index(axis) for axis in range(tensor.dim())])


def _attention_dropout_probability(func: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> float:
    """Return the dropout probability in a call of fused attention."""
    names = [argument.name for argument in func._schema.arguments]
    defaults = {argument.name: argument.default_value for argument in func._schema.arguments}
    called = {**defaults, **dict(zip(names, args)), **given}  # noqa: B905 - later arguments have their defaults
    return float(called.get("dropout_p") or 0.0)


# -- the check before a training ---------------------------------------------------------------------------------------


def add_noise_to_constants(model: nn.Module) -> nn.Module:
    """Add small noise to constant parameters, which could hide differences from `check_parts`; return the model."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and bool((parameter == parameter.flatten()[:1]).all()):
                parameter.add_(_NOISE * torch.rand(parameter.shape, generator=draw).to(parameter.dtype))
    return model


def check_parts(name: str, course: Course, model: nn.Module, recipe: Recipe, steps: Iterable[int], world: int) -> None:
    """Raise `TaskError` if the parts of a batch draw other random numbers, or give other outputs, than the whole batch.

    Batch norms run in evaluation mode. `model` must be new and on the CPU, and is modified. `steps` must include a
    batch of each size that occurs; `world` is the number of parts.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
            if module.running_mean is None:  # the norm has only the statistics of the batch
                module.forward = lambda inputs: inputs  # type: ignore[assignment, method-assign]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for step in steps:
        whole, outputs = _compute_outputs_and_random_draws(course, model, before, recipe, step)
        parts = []
        for rank in range(world):
            try:
                drawn, own = _compute_outputs_and_random_draws(
                    course.cut(_SimulatedRank(rank, world)), model, before, recipe, step
                )
            except TrainingError as error:  # numbers that cannot be split
                raise TaskError(str(error)) from error
            _check_same_random_draws(name, whole, drawn)
            parts.append(own)
        _check_same_outputs(name, outputs, torch.cat(parts))


@torch.no_grad()
def _compute_outputs_and_random_draws(
    course: Course, model: nn.Module, before: Mapping[str, Tensor], recipe: Recipe, step: int
) -> tuple[list[Drawn], Tensor]:
    """Compute the loss of a step after setting buffers to `before`; return the random draws and the model's outputs."""
    for name, buffer in model.named_buffers():
        if name in before:
            buffer.data = before[name].clone()
    found = [torch.empty(0)]
    hook = model.register_forward_hook(lambda _, __, outputs: found.append(tree_leaves(outputs)[0]))
    session, recorder = course.session(recipe, 0, Arithmetic()), _DrawRecorder()
    with private_random_state(), recorder, closing(session.batches(range(step, step + 1))) as batches:
        seed_torch(mix_seeds(0, "step", step))
        session.loss(model, next(batches))
    hook.remove()
    return recorder.drawn, found[-1]


def _check_same_random_draws(name: str, whole: Sequence[Drawn], drawn: Sequence[Drawn]) -> None:
    if drawn == whole:
        return
    pairs = zip(whole, drawn, strict=False)
    operation, shape = next((one for one, other in pairs if one != other), max(whole, drawn, key=len)[-1])
    raise TaskError(
        f"{name} draws random numbers (by torch's {operation}, of the shape {shape} for a batch) that cannot be cut"
        " among several devices, each with a part of the batch: what is drawn for each example needs the examples along"
        " its first axis, and what is drawn for all of them may not look like that. Train it on one (--devices 1), or"
        " put examples first (batch_first=True; an nn.LSTM with dropout has words first inside, nn.Dropout between"
        " layers has not)"
    )


def _check_same_outputs(name: str, whole: Tensor, parts: Tensor) -> None:
    alike = parts.shape == whole.shape
    apart = float((parts.double() - whole.double()).norm() / whole.double().norm()) if alike else 1.0
    if apart > _TOLERANCE:  # False for NaN
        raise TaskError(
            f"what the network of {name} gives for a part of a batch is not what it gives for these examples in the"
            f" whole batch ({apart:.1%} apart): it draws random numbers in another order than that of the examples, or"
            " looks at other examples of the batch, so that several devices, each with a part of the batch, would train"
            " something else: train it on one (--devices 1)"
        )


class _DrawRecorder(EagerMode):  # type: ignore[no-untyped-call]
    """While active, records the names of random operations and the shapes of their results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn: list[Drawn] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if draws_random_numbers(func, args, kwargs or {}):
            self.drawn += [(func.overloadpacket.__name__, list(one.shape)) for one in tree_leaves(found)]
        return found


class _SimulatedRank:
    """Stands in for one of several processes (ranks), to compute its part of a batch in this process."""

    in_parts = False

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def gather(self, value: Any) -> list[Any]:
        return [value] * self.world

    def drawing(self, place: PartOfBatch) -> AbstractContextManager[object]:
        return Draws(place)
