"""Runs a model once and follows every index of every parameter through it.

The model runs on real numbers, in float64, under a dispatch mode that sees each ATen operation. A rule for each
operation (`rules`) says which labels become one channel and which must stay; an operation without a rule freezes all
that flows into it. So what is left free can be removed from all tensors at once without changing anything else.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from ticketry.core.scope import normal_name
from ticketry.core.structure.axes import Axes, Book
from ticketry.core.structure.labels import Ids, Labels
from ticketry.errors import StructureError

Inputs = Tensor | tuple[Any, ...]

Site = tuple[str, tuple[int, ...], tuple[int, ...]]
"""A `view`: name of the module that runs it, shapes before and after."""

NO_CHANNEL = ""
"""Reason of labels that nobody would take for channels: the height and width of a kernel."""


@dataclass
class Trace:
    """What running a model has shown."""

    model: nn.Module
    """The copy that ran: float64, on the CPU."""
    labels: Labels = field(default_factory=Labels)
    book: Book = field(default_factory=Book)
    tensors: dict[tuple[str, int], Ids] = field(default_factory=dict)
    """(name of a parameter or buffer, dimension) -> label of each index"""
    attributes: dict[tuple[str, str], Ids] = field(default_factory=dict)
    """(name of a module, attribute) -> one label for each unit that the attribute counts"""
    choices: Mapping[Site, int] = field(default_factory=dict)
    """Where a dimension is cut into several, which of these can be narrower, counted from the last; by default 0."""
    cuts: dict[Site, tuple[Ids, int]] = field(default_factory=dict)
    """Such places: labels of all that is cut, and into how many dimensions."""
    stack: list[str] = field(default_factory=list)
    """Names of the modules that run now, the innermost last."""
    seen: set[int] = field(default_factory=set)
    """Storages of all tensors that went into an operation."""

    @property
    def where(self) -> str:
        return self.stack[-1] if self.stack else ""

    @property
    def module(self) -> nn.Module:
        """The innermost module that runs now."""
        return self.model.get_submodule(self.where)

    def reason(self, why: str) -> str:
        return f"{why} (in {self.where})" if self.where else why

    # -- what rules do -------------------------------------------------------------------------------------------------

    def freeze(self, ids: Ids | None, why: str) -> None:
        if ids is not None:
            self.labels.freeze(ids, why and self.reason(why))

    def freeze_axes(self, axes: Axes, dimensions: Iterable[int], why: str) -> None:
        for dimension in dimensions:
            self.freeze(axes.labels[dimension], why)

    def join(self, one: Ids | None, other: Ids | None) -> Ids | None:
        """Two axes that are met index by index become one; if one of them stays, so does the other."""
        if one is None or other is None:
            self.freeze(
                other if one is None else one,
                "it meets a width that stays, as that of inputs",
            )
            return None
        if len(one) != len(other):
            self.freeze(np.concatenate([one, other]), "it meets a channel's dimension of another size")
            return None
        self.labels.unite(one, other, self.reason("it meets a channel that stays"))
        return one

    def count(self, attribute: str, ids: Ids | None) -> None:
        """`attribute` of the module that runs now counts the units of these labels."""
        if ids is not None:
            known = self.attributes.setdefault((self.where, attribute), ids)
            if len(known) == len(ids):  # a module that runs twice
                self.labels.unite(known, ids, self.reason("it meets a channel that stays"))


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside the wrappers of torch.compile and of data-parallel training."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def double_copy(model: nn.Module) -> nn.Module:
    """A copy of the model in float64 on the CPU, without gradients."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recurrent layers say that their weights are not in one piece
        try:
            twin = copy.deepcopy(model).to("cpu").double()
        except Exception as error:  # a user's model may hold anything
            raise StructureError(
                f"{type(model).__name__} cannot be copied ({type(error).__name__}: {str(error)[:120]}):"
                " make what it holds besides parameters and buffers fit for copy.deepcopy"
            ) from error
    return twin.requires_grad_(False)


