"""How far the outputs of a model move without single weights: an estimate from one call with its gradients.

The squared distance of outputs is what a random combination of them moves, on average over combinations, and that is
told by gradients, see `layer_gradients`: the diagonal of the Gauss-Newton matrix, of second order in the weights as the
saliency of LeCun et al. (1990). It needs no loss and no targets. It can be compared between layers, and added up over
what is removed as long as that is little; of more see `mixed`. Where there is a loss, the score `kfac` goes by that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ticketry.core.costs.layer_gradients import Call, add_gradients, squares, watched
from ticketry.core.example_call import call_in_evaluation, frozen_parameters
from ticketry.core.scope import Scope
from ticketry.errors import UsageError
from ticketry_engine.support.entry_points import CHANGES, entry_point
from ticketry_engine.support.seeds import generator

_ENOUGH = 8
"""Examples of which one random combination of the outputs is enough, as sums go over examples and places too."""

_DRAWS = 16
"""Random combinations of the outputs for weights whose own gradients are taken, each of which is one draw."""


@entry_point(CHANGES)
def output_change(model: nn.Module, scope: Scope, example_inputs: Any) -> dict[str, Tensor]:
    """Parameter name -> the share of its outputs' energy by which the model changes without each weight, float64.

    One call in evaluation mode and a backward pass or two to the layers' outputs; `model` is afterwards as it was. All
    tensors of numbers that the model returns count alike. Memory: what gradients of activations need, not of weights.

    Weights that are used in another way than as a factor of a product (recurrent layers, embeddings, scales, weights
    that are computed, an einsum) have theirs from their own gradients, in a call of their own: the same estimate, with
    the spread of as few combinations of outputs as are drawn.

    Raises:
        UsageError: for a weight from which no gradient reaches an output.
    """
    parameters = scope.parameters(model)
    others: set[str] = set()
    with frozen_parameters(model), watched(model, parameters, others) as calls:
        outputs = call_in_evaluation(model, example_inputs, gradients=True)
        others |= {name for name, made in calls.items() if not made}
        known = {name: made for name, made in calls.items() if name not in others}
        if known:
            _pull(outputs, known)
    found = {name: squares(parameters[name], made) for name, made in known.items()}
    if others:
        found |= _by_own_gradients(
            model, {name: parameters[name] for name in parameters if name in others}, example_inputs
        )
    return {name: found[name] for name in parameters}


def _by_own_gradients(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], example_inputs: Any
) -> dict[str, Tensor]:
    """Return the squares of weights, each times the mean square of its gradient of random combinations of the outputs.

    Over combinations, the mean square of a gradient is the sum of the squared gradients of all outputs.
    """
    total = {name: torch.zeros(parameter.shape, dtype=torch.float64) for name, parameter in parameters.items()}
    reached: set[str] = set()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(frozen_parameters(model))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # which has no gradients of LSTMs in evaluation
        for parameter in parameters.values():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(True)
        found = _outputs(call_in_evaluation(model, example_inputs, gradients=True))
        for draw in range(_DRAWS if found else 0):
            gradients = torch.autograd.grad(
                _combined(found, draw), list(parameters.values()), retain_graph=draw + 1 < _DRAWS, allow_unused=True
            )
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    whole = gradient.to_dense() if gradient.is_sparse else gradient
                    total[name] += whole.detach().cpu().double().square() / _DRAWS
                    reached.add(name)
    _require_reached([name for name in parameters if name not in reached])
    return {name: total[name] * parameter.detach().cpu().double().square() for name, parameter in parameters.items()}


def _outputs(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]


def _combined(outputs: Sequence[Tensor], draw: int) -> Tensor:
    """Return a random combination of outputs, each scaled by its energy."""
    combined = torch.zeros(())
    for index, output in enumerate(outputs):
        drawn = torch.randn(output.shape, generator=generator(0, "output change", draw, index)).to(output)
        size = output.detach().double().norm().clamp_min(1e-300)
        combined = combined + ((output * drawn).double().sum() / size).cpu()
    return combined


def _require_reached(names: Sequence[str]) -> None:
    """Raise UsageError for parameters from which no gradient reaches an output."""
    if names:
        raise UsageError(
            f"what {', '.join(names)} does to the model's outputs is not known: no gradient reaches any from there;"
            " spare it in the scope, or give a score (score=)"
        )


def _pull(outputs: Any, calls: Mapping[str, list[Call]]) -> None:
    """Add to every call the squared gradients of random combinations of the outputs, each scaled by its energy."""
    found = _outputs(outputs)
    examples = max((call.examples for made in calls.values() for call in made), default=1)
    draws = (2 if examples < _ENOUGH else 1) if found else 0
    for draw in range(draws):
        add_gradients(_combined(found, draw), calls, 1 / draws, again=draw + 1 < draws)
    _require_reached([name for name, made in calls.items() if all(call.pulls is None for call in made)])


_TRACE = 1e-6
"""Share of a layer's importance that goes to its weights by their squares, and of the largest layer's at least."""


def with_magnitudes(scores: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add a trace of squared weights to scores, in float64.

    Weights without any importance, such as those of a branch whose last norm starts at 0, then rank by magnitude behind
    all others, instead of being removed although the budget would pay for them.

    Args:
        scores: parameter name -> score of each weight, none below 0.
        parameters: parameter name -> weights.
    """
    sums = {name: float(score.double().sum()) for name, score in scores.items()}
    largest = max(sums.values(), default=0.0)
    found = {}
    for name, score in scores.items():
        squares = parameters[name].detach().double().square().to(score.device)
        whole = float(squares.sum())
        trace = _TRACE * max(sums[name], _TRACE * largest) / whole if whole > 0 else 0.0
        found[name] = score.double() + trace * squares
    return found
