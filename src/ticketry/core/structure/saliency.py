"""How much each channel is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ticketry.core.scope import Scope
from ticketry.core.score import Loss, Score, get, names
from ticketry.core.structure.group import ChannelGroup, Member
from ticketry.core.structure.roles import Roles
from ticketry.errors import UsageError

CHANNEL_SCORES = ("l1", "l2", "slimming", "taylor", "snap", "crop_gates")
"""Scores of channels; any score of weights (`ticketry.score`) will do as well."""

REDUCTIONS = ("mean", "sum")


def channel_scores(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    scope: Scope,
    roles: Roles,
    *,
    score: str | Score,
    reduce: str,
    batches: Iterable[object] | None,
    loss: Loss | None,
    seed: int,
) -> list[Tensor]:
    """For each group a score of each of its channels, float64 [size]; the higher, the more worth keeping."""
    if reduce not in REDUCTIONS:
        raise UsageError(f"reduce is {' or '.join(REDUCTIONS)}, not {reduce!r}")
    if score == "slimming":
        return [_slimming(model, group, roles, reduce) for group in groups]
    if score in ("snap", "crop_gates"):
        effects = _effects(model, scope, batches, loss, second=score == "crop_gates")
        return [_gathered(effects, _consumers(group, effects, roles)).abs() for group in groups]
    values = _weight_scores(model, scope, score, batches, loss, seed)
    return [_reduced(values, group, reduce, root=score == "l2") for group in groups]


def _weight_scores(
    model: nn.Module, scope: Scope, score: str | Score, batches: Iterable[object] | None, loss: Loss | None, seed: int
) -> Mapping[str, Tensor]:
    """A score of every weight in scope, that those of channels are sums of."""
    weights = {name: weight.detach().double() for name, weight in scope.parameters(model).items()}
    if score == "l1":
        return {name: weight.abs() for name, weight in weights.items()}
    if score == "l2":
        return {name: weight.square() for name, weight in weights.items()}
    if score == "taylor":
        return {name: effect.abs() for name, effect in _effects(model, scope, batches, loss, second=False).items()}
    if isinstance(score, str) and score not in names():
        known = ", ".join((*CHANNEL_SCORES, *names()))
        raise UsageError(f"score {score!r} is not known: {known}, or a function as in ticketry.score")
    return get(score)(model, scope, batches=batches, loss=loss, seed=seed)


def _reduced(values: Mapping[str, Tensor], group: ChannelGroup, reduce: str, root: bool) -> Tensor:
    members = [member for member in group.parameters if member.name in values]
    total = _gathered(values, members)
    if reduce == "mean":
        count = sum(values[m.name].numel() // values[m.name].shape[m.dim] * len(m.indices[0]) for m in members)
        total = total / max(count, 1)
    return total.sqrt() if root else total


def _gathered(values: Mapping[str, Tensor], members: Sequence[Member]) -> Tensor:
    """Sum over all that each channel has in these members, float64 [channels]."""
    total = torch.zeros(())
    for member in members:
        value = values[member.name].detach().cpu().double()
        by_index = value.sum([d for d in range(value.dim()) if d != member.dim]) if value.dim() > 1 else value
        total = total + by_index[torch.tensor(member.indices)].sum(1)
    return total


def _slimming(model: nn.Module, group: ChannelGroup, roles: Roles, reduce: str) -> Tensor:
    """|scale| of the norms that a channel passes (Liu et al. 2017, section 3)."""
    scales = {name: dict(model.named_parameters())[name].detach().abs() for name in roles.scales}
    members = [member for member in group.parameters if member.name in scales]
    if not members:
        raise UsageError(
            f"score 'slimming' needs a norm with a scale behind every layer: {group.name} has none;"
            " leave it out with scope(model, spare=...), or choose another score"
        )
    total = _gathered(scales, members)
    return total / sum(len(member.indices[0]) for member in members) if reduce == "mean" else total


# -- gradients --------------------------------------------------------------------------------------------------------


def _consumers(group: ChannelGroup, effects: Mapping[str, Tensor], roles: Roles) -> list[Member]:
    taken = [member for member in group.parameters if (member.name, member.dim) in roles.inputs]
    return [member for member in taken if member.name in effects]


def _effects(
    model: nn.Module, scope: Scope, batches: Iterable[object] | None, loss: Loss | None, *, second: bool
) -> dict[str, Tensor]:
    """For each weight w, with g the gradient of the mean loss: w g, or (`second`) g² + w (H g).

    A gate c = 1 on what a channel gives to the layers behind it scales all their weights for it. So dL/dc is the sum
    of w g over those (SNAP; Verdenius et al. 2020), and d/dc of z = <stopgrad(g), g> is the sum of g² + w (H g)
    (structured CroP; Rachwan et al. 2022): no gate has to be built in.
    """
    if batches is None or loss is None:
        raise UsageError("scores by gradients (taylor, snap, crop_gates) need batches= and loss=")
    data = list(batches)
    if not data:
        raise UsageError("scores by gradients need at least one batch")
    weights = scope.parameters(model)
    with _left_alone(model, weights):
        gradients = _mean_gradients(model, weights, data, loss)
        if second:
            products = _mean_gradients(model, weights, data, loss, along=gradients)
            found = {n: gradients[n].square() + w.detach() * products[n] for n, w in weights.items()}
        else:
            found = {n: w.detach() * gradients[n] for n, w in weights.items()}
    for name, value in found.items():
        if not math.isfinite(float(value.abs().sum())):
            raise UsageError(f"the gradients of {name!r} are not finite: choose other batches")
    return found


def _mean_gradients(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    data: Sequence[object],
    loss: Callable[[nn.Module, object], Tensor],
    along: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The gradient of the mean loss of all batches, or its derivative in the direction `along`."""
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    listed = list(weights.values())
    for batch in data:
        value = loss(model, batch)
        found = torch.autograd.grad(value, listed, create_graph=along is not None, allow_unused=True)
        if along is not None:
            inner = sum((g * along[n]).sum() for n, g in zip(weights, found, strict=True) if g is not None)
            found = torch.autograd.grad(inner, listed, allow_unused=True)  # type: ignore[arg-type]
        for name, gradient in zip(weights, found, strict=True):
            if gradient is not None:
                total[name] += gradient.detach() / len(data)
    return total


@contextmanager
def _left_alone(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Buffers, such as norm statistics, and what is frozen are afterwards as before."""
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    frozen = [weight for weight in weights.values() if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
