"""Which dimensions of a weight a model sums over, as seen in a call: along these a layer has its inputs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ticketry.core.costs.weight_uses import place_of, without_fused_layers
from ticketry.core.example_call import call_in_evaluation

_FACTORS = {
    "mm": (0, 1),
    "_grouped_mm": (0, 1),
    "addmm": (1, 2),
    "bmm": (0, 1),
    "baddbmm": (1, 2),
    "mv": (0, 1),
    "addmv": (1, 2),
}
"""Operation -> its two factors: the last axis of the first and the one before it of the second are summed over."""


@dataclass(frozen=True)
class FactorUse:
    """How a product uses a parameter or a part of it."""

    summed: frozenset[int]
    """Dimensions of the parameter that are summed over."""
    rows: frozenset[int]
    """Dimensions along which each index gives an output; the others count separate products."""
    convolution: bool = False
    groups: int = 1


def factor_uses(model: nn.Module, parameters: Mapping[str, Tensor], example_inputs: Any) -> dict[str, set[FactorUse]]:
    """Return how products in a call of `model` use each parameter; an empty set if none does.

    Parameters are recognised by their memory: a product with a tensor that is computed from one does not count.
    """
    uses: dict[str, set[FactorUse]] = {name: set() for name in parameters}
    with torch.inference_mode(False), without_fused_layers(), _Products(parameters, uses):
        call_in_evaluation(model, example_inputs)
    return uses


class _Products(TorchDispatchMode):
    """Records the products of a call that have a parameter, or a view of one, as a factor."""

    def __init__(self, parameters: Mapping[str, Tensor], uses: dict[str, set[FactorUse]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parameters, self._uses = parameters, uses
        places = sorted((place_of(one), one.nbytes, name) for name, one in parameters.items())
        self._places = [place for place in places if place[0]]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = func.overloadpacket.__name__
        if operation == "convolution":
            self._record_convolution(args[1], transposed=bool(args[6]), groups=int(args[8]))
        elif operation in _FACTORS:
            one, other = (args[place] for place in _FACTORS[operation])
            self._record(one, summed=one.dim() - 1, row=one.dim() - 2)
            self._record(other, summed=max(0, other.dim() - 2), row=other.dim() - 1 if other.dim() > 1 else -1)
        return func(*args, **(kwargs or {}))

    def _record_convolution(self, weight: Tensor, *, transposed: bool, groups: int) -> None:
        name = self._name(weight)
        if name and weight.shape == self._parameters[name].shape:
            inputs, outputs = (0, 1) if transposed else (1, 0)
            self._uses[name].add(FactorUse(frozenset((inputs,)), frozenset((outputs,)), True, groups))

    def _record(self, factor: Tensor, *, summed: int, row: int) -> None:
        name = self._name(factor)
        if not name:
            return
        parameter = self._parameters[name]
        rows = _dimensions(parameter, factor, row) if row >= 0 else frozenset[int]()
        self._uses[name].add(FactorUse(_dimensions(parameter, factor, summed), rows))

    def _name(self, tensor: Any) -> str | None:
        """Return the name of the parameter that a tensor is a view of, or None."""
        if not isinstance(tensor, Tensor) or not (place := place_of(tensor)):
            return None
        before = bisect_right(self._places, place, key=itemgetter(0)) - 1
        begin, size, name = self._places[before] if before >= 0 else (0, 0, "")
        return name if place < begin + size else None


def _dimensions(parameter: Tensor, view: Tensor, axis: int) -> frozenset[int]:
    """Return the dimensions of a parameter that an axis of a view of it goes over; several if the view joins them."""
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
