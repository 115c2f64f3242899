"""The contract of a score."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ticketry.core.prune import prune
from ticketry.core.scope import scope as scope_of
from ticketry.core.score import Loss, Score, get
from ticketry.testing.require import require


def check_score(
    score: str | Score,
    model: nn.Module | None = None,
    *,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
) -> None:
    """Check that a score keeps its contract on a model (by default a small convolutional network with norms).

    A tensor of finite numbers for each parameter in scope and no other, in its shape; the same for the same seed; the
    model as before: weights, buffers, gradients and mode; and usable by `prune` at any density.

    Raises:
        AssertionError: saying which promise is broken.
    """
    function = get(score)
    model = _small_network() if model is None else model
    known = scope_of(model)
    kept = None if batches is None else list(batches)
    before, modes = _state(model), [module.training for module in model.modules()]
    first = function(model, known, batches=kept, loss=loss, seed=0)
    require(list(first) == list(known), f"a score names the parameters in scope, in order: {list(known)}")
    for name, tensor in first.items():
        require(tuple(tensor.shape) == known.shapes[name], f"the score of {name!r} has its parameter's shape")
        require(bool(torch.isfinite(tensor).all()), f"the score of {name!r} is finite")
        require(not tensor.requires_grad, f"the score of {name!r} is detached from the graph")
    _require_same(before, _state(model), "a score leaves weights and buffers as they were")
    require(modes == [module.training for module in model.modules()], "a score leaves each module's mode as it was")
    require(all(p.grad is None for p in model.parameters()), "a score leaves no gradients behind")
    _require_same(first, function(model, known, batches=kept, loss=loss, seed=0), "the same seed, the same scores")
    for density in (1.0, 0.5, 0.2):
        mask = prune(model, density, score=function, batches=kept, loss=loss, collapse="keep")
        require(mask.kept == round(density * known.total), f"density {density} is met to the element")


def _small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 5 * 5, 10)
    )


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _require_same(one: dict[str, Tensor], other: dict[str, Tensor], promise: str) -> None:
    require(one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one), promise)
