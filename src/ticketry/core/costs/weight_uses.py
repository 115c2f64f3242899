"""How many multiplications one weight of a layer takes in a call, whoever uses it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ticketry.core.example_call import call_in_evaluation

COUNTED = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
"""Whose weights are counted."""

_TRANSPOSED = COUNTED[4:]
_PRODUCTS = {"mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2), "mv": (0, 1), "addmv": (1, 2)}
"""Operation -> which of its arguments are multiplied."""


def times_used(model: nn.Module, parameters: Mapping[str, Tensor], example_inputs: Any) -> dict[str, int]:
    """Parameter name -> multiplications that one weight of it takes in a call, from a call of `model` as in eval mode.

    What layers of `COUNTED` do with their weights is told by what they make, of models in parts on several devices too;
    what anything else does with one, as `linear(x, self.encoder.weight.t())`, by the products that torch carries out.
    The more of the two counts.
    """
    by_layers, by_products = dict.fromkeys(parameters, 0), dict.fromkeys(parameters, 0)
    names = {id(parameter): name for name, parameter in parameters.items()}

    def count(name: str, module: nn.Module, inputs: Sequence[Any], output: Tensor) -> None:
        made = inputs[0] if isinstance(module, _TRANSPOSED) and inputs else output
        by_layers[name] += made.numel() // int(getattr(module, "weight").shape[0])  # noqa: B009

    handles = []
    for module in model.modules():
        name = names.get(id(module._parameters.get("weight")))
        if name is not None and isinstance(module, COUNTED):
            handles.append(module.register_forward_hook(partial(count, name)))
    try:
        with without_fused_layers(), _Products(parameters, by_products):
            call_in_evaluation(model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    sizes = {name: max(1, parameter.numel()) for name, parameter in parameters.items()}
    return {name: max(by_layers[name], by_products[name] // sizes[name]) for name in parameters}


@contextmanager
def without_fused_layers() -> Iterator[None]:
    """Without torch's one operation for a whole transformer layer, in which no product is seen."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the multiplications of products with parameters, or parts of them: attention reads keys and values by a
    part of one weight and queries by another."""

    def __init__(self, parameters: Mapping[str, Tensor], found: dict[str, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found = found
        places = sorted((place_of(one), one.nbytes, name) for name, one in parameters.items())
        self._places = [place for place in places if place[0]]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        operation = func.overloadpacket.__name__
        if operation == "convolution" and (name := self._name(args[1])):
            x, weight, transposed = args[0], args[1], bool(args[6])
            self._found[name] += (x if transposed else made).numel() * weight[0].numel()
        elif operation in _PRODUCTS:
            one, other = (args[place] for place in _PRODUCTS[operation])
            multiplications = one.numel() * (int(other.shape[-1]) if other.dim() > 1 else 1)
            for factor in (one, other):
                if name := self._name(factor):
                    self._found[name] += multiplications
        return made

    def _name(self, tensor: Any) -> str | None:
        """Of the parameter that a tensor is, or is a part of."""
        if not isinstance(tensor, Tensor) or not (place := place_of(tensor)):
            return None
        before = bisect_right(self._places, place, key=itemgetter(0)) - 1
        begin, size, name = self._places[before] if before >= 0 else (0, 0, "")
        return name if place < begin + size else None


def place_of(tensor: Tensor) -> int:
    """Where in memory a tensor's numbers lie; 0 where that is not told."""
    try:
        return tensor.data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0
