"""How far the outputs of a model move without single weights: an estimate from one call and two backward passes.

Without weight w, a layer's output o changes by w x. To first order a random combination of the model's outputs then
changes by g w x, with g its gradient at o, and the outputs by sqrt(E[g^2]) w x. Where gradients, inputs and places are
uncorrelated, as K-FAC has them (Martens & Grosse 2015; Grosse & Martens 2016), the square of that is

    w^2 · E[x^2] · sum of E[g^2] over examples and places

It is the diagonal of the Gauss-Newton matrix of the squared distance of outputs, of second order in the weights as the
saliency of LeCun et al. (1990). It needs no loss and no targets. It can be compared between layers, and added up over
what is removed as long as that is little; of more see `mixed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ticketry.core.example_call import call_in_evaluation, frozen_parameters
from ticketry.core.scope import Scope
from ticketry.core.seeds import generator
from ticketry.errors import UsageError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_DRAWS = 2
"""Random combinations of the outputs: with several examples and places enough, as the sums go over those too."""


def output_change(model: nn.Module, scope: Scope, example_inputs: Any) -> dict[str, Tensor]:
    """Parameter name -> the share of its outputs' energy by which the model changes without each weight, float64.

    One call in evaluation mode and two backward passes to the layers' outputs; `model` is afterwards as it was. All
    tensors of numbers that the model returns count alike.

    Raises:
        UsageError: for a weight of another layer than a linear or a convolution, one that the call does not use, or one
            from which no gradient reaches an output.
    """
    parameters = scope.parameters(model)
    names = {id(parameter): name for name, parameter in parameters.items()}
    calls: dict[str, list[_Call]] = {name: [] for name in parameters}
    with ExitStack() as undone, torch.inference_mode(False):
        undone.enter_context(frozen_parameters(model))
        for module in model.modules():
            name = names.get(id(module._parameters.get("weight")))
            if name is not None and isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
                undone.callback(module.register_forward_hook(partial(_watch, calls[name])).remove)
        outputs = call_in_evaluation(model, example_inputs, gradients=True)
        if idle := [name for name, made in calls.items() if not made]:
            raise UsageError(
                f"what {', '.join(idle)} does to an output is not known: it is no weight of a linear layer or a"
                " convolution (a transposed one is none) that the example inputs use; spare it in the scope, or give a"
                " score other than magnitude, which stands for that here"
            )
        _pull(outputs, calls)
    return {name: _weighed(parameters[name].detach().cpu(), made) for name, made in calls.items()}


class _Call:
    """A layer in one call: the mean squares of its inputs by channel, and what its outputs do to those of the model."""

    def __init__(self, module: nn.Module, x: Tensor, output: Tensor) -> None:
        convolution = isinstance(module, _CONVOLUTIONS)
        batched = not convolution or x.dim() == module.weight.dim()
        self.groups = int(getattr(module, "groups", 1))
        self.inputs = _by_channel(x.detach(), (1 if batched else 0) if convolution else x.dim() - 1, mean=True)
        self.moved = torch.zeros_like(output, requires_grad=True)
        self.channel = (1 if batched else 0) if convolution else output.dim() - 1
        self.pulls: Tensor | None = None

    def add(self, gradient: Tensor) -> None:
        pulls = _by_channel(gradient, self.channel, mean=False)
        self.pulls = pulls if self.pulls is None else self.pulls + pulls


def _watch(calls: list[_Call], module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """A forward hook: the output as it is, plus a zero whose gradient is the output's."""
    calls.append(_Call(module, args[0], output))
    return output + calls[-1].moved


def _by_channel(values: Tensor, channel: int, *, mean: bool) -> Tensor:
    """[channels], float64: sums or means of the squares."""
    squares = values.double().square()
    others = [axis for axis in range(values.dim()) if axis != channel]
    if not others:
        return squares.cpu()
    return (squares.mean(others) if mean else squares.sum(others)).cpu()


def _pull(outputs: Any, calls: Mapping[str, list[_Call]]) -> None:
    """Add to every call the squared gradients of random combinations of the outputs, each scaled by its energy."""
    found = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    every = [(name, call) for name, made in calls.items() for call in made]
    for draw in range(_DRAWS if found else 0):
        combined = torch.zeros(())
        for index, output in enumerate(found):
            drawn = torch.randn(output.shape, generator=generator(0, "output change", draw, index)).to(output)
            size = output.detach().double().norm().clamp_min(1e-300)
            combined = combined + ((output * drawn).double().sum() / size).cpu()
        kept = draw + 1 < _DRAWS
        moved = [call.moved for _, call in every]
        gradients = torch.autograd.grad(combined, moved, retain_graph=kept, allow_unused=True)
        for (_, call), gradient in zip(every, gradients, strict=True):
            if gradient is not None:
                call.add(gradient / _DRAWS**0.5)
    if cut := [name for name, made in calls.items() if all(call.pulls is None for call in made)]:
        raise UsageError(
            f"what {', '.join(cut)} does to the model's outputs is not known: no gradient reaches any from there; spare"
            " it in the scope, or give a score other than magnitude, which stands for that here"
        )


def _weighed(weight: Tensor, calls: list[_Call]) -> Tensor:
    """Squares of the weights, each times what its input brings and its output does in all calls together."""
    groups = calls[0].groups
    parted = torch.unflatten(weight.double().square(), 0, (groups, -1))
    worth = torch.zeros((groups, parted.shape[1], parted.shape[2]), dtype=torch.float64)
    for call in calls:
        if call.pulls is not None:
            inputs = call.inputs if bool(call.inputs.any()) else torch.ones_like(call.inputs)  # an example of zeros
            worth += call.pulls.view(groups, -1, 1) * inputs.view(groups, 1, -1)
    weighed: Tensor = parted * worth.view(*worth.shape, *[1] * (weight.dim() - 2))
    return weighed.reshape(weight.shape)
