"""What single weights do, by what goes into their layers and the gradients of what comes out.

Without weight w an output of its layer changes by w x, x being the input that it multiplies, and whatever has gradient
g there by g w x. Where gradients, inputs and places are uncorrelated, as K-FAC has them (Martens & Grosse 2015; Grosse
& Martens 2016), the expected square of that over examples is

    w^2 · E[x^2] · sum of g^2 over examples and places

One backward pass tells it for each example apart, where gradients of weights are sums over a batch already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class Call:
    """A layer in one call: the mean squares of its inputs by channel, and the squared gradients of its outputs."""

    def __init__(self, module: nn.Module, x: Tensor, output: Tensor) -> None:
        axes = module.get_parameter("weight").dim()
        self._groups = int(getattr(module, "groups", 1))
        self._channel = 1 - axes  # from the end, where a convolution has its places: examples need not be stacked
        self._inputs = _by_channel(x.detach(), self._channel, mean=True)
        self.examples = len(x) if x.dim() >= axes else 1
        self.moved = torch.zeros_like(output, requires_grad=True)
        """A zero that is added to the output: its gradient is the output's."""
        self.pulls: Tensor | None = None
        """float64 [output channels], sums over examples and places; None before any gradient came."""

    def add(self, gradient: Tensor, share: float = 1.0) -> None:
        """Take note of a gradient of `moved`, whose squares count by a share."""
        pulls = share * _by_channel(gradient, self._channel, mean=False)
        self.pulls = pulls if self.pulls is None else self.pulls + pulls

    def factors(self) -> Tensor:
        """float64 [output channels, input channels of one]: what the square of a weight is multiplied by."""
        assert self.pulls is not None
        inputs = self._inputs if bool(self._inputs.any()) else torch.ones_like(self._inputs)  # an example of zeros
        pulls = self.pulls.view(self._groups, -1, 1)
        return (pulls * inputs.view(self._groups, 1, -1)).flatten(0, 1)


@contextmanager
def watched(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[dict[str, list[Call]]]:
    """The calls of the layers whose weights these are, in a block; empty for weights that are of no such layer."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    calls: dict[str, list[Call]] = {name: [] for name in parameters}

    def watch(name: str, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        calls[name].append(Call(module, args[0] if args else named["input"], output))
        return output + calls[name][-1].moved

    with ExitStack() as undone:
        for module in model.modules():
            name = names.get(id(module._parameters.get("weight")))
            if name is not None and has_factors(module):
                undone.callback(module.register_forward_hook(partial(watch, name), with_kwargs=True).remove)
        yield calls


def has_factors(module: nn.Module) -> bool:
    """Whether a layer is linear or a convolution (and no transposed one)."""
    return isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))


def add_gradients(value: Tensor, calls: Mapping[str, list[Call]], share: float = 1.0, *, again: bool = False) -> None:
    """Add to calls the gradients of a number at the outputs.

    Args:
        again: whether gradients of something else of the same pass are to follow.
    """
    every = [call for made in calls.values() for call in made]
    gradients = torch.autograd.grad(value, [call.moved for call in every], retain_graph=again, allow_unused=True)
    for call, gradient in zip(every, gradients, strict=True):
        if gradient is not None:
            call.add(gradient, share)


def squares(weight: Tensor, calls: list[Call]) -> Tensor:
    """float64 [as the weight]: its squares, each times what its input brings and its output does in all calls."""
    factors = torch.zeros(weight.shape[:2], dtype=torch.float64)
    for call in calls:
        if call.pulls is not None:
            factors += call.factors()
    return weight.detach().cpu().double().square() * factors.view(*factors.shape, *[1] * (weight.dim() - 2))


def _by_channel(values: Tensor, channel: int, *, mean: bool) -> Tensor:
    """float64 [channels], on the processor: sums or means of the squares."""
    others = [axis for axis in range(-values.dim(), 0) if axis != channel]
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    largest = values.abs().max().clamp_min(torch.finfo(values.dtype).tiny)  # or small numbers have squares of 0
    norms = torch.linalg.vector_norm(values / largest, dim=others) if others else values / largest
    found = (norms.double() * largest.double()).square()
    return (found / (values.numel() // values.shape[channel]) if mean else found).cpu()
