"""How far the outputs of a model move without single weights: an estimate from one call with its gradients.

The squared distance of outputs is what a random combination of them moves, on average over combinations, and that is
told by gradients, see `layer_gradients`: the diagonal of the Gauss-Newton matrix, of second order in the weights as the
saliency of LeCun et al. (1990). It needs no loss and no targets. It can be compared between layers, and added up over
what is removed as long as that is little; of more see `mixed`. Where there is a loss, the score `kfac` goes by that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ticketry.core.costs.layer_gradients import Call, add_gradients, squares, watched
from ticketry.core.example_call import call_in_evaluation, frozen_parameters
from ticketry.core.scope import Scope
from ticketry.errors import UsageError
from ticketry_engine.support.seeds import generator

_ENOUGH = 8
"""Examples of which one random combination of the outputs is enough, as sums go over examples and places too."""


def output_change(model: nn.Module, scope: Scope, example_inputs: Any) -> dict[str, Tensor]:
    """Parameter name -> the share of its outputs' energy by which the model changes without each weight, float64.

    One call in evaluation mode and a backward pass or two to the layers' outputs; `model` is afterwards as it was. All
    tensors of numbers that the model returns count alike. Memory: what gradients of activations need, not of weights.

    Raises:
        UsageError: for a weight of another layer than a linear or a convolution, one that the call does not use or
            uses in another way, or one from which no gradient reaches an output.
    """
    parameters = scope.parameters(model)
    with torch.inference_mode(False), frozen_parameters(model), watched(model, parameters) as calls:
        outputs = call_in_evaluation(model, example_inputs, gradients=True)
        if idle := [name for name, made in calls.items() if not made]:
            raise UsageError(
                f"what {', '.join(idle)} does to an output is not known: it is no weight of a linear layer or a"
                " convolution that the example inputs use; spare it in the scope, or give a score (score=)"
            )
        _pull(outputs, calls)
    return {name: squares(parameters[name], made) for name, made in calls.items()}


def _pull(outputs: Any, calls: Mapping[str, list[Call]]) -> None:
    """Add to every call the squared gradients of random combinations of the outputs, each scaled by its energy."""
    found = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    examples = max((call.examples for made in calls.values() for call in made), default=1)
    draws = (2 if examples < _ENOUGH else 1) if found else 0
    for draw in range(draws):
        combined = torch.zeros(())
        for index, output in enumerate(found):
            drawn = torch.randn(output.shape, generator=generator(0, "output change", draw, index)).to(output)
            size = output.detach().double().norm().clamp_min(1e-300)
            combined = combined + ((output * drawn).double().sum() / size).cpu()
        add_gradients(combined, calls, 1 / draws, again=draw + 1 < draws)
    if cut := [name for name, made in calls.items() if all(call.pulls is None for call in made)]:
        raise UsageError(
            f"what {', '.join(cut)} does to the model's outputs is not known: no gradient reaches any from there; spare"
            " it in the scope, or give a score (score=)"
        )
