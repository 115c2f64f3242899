"""Check that a pruning score keeps the contract of scores."""

from __future__ import annotations

import random
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ticketry.core.prune import prune
from ticketry.core.scope import scope as scope_of
from ticketry.core.score import Loss, Score, get
from ticketry_engine.support.entry_points import Need, entry_point


def require(holds: bool, promise: str) -> None:
    """Raise `AssertionError` with the message `promise` unless `holds`; unlike assert, also under python -O."""
    if not holds:
        raise AssertionError(promise)


@entry_point(Need(python=False))
def check_score(
    score: str | Score,
    model: nn.Module | None = None,
    *,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
) -> None:
    """Check on a model that a score keeps the contract of scores.

    - The score returns one tensor for each parameter in scope, of the parameter's shape, and no other tensors. The
      values are real and may be infinite, but not NaN.
    - The same seed gives the same scores.
    - The score leaves the model unchanged: weights, buffers, gradients, parameter objects, their `requires_grad`,
      modules' modes, hooks. It also leaves random states and torch's gradient mode unchanged.
    - `prune` with this score meets every density exactly.

    Args:
        score: name of a score, or the function.
        model: model to score; by default a small convolutional network with batch norm.
        batches: batches of examples that are passed to the score.
        loss: loss function that is passed to the score.

    Raises:
        AssertionError: if a promise is broken; the message names it.
    """
    function = get(score)
    model = _small_network() if model is None else model
    known = scope_of(model)
    kept = None if batches is None else list(batches)
    with torch.set_grad_enabled(torch.is_grad_enabled()):  # restores the gradient mode afterwards
        before, values = _snapshot(model), _copy_state(model)
        first = function(model, known, batches=kept, loss=loss, seed=0)
        after = _snapshot(model)
    for what, found in before.items():
        require(after[what] == found, f"a score leaves as before: {what}")
    _require_same(values, _copy_state(model), "a score leaves weights, buffers and gradients as they were")
    require(list(first) == list(known), f"a score names the parameters in scope, in order: {list(known)}")
    for name, tensor in first.items():
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else None
        require(shape == known.shapes[name], f"the score of {name!r} is a tensor of its parameter's shape")
        real = not tensor.is_complex() and not bool(tensor.isnan().any())
        require(real, f"the score of {name!r} is of real numbers, none of them NaN")
        require(not tensor.requires_grad, f"the score of {name!r} is detached from the graph")
    _require_same(first, function(model, known, batches=kept, loss=loss, seed=0), "the same seed, the same scores")
    for density in (1.0, 0.5, 0.2):
        mask = prune(model, density, score=function, batches=kept, loss=loss, collapse="keep")
        require(mask.kept == round(density * known.total), f"density {density} is met to the element")


def _small_network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 5 * 5, 10)
        )


def _snapshot(model: nn.Module) -> dict[str, object]:
    """Return what a score could change besides tensor values: description for messages -> state."""
    parameters, modules = dict(model.named_parameters()), list(model.modules())
    return {
        "the objects that are parameters": {name: id(one) for name, one in parameters.items()},
        "which parameters are trained": {name: one.requires_grad for name, one in parameters.items()},
        "each module's mode": [module.training for module in modules],
        "the hooks of modules": [_list_hooks(module) for module in modules],
        "the hooks of parameters": {name: _list_hooks(one) for name, one in parameters.items()},
        "torch's random state": torch.get_rng_state().tolist(),
        "Python's random state": random.getstate(),
        "whether gradients are taken": torch.is_grad_enabled(),
    }


def _list_hooks(owner: nn.Module | nn.Parameter) -> dict[str, list[int]]:
    found = {name: getattr(owner, name, None) for name in dir(owner) if name.endswith("_hooks")}
    return {name: list(hooks) for name, hooks in found.items() if isinstance(hooks, dict) and hooks}


def _copy_state(model: nn.Module) -> dict[str, Tensor]:
    values = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return values | {f"{name}.grad": gradient for name, gradient in gradients.items()}


def _require_same(one: dict[str, Tensor], other: dict[str, Tensor], promise: str) -> None:
    require(one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one), promise)
