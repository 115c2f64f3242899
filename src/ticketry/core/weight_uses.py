"""How a call of a model multiplies by its weights: how often each is used, and which dimensions are summed over."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ticketry.core.example_call import call_in_evaluation
from ticketry.core.scope import Scope
from ticketry.errors import UsageError

COUNTED = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
"""Layers whose multiplications are counted from their outputs."""

_TRANSPOSED = COUNTED[4:]

_GROUPED = "_grouped_mm"
_FACTORS = {
    "mm": (0, 1),
    _GROUPED: (0, 1),
    "addmm": (1, 2),
    "bmm": (0, 1),
    "baddbmm": (1, 2),
    "mv": (0, 1),
    "addmv": (1, 2),
}
"""Operation -> positions of its two factors. It sums over the last axis of the first and the second last of the second.
"""


@dataclass(frozen=True)
class FactorUse:
    """How a product uses a parameter or a part of it."""

    summed: frozenset[int]
    """Dimensions of the parameter that are summed over: its inputs."""
    rows: frozenset[int]
    """Dimensions along which each index gives an output; the others count separate products."""
    convolution: bool = False
    groups: int = 1


def factor_uses(model: nn.Module, parameters: Mapping[str, Tensor], example_inputs: Any) -> dict[str, set[FactorUse]]:
    """Return how products in a call of `model` use each parameter; an empty set if none does.

    Parameters are recognised by their memory: a product with a tensor that is computed from one does not count.
    """
    products = _Products(parameters)
    with torch.inference_mode(False), _without_fused_layers(), products:
        call_in_evaluation(model, example_inputs)
    return products.uses


def times_used(model: nn.Module, parameters: Mapping[str, Tensor], example_inputs: Any) -> dict[str, int]:
    """Return parameter name -> multiplications by one of its weights in a call of `model` in evaluation mode.

    Layers in `COUNTED` are counted from the size of their outputs, also for models in parts on several devices. Other
    uses, such as `linear(x, self.encoder.weight.t())`, are counted from the products that torch computes. The larger
    count holds.
    """
    by_layers = dict.fromkeys(parameters, 0)
    names = {id(parameter): name for name, parameter in parameters.items()}

    def count(name: str, module: nn.Module, inputs: Sequence[Any], output: Tensor) -> None:
        made = inputs[0] if isinstance(module, _TRANSPOSED) and inputs else output
        by_layers[name] += made.numel() // int(getattr(module, "weight").shape[0])  # noqa: B009

    handles, products = [], _Products(parameters)
    for module in model.modules():
        name = names.get(id(module._parameters.get("weight")))
        if name is not None and isinstance(module, COUNTED):
            handles.append(module.register_forward_hook(partial(count, name)))
    try:
        with _without_fused_layers(), products:
            call_in_evaluation(model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    sizes = {name: max(1, parameter.numel()) for name, parameter in parameters.items()}
    return {name: max(by_layers[name], products.multiplications[name] // sizes[name]) for name in parameters}


def count_multiplications(model: nn.Module, scope: Scope, example_inputs: Any) -> dict[str, int]:
    """Return parameter name -> multiplications by one of its weights in a call of `model` in evaluation mode.

    Padding counts like any other input. All calls of a layer count, and so do other uses of its weight.

    Args:
        model: with the parameters.
        scope: of the parameters.
        example_inputs: a tensor, a tuple of tensors or a dict of keyword arguments.

    Raises:
        UsageError: for a parameter in scope that is not a factor of any product in the call.
    """
    parameters, known = scope.parameters(model), countable_parameters(model, scope)
    found = times_used(model, parameters, example_inputs)
    if unknown := [name for name in parameters if name not in known and not found[name]]:
        raise UsageError(
            f"multiplications are counted of linear and convolution layers and other products, not of"
            f" {', '.join(unknown)}: spare them in the scope, or ask for a density"
        )
    if idle := [name for name, times in found.items() if not times]:
        raise UsageError(f"a call with the example inputs does not use {', '.join(idle)}: spare them in the scope")
    return found


def countable_parameters(model: nn.Module, scope: Scope) -> list[str]:
    """Return the parameters in scope that are weights of linear or convolution layers."""
    weights = {
        id(weight)
        for module in model.modules()
        if isinstance(module, COUNTED) and (weight := module._parameters.get("weight")) is not None
    }
    return [name for name, parameter in scope.parameters(model).items() if id(parameter) in weights]


@contextmanager
def _without_fused_layers() -> Iterator[None]:
    """Disable torch's fused transformer layer, whose products a dispatch mode does not see."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records products of a call that have a parameter, or a view of one, as a factor.

    Views matter: attention reads keys and values from one part of a weight and queries from another.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uses: dict[str, set[FactorUse]] = {name: set() for name in parameters}
        self.multiplications = dict.fromkeys(parameters, 0)
        self._parameters = parameters
        addresses = sorted((_address(one), one.nbytes, name) for name, one in parameters.items())
        self._addresses = [address for address in addresses if address[0]]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        operation = func.overloadpacket.__name__
        if operation == "convolution":
            self._record_convolution(args[0], args[1], output, transposed=bool(args[6]), groups=int(args[8]))
        elif operation in _FACTORS:
            one, other = (args[position] for position in _FACTORS[operation])
            multiplications = one.numel() * (int(other.shape[-1]) if other.dim() > 1 else 1)
            if operation == _GROUPED:  # multiplications of experts depend on the data
                multiplications = 0
            self._record(one, multiplications, summed=one.dim() - 1, row=one.dim() - 2)
            row = other.dim() - 1 if other.dim() > 1 else -1
            self._record(other, multiplications, summed=max(0, other.dim() - 2), row=row)
        return output

    def _record_convolution(self, x: Tensor, weight: Tensor, output: Tensor, *, transposed: bool, groups: int) -> None:
        name = self._name(weight)
        if not name:
            return
        self.multiplications[name] += (x if transposed else output).numel() * weight[0].numel()
        if weight.shape == self._parameters[name].shape:
            inputs, outputs = (0, 1) if transposed else (1, 0)
            self.uses[name].add(FactorUse(frozenset((inputs,)), frozenset((outputs,)), True, groups))

    def _record(self, factor: Tensor, multiplications: int, *, summed: int, row: int) -> None:
        name = self._name(factor)
        if not name:
            return
        self.multiplications[name] += multiplications
        parameter = self._parameters[name]
        rows = _dimensions(parameter, factor, row) if row >= 0 else frozenset[int]()
        self.uses[name].add(FactorUse(_dimensions(parameter, factor, summed), rows))

    def _name(self, tensor: Any) -> str | None:
        """Return the name of the parameter that a tensor is a view of, or None."""
        if not isinstance(tensor, Tensor) or not (address := _address(tensor)):
            return None
        before = bisect_right(self._addresses, address, key=itemgetter(0)) - 1
        begin, size, name = self._addresses[before] if before >= 0 else (0, 0, "")
        return name if address < begin + size else None


def _dimensions(parameter: Tensor, view: Tensor, axis: int) -> frozenset[int]:
    """Return the dimensions of a parameter that an axis of a view of it covers; several if the view joins them."""
    length, stride = view.shape[axis], view.stride(axis)
    found: set[int] = set()
    while length > 1:
        same = [
            dimension
            for dimension in range(parameter.dim())
            if parameter.stride(dimension) == stride and parameter.shape[dimension] > 1
        ]
        if not same or same[0] in found:
            break
        found.add(same[0])
        length = -(-length // parameter.shape[same[0]])
        stride *= parameter.shape[same[0]]
    return frozenset(found)


def _address(tensor: Tensor) -> int:
    """Return the memory address of a tensor's data; 0 if it has none."""
    try:
        return tensor.data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0