def double_inputs(inputs: Inputs) -> tuple[Any, ...]:
    """Example inputs as the tuple of arguments, floats as float64, on the CPU."""
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)

    def convert(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        value = value.detach().cpu()
        return value.double() if value.is_floating_point() else value

    converted: tuple[Any, ...] = tree_map(convert, arguments)
    return converted


@contextmanager
def plain_operations() -> Iterator[None]:
    """No gradients, no fused transformer layers, and torch's random state as before."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def trace(model: nn.Module, example_inputs: Inputs, choices: Mapping[Site, int]) -> Trace:
    """Run a copy of `model` in evaluation mode and in training mode, where it may do other things.

    Raises:
        StructureError: if the model does not run on the inputs.
    """
    twin = double_copy(unwrapped(model))
    inputs = double_inputs(example_inputs)
    found = Trace(twin, choices=choices)
    _label(found)
    _run(found, inputs, training=False)
    unused = _unused(found)
    try:
        _run(found, inputs, training=True)
    except StructureError:  # a batch norm of one example and one pixel has no variance
        if unused:
            raise
    for name in _unused(found):
        for (other, _), ids in found.tensors.items():
            if other == name:
                found.labels.freeze(ids, "the model does not use it on the example inputs")
    return found


def _label(found: Trace) -> None:
    tensors = {**dict(found.model.named_parameters()), **dict(found.model.named_buffers())}
    parameters = {id(parameter) for parameter in found.model.parameters()}
    for name, tensor in tensors.items():
        labels = [found.labels.new(size) if size > 1 else None for size in tensor.shape]
        found.tensors |= {
            (normal_name(name), dimension): ids for dimension, ids in enumerate(labels) if ids is not None
        }
        found.book.set(tensor, Axes(list(labels), [id(tensor) in parameters] * tensor.dim()))
    for name, module in found.model.named_modules():
        _tie(found, name, module)


def _tie(found: Trace, name: str, module: nn.Module) -> None:
    """What a module's class demands of its parameters, whatever it computes."""
    if isinstance(module, nn.MultiheadAttention):
        why = f"nn.MultiheadAttention has one width for inputs, heads and outputs ({name})"
        for parameter in module.parameters():
            found.freeze_axes(found.book.get(parameter), range(parameter.dim()), why)
    if isinstance(module, _ConvNd):
        for ids in found.book.get(module.weight).labels[2:]:
            if ids is not None:
                found.labels.freeze(ids, NO_CHANNEL)
    if isinstance(module, nn.RNNBase):
        _tie_recurrent(found, module)


def _tie_recurrent(found: Trace, module: nn.RNNBase) -> None:
    """A recurrent module has one hidden size: unit j of every layer, direction and gate goes together."""
    first = found.book.get(_tensor(module, "weight_hh_l0")).labels[0]
    assert isinstance(module.hidden_size, int)
    if first is None:
        return
    units = first[: module.hidden_size]
    for name, parameter in module.named_parameters(recurse=False):
        labels = found.book.get(parameter).labels
        if "weight_hr" in name:
            found.join(found.book.get(_tensor(module, "weight_hr_l0")).labels[0], labels[0])
        elif labels[0] is not None:
            found.labels.unite(np.tile(units, len(labels[0]) // len(units)), labels[0], "")


def _tensor(module: nn.Module, name: str) -> Tensor:
    value = getattr(module, name)
    assert isinstance(value, Tensor)
    return value


def _run(found: Trace, inputs: tuple[Any, ...], *, training: bool) -> None:
    from ticketry.core.structure.rules import Rules

    found.model.train(training)
    found.stack.clear()
    for value in tree_flatten(inputs)[0]:
        if isinstance(value, Tensor):
            found.book.set(value, Axes.plain(value.dim()))
    with ExitStack() as exits:
        names = {id(module): name for name, module in found.model.named_modules()}
        exits.callback(register_module_forward_pre_hook(_enter(found, names)).remove)
        exits.callback(register_module_forward_hook(_leave(found, names), always_call=True).remove)
        exits.enter_context(plain_operations())
        exits.enter_context(_Watch(Rules(found)))
        outputs = run_model(found.model, inputs)
    found.stack.clear()
    for value in outputs:
        axes = found.book.get(value)
        found.freeze_axes(axes, range(value.dim()), "it is an output of the model")


def run_model(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """All tensors in the model's outputs; `StructureError` if it does not run."""
    try:
        outputs = model(*inputs)
    except StructureError:
        raise
    except Exception as error:  # a user's model may fail in any way
        first = (str(error).splitlines() or [""])[0]
        raise StructureError(
            f"{type(model).__name__} does not run on the example inputs in"
            f" {'training' if model.training else 'evaluation'} mode: {type(error).__name__}: {first};"
            " give a tensor or a tuple of its arguments, two examples or more"
        ) from error
    return [value for value in tree_flatten(outputs)[0] if isinstance(value, Tensor)]


def _enter(found: Trace, names: dict[int, str]) -> Any:
    def enter(module: nn.Module, arguments: object) -> None:
        if id(module) in names:
            found.stack.append(names[id(module)])

    return enter


def _leave(found: Trace, names: dict[int, str]) -> Any:
    def leave(module: nn.Module, arguments: object, outputs: object) -> None:
        if id(module) in names:
            found.stack.pop()

    return leave


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands every operation to the rules."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or else torch imports its compiler first, which takes many seconds

    def __init__(self, rules: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rules = rules

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self._rules.apply(func, args, dict(kwargs or {}))


def _unused(found: Trace) -> list[str]:
    """Parameters that no operation has read."""
    return [
        normal_name(name)
        for name, parameter in found.model.named_parameters()
        if parameter.untyped_storage().data_ptr() not in found.seen
    ]
