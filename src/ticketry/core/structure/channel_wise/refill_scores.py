"""How much each channel is worth by the weights that an unstructured mask keeps of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ticketry.core.computed_weights import weights_in_use
from ticketry.core.mask import Mask
from ticketry.core.score import Score, ScoreInputs, split_control
from ticketry.core.score._measure import pruned_to
from ticketry.core.structure.channel_wise.choice import Choice
from ticketry.core.structure.channel_wise.scores import CHANNEL_SCORES, check_channel_score, controlled, weight_scores
from ticketry.core.structure.dependencies.channel_groups import Member

REFILL_SCORES = ("remaining", "l1", "l2", "taylor", "activation_l1", "activation_l2")
"""The paper's; any other of `structure.channels` will do as well."""

OF_CHANNELS = frozenset(CHANNEL_SCORES) - {"l1", "l2", "taylor"}
"""Scores that a channel has once, not in each layer that makes it."""

ADDITIVE = ("remaining", "taylor")
"""Scores with one unit in all layers."""


def check_refill_score(score: str | Score) -> None:
    """Raises `UsageError` for a word that is no score of channels."""
    check_channel_score(score, REFILL_SCORES)


def refill_scores(choice: Choice, mask: Mask, score: str | Score, inputs: ScoreInputs) -> list[Tensor]:
    """For each group a score of each of its channels, float64 [size], in the network that the mask leaves."""
    control, plain = split_control(score) if isinstance(score, str) else ("", score)
    plain = "activation" if plain == "activation_l1" else plain
    if isinstance(plain, str) and plain in OF_CHANNELS:
        with pruned_to(mask, mask.parameters(choice.model)):
            return choice.scores(None, inputs, score=f"{control}:{plain}" if control else plain, reduce="sum")
    layers = _in_layers(choice, mask, plain, inputs)
    found = []
    for group in choice.groups:
        members = group.within(choice.roles.outputs)
        found.append(_agreed([_of_channels(layers[m.name, m.dim], m, plain) for m in members], plain))
    return controlled(control, found, inputs.seed)


def kept_counts(mask: Mask, member: Member, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    """Kept weights of each channel in one tensor, int64 [channels]; all of them where the mask does not have it."""
    return _count(mask, member, shapes)[torch.from_numpy(member.array)].sum(1)


# -- layer by layer ----------------------------------------------------------------------------------------------------


def _in_layers(choice: Choice, mask: Mask, score: str | Score, inputs: ScoreInputs) -> dict[tuple[str, int], Tensor]:
    """(name, dimension) of the weights that make channels -> sum of the score over each index, float64.

    Of ``l2`` the sum of squares.
    """
    wanted = {(m.name, m.dim): m for group in choice.groups for m in group.within(choice.roles.outputs)}
    if score == "remaining":
        return {place: _count(mask, member, choice.shapes).double() for place, member in wanted.items()}
    if score in ("l1", "l2"):
        weights = weights_in_use(choice.model, choice.scope.parameters(choice.model))
        kept = {name: _masked(weights[name], mask.get(name)).abs() for name in {name for name, _ in wanted}}
        power = 1 if score == "l1" else 2
        return {
            (name, dim): torch.linalg.vector_norm(kept[name], power, _others(kept[name], dim), dtype=torch.float64)
            .pow(power)
            .cpu()
            for name, dim in wanted
        }
    with pruned_to(mask, mask.parameters(choice.model)):
        values = weight_scores(choice.model, choice.scope, score, inputs)
    masked = {name: _masked(values[name].detach(), mask.get(name)) for name in {name for name, _ in wanted}}
    return {
        (name, dim): masked[name].sum(_others(masked[name], dim), dtype=torch.float64).cpu() for name, dim in wanted
    }


def _count(mask: Mask, member: Member, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    shape, dim = shapes[member.name], member.dim
    if member.name not in mask:
        return torch.full((shape[dim],), math.prod(shape) // shape[dim])
    return mask[member.name].sum(_others(mask[member.name], dim)).cpu()


def _masked(values: Tensor, kept: Tensor | None) -> Tensor:
    return values if kept is None else values.masked_fill(~kept.to(values.device), 0)


def _others(tensor: Tensor, dim: int) -> list[int]:
    return [other for other in range(tensor.dim()) if other != dim]


# -- over layers -------------------------------------------------------------------------------------------------------


def _of_channels(by_index: Tensor, member: Member, score: str | Score) -> Tensor:
    total = by_index[torch.from_numpy(member.array)].sum(1)
    return total.sqrt() if score == "l2" else total


def _agreed(layers: list[Tensor], score: str | Score) -> Tensor:
    """The scores of the layers that make the same channels as one: each layer's in shares, unless of one unit."""
    if len(layers) > 1 and score not in ADDITIVE:
        layers = [values / torch.clamp(values.abs().sum(), min=torch.finfo(torch.float64).tiny) for values in layers]
    return torch.stack(layers).sum(0)
