"""What the loss of single weights does to a layer's own output: a second-order estimate from one pass of inputs.

Without weights S, an output of a layer changes by sum_S w x. Where inputs are uncorrelated with mean square E[x^2],
the square of that is sum_S w^2 E[x^2]: the diagonal of the layer-wise quadratic problem of LeCun et al. (1990) and
Hassibi & Stork (1993), as layer-wise pruning uses it (Frantar & Alistarh 2022). It is additive, so that blocks of
weights are charged for all that they keep and lose, big or small. Divided by the same sum over all weights of the
layer, it is a share of the output's energy, which can be compared between layers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.core.example_call import call_in_evaluation
from ticketry.core.scope import Scope
from ticketry.errors import UsageError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def output_energy(model: nn.Module, scope: Scope, example_inputs: Any) -> dict[str, Tensor]:
    """Parameter name -> the share of its layer's output energy that each weight makes, summing to 1 in each layer.

    One call in evaluation mode; `model` is afterwards as it was. Positions of an input channel count alike.

    Raises:
        UsageError: for a weight of another layer than a linear or a convolution, or one that the call does not use.
    """
    parameters = scope.parameters(model)
    names = {id(parameter): name for name, parameter in parameters.items()}
    squares: dict[str, Tensor] = {}
    groups: dict[str, int] = {}

    def look(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].detach().double()
        channel = 1 if isinstance(module, _CONVOLUTIONS) and x.dim() == module.weight.dim() else x.dim() - 1
        if isinstance(module, _CONVOLUTIONS) and x.dim() < module.weight.dim():
            channel = 0
        mean = x.square().mean([axis for axis in range(x.dim()) if axis != channel])
        squares[name] = squares.get(name, torch.zeros_like(mean)) + mean
        groups[name] = getattr(module, "groups", 1)

    handles = []
    for module in model.modules():
        name = names.get(id(module._parameters.get("weight")))
        if name is not None and isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
            handles.append(module.register_forward_pre_hook(partial(look, name)))
    try:
        call_in_evaluation(model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    if idle := [name for name in parameters if name not in squares]:
        raise UsageError(
            f"what {', '.join(idle)} does to an output is not known: it is no weight of a linear layer or a convolution"
            " (a transposed one is none) that the example inputs use; spare it in the scope, or give a score other than"
            " magnitude, which stands for that here"
        )
    return {name: _shares(parameters[name].detach().cpu(), squares[name].cpu(), groups[name]) for name in parameters}


def _shares(weight: Tensor, squares: Tensor, groups: int) -> Tensor:
    parted = torch.unflatten(weight.double().square(), 0, (groups, -1))
    energy = parted * squares.view(groups, 1, -1, *[1] * (weight.dim() - 2))
    if not bool(energy.any()):
        energy = parted  # of inputs that are all 0, as an example may be
    total = energy.sum()
    shares: Tensor = energy / total if total else energy
    return shares.reshape(weight.shape)
