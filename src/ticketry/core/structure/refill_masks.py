"""Refill: turn an unstructured mask into a mask of whole channels, as many as its retained weights would fill.

Chen, Chen, Ma, Wang, Wang, "Coarsening the Granularity: Towards Structurally Sparse Lottery Tickets", ICML 2022,
section 3.2. The paper only sets the filters that are not filled to zero. This implementation removes everything that
belongs to such a channel (bias, norm, inputs of later layers), so that the network can be made smaller without changing
its outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn

from ticketry.core import scope as scopes
from ticketry.core.computed_weights import effective_weights
from ticketry.core.mask import Mask
from ticketry.core.scope import Patterns, Scope
from ticketry.core.score import Loss, Score, ScoreInputs, split_control
from ticketry.core.score.measurement import temporarily_pruned
from ticketry.core.structure.channel_choice import ChannelChoice, check_channel_limits
from ticketry.core.structure.channel_scores import (
    CHANNEL_SCORES,
    apply_control_to_scores,
    check_channel_score,
    weight_scores,
)
from ticketry.core.structure.coupling import ChannelGroup, Member, Structure
from ticketry.core.structure.layout import Roles
from ticketry.core.structure.model_copies import Inputs
from ticketry.core.structure.pattern import COUPLINGS, check_density, parse_share
from ticketry.core.structure.plans import named_shapes
from ticketry.core.structure.removal_trial import find_structure_sparing_untraceable
from ticketry.errors import LayerCollapseError, ScopeError, StructureError, UsageError
from ticketry_engine.support.entry_points import entry_point

REFILL_SCORES = ("remaining", "l1", "l2", "taylor", "activation_l1", "activation_l2")
"""Scores in the paper; any score of `structure.channels` can be used too."""

CHANNEL_WISE_SCORES = frozenset(CHANNEL_SCORES) - {"l1", "l2", "taylor"}
"""Scores of a whole channel, as opposed to scores for each layer that produces the channel."""

ADDITIVE_SCORES = ("remaining", "taylor")
"""Scores that have the same unit in all layers, so that they can be added up directly."""


def check_refill_score(score: str | Score) -> None:
    check_channel_score(score, REFILL_SCORES)


def score_for_refill(choice: ChannelChoice, mask: Mask, score: str | Score, inputs: ScoreInputs) -> list[Tensor]:
    """Return, for each group, the score of each channel in the network pruned by `mask`: float64 [channels]."""
    control, plain = split_control(score) if isinstance(score, str) else ("", score)
    plain = "activation" if plain == "activation_l1" else plain
    if isinstance(plain, str) and plain in CHANNEL_WISE_SCORES:
        with temporarily_pruned(mask, mask.parameters(choice.model)):
            return choice.score_channels(None, inputs, score=f"{control}:{plain}" if control else plain, reduce="sum")
    layers = _score_indices_in_layers(choice, mask, plain, inputs)
    found = []
    for group in choice.groups:
        by_layer = []
        for member in group.within(choice.roles.outputs):
            total = layers[member.name, member.dim][torch.from_numpy(member.array)].sum(1)
            by_layer.append(total.sqrt() if plain == "l2" else total)
        if len(by_layer) > 1 and plain not in ADDITIVE_SCORES:  # the unit of the score differs between layers
            tiny = torch.finfo(torch.float64).tiny
            by_layer = [values / torch.clamp(values.abs().sum(), min=tiny) for values in by_layer]
        found.append(torch.stack(by_layer).sum(0))
    return apply_control_to_scores(control, found, inputs.seed)


# -- scores in single layers -------------------------------------------------------------------------------------------


def _score_indices_in_layers(
    choice: ChannelChoice, mask: Mask, score: str | Score, inputs: ScoreInputs
) -> dict[tuple[str, int], Tensor]:
    """Return, by (parameter, dimension), the sum of the score at each index, for all dimensions that produce channels.

    For the score ``l2`` the sum is that of squares.
    """
    wanted = {(m.name, m.dim): m for group in choice.groups for m in group.within(choice.roles.outputs)}
    if score == "remaining":
        return {
            place: _count_retained_by_index(mask, member, choice.shapes).double() for place, member in wanted.items()
        }
    if score in ("l1", "l2"):
        weights = effective_weights(choice.model, choice.scope.parameters(choice.model))
        kept = {name: _zero_removed(weights[name], mask.get(name)).abs() for name in {name for name, _ in wanted}}
        power = 1 if score == "l1" else 2
        return {
            (name, dim): torch.linalg.vector_norm(
                kept[name], power, _other_dimensions(kept[name], dim), dtype=torch.float64
            )
            .pow(power)
            .cpu()
            for name, dim in wanted
        }
    with temporarily_pruned(mask, mask.parameters(choice.model)):
        values = weight_scores(choice.model, choice.scope, score, inputs)
    masked = {name: _zero_removed(values[name].detach(), mask.get(name)) for name in {name for name, _ in wanted}}
    return {
        (name, dim): masked[name].sum(_other_dimensions(masked[name], dim), dtype=torch.float64).cpu()
        for name, dim in wanted
    }


def _count_retained_by_index(mask: Mask, member: Member, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    shape, dim = shapes[member.name], member.dim
    if member.name not in mask:
        return torch.full((shape[dim],), math.prod(shape) // shape[dim])
    return mask[member.name].sum(_other_dimensions(mask[member.name], dim)).cpu()


def _zero_removed(values: Tensor, kept: Tensor | None) -> Tensor:
    return values if kept is None else values.masked_fill(~kept.to(values.device), 0)


def _other_dimensions(tensor: Tensor, dim: int) -> list[int]:
    return [other for other in range(tensor.dim()) if other != dim]


@entry_point()
def refill(
    model: nn.Module,
    mask: Mask,
    example_inputs: Inputs,
    score: str | Score = "l1",
    plus: float = 0.0,
    *,
    coupled: str = "agree",
    first: bool | None = None,
    output: bool | None = None,
    spare: Patterns = (),
    keep_at_least: int = 1,
    multiple: int = 1,
    density: float | str | None = None,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    structure: Structure | None = None,
) -> Mask:
    """Return a mask of whole channels derived from an unstructured mask; `shrink` can take out the removed channels.

    Each layer retains k0 = floor(density · channels) channels, at least one, where density is the fraction of the
    layer's weights that `mask` retains. The channels with the highest scores are filled, that is, all their weights are
    retained; of equal scores, the earlier channel is filled. The other channels are emptied, that is, everything that
    belongs to them is removed: weights, biases, norm scales and shifts, and inputs of later layers. As in the paper, k0
    does not account for the removed inputs, so the density of the result is below that of `mask` (down to the square).
    The argument `density` fills more channels.

    If several layers produce the same channels, as in a residual stream, k0 is computed from all their weights
    together. Each layer's scores are then divided by their sum, and added up. So all layers have equal influence;
    otherwise a layer with larger weights would decide alone, although the scale of weights before a norm has no
    meaning. The scores ``remaining`` and ``taylor`` have the same unit in all layers and are added directly.

    Layers outside of the mask, and layers that produce the same channels as these, retain all channels. If the channels
    of a layer in the mask cannot be removed, as in the classifier, all weights of the layer are retained, except those
    that read removed channels.

    Args:
        model: the model with the weights trained under `mask`.
        mask: unstructured mask of any of the model's parameters.
        example_inputs: a tensor, or a tuple of the model's arguments; two examples or more.
        score: score of channels, computed in the masked network. By the retained weights of the layers that produce a
            channel: ``remaining`` (number of weights), ``l1`` or ``l2`` (norm), ``taylor`` (sum of |w dL/dw|). By the
            inputs of later layers: ``activation_l1`` (mean |value|), ``activation_l2`` (root mean square). Or any other
            score of `structure.channels`. ``shuffled:l1`` fills random channels, as a control.
        plus: refill+: fraction of the emptied channels that is filled too, the best first. The number of filled
            channels is then k = floor(k0 + (channels - k0) · plus).
        density: choose `plus` so that the density of the result is nearest to `density`; at least k0 channels are
            filled.
        coupled: ``agree``: the layers of a residual stream retain the same channels; ``inner``: residual streams
            retain all channels, and only channels inside a block are removed.
        first: whether the first convolution may lose output channels. By default it may if it is in the mask; in the
            paper, the first convolution of ResNets is not. True includes all its weights even if the mask lacks them.
        output: whether the last linear or convolution layer may lose output channels, with the same values as `first`.
            Channels that are outputs of the model are always retained.
        spare: names or patterns, as in `ticketry.scope`, of layers that retain all their channels. Spared modules that
            cannot be traced also retain all channels that enter them.
        keep_at_least: smallest number of channels that each layer retains.
        multiple: the number of channels is rounded to the nearest multiple of this number (at least one multiple), see
            `channels`.
        batches, loss, seed: inputs of the score, if the score needs any, see `channels`.
        structure: channel structure of the model, if known from `structure.tried_structure`; finding the structure
            takes most of the time.

    Raises:
        UsageError: for an unknown score or option, `plus` outside [0, 1], or patterns that match nothing.
        MaskError: if the mask does not fit the model.
        LayerCollapseError: if the mask retains no weight of a layer whose channels can be removed.
        StructureError: if the model cannot be traced, `structure` is another model's, or none of the masked layers has
            channels that can be removed.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> mask = tk.prune(model, density=0.5, distribution="layerwise")
        >>> ticket = tk.structure.refill(model, mask, torch.randn(2, 4))
        >>> ticket["0.weight"].any(dim=1).sum()
        tensor(4)
        >>> tk.shrink(model, ticket, torch.randn(2, 4))
        Sequential(
          (0): Linear(in_features=4, out_features=4, bias=True)
          (1): ReLU()
          (2): Linear(in_features=4, out_features=2, bias=True)
        )
    """
    check_refill_score(score)
    density = None if density is None else parse_share(density)
    if not 0 <= plus <= 1:
        raise UsageError(f"plus is the share of the emptied channels that is filled back, 0 to 1, not {plus:g}")
    if density is not None and check_density(density) and plus:
        raise UsageError("plus= says how many channels are filled back, and so does density=: give one of them")
    if coupled not in COUPLINGS:
        raise UsageError(f"coupled is {' or '.join(COUPLINGS)}, not {coupled!r}")
    check_channel_limits(keep_at_least, multiple)
    names = {id(parameter): name for name, parameter in scopes.named_parameters(model).items()}
    named = Mask({names[id(parameter)]: mask[name].cpu() for name, parameter in mask.parameters(model).items()})
    spare = scopes.to_name_tuple(spare)
    known, unseen = (
        find_structure_sparing_untraceable(model, example_inputs, spare) if structure is None else (structure, ())
    )
    _check_structure_fits_model(known, named_shapes(model))
    stays = _find_protected_groups(known, coupled, _find_spared_parameters(model, spare, unseen, first, output))
    choice = ChannelChoice(model, known.staying(stays), _scope_with_end_layers(model, named, first, output))
    paid = [_count_affordable_channels(group, choice.roles, named, choice.shapes) for group in choice.groups]

    def count_filled_channels(share: float) -> list[int]:
        counts = []
        for group, least in zip(choice.groups, paid, strict=True):
            count = least + math.floor((group.size - least) * share + 1e-9)  # tolerance for rounding of `share`
            whole = max((count + multiple // 2) // multiple, 1) * multiple
            counts.append(min(max(whole, keep_at_least), group.size))
        return counts

    filled = (
        count_filled_channels(plus) if density is None else _fill_to_density(choice, count_filled_channels, density)
    )
    scores = score_for_refill(choice, named, score, ScoreInputs(batches, loss, seed))
    choice.check_no_nan(scores)
    removed = [np.ones(len(values), dtype=bool) for values in scores]
    for flags, values, count in zip(removed, scores, filled, strict=True):  # of equal scores, the earlier is retained
        flags[torch.argsort(values, descending=True, stable=True)[:count].numpy()] = False
    return choice.mask_without(removed)


def _check_structure_fits_model(structure: Structure, shapes: Mapping[str, tuple[int, ...]]) -> None:
    if not isinstance(structure, Structure):
        raise UsageError(
            "structure= is what tk.structure.tried_structure(model, example_inputs) gives, not a"
            f" {type(structure).__name__}"
        )
    for group in structure.groups:
        for member in group.members:
            shape = shapes.get(member.name, ())
            if member.dim >= len(shape) or int(member.array.max(initial=0)) >= shape[member.dim]:
                raise StructureError(
                    f"the structure is another model's: it has channels of {member.name!r} that the model lacks"
                )


# -- channels that may be removed --------------------------------------------------------------------------------------


def _scope_with_end_layers(model: nn.Module, mask: Mask, first: bool | None, output: bool | None) -> Scope:
    """Return the scope that contains the tensors in `mask`.

    If `first` is True, the first convolution is added; if `output` is True, the last layer.
    """
    ends = scopes.first_and_last_layer_parameters(model)
    added = (ends[0] if first else set()) | (ends[1] if output else set())
    shapes = mask.shapes
    for name, parameter in scopes.named_parameters(model).items():
        if name in added and parameter.dim() > 1:
            shapes.setdefault(name, tuple(parameter.shape))
    return scopes.scope_of_shapes(model, shapes)


def _find_protected_groups(structure: Structure, coupled: str, spared: set[str]) -> dict[int, str]:
    """Return why a channel group is not pruned, by index, for groups computed by `spared` or protected by `coupled`."""
    found: dict[int, str] = {}
    outputs, inputs = structure.roles.outputs, structure.roles.inputs
    for position, group in enumerate(structure.groups):
        if not group.prunable:
            continue
        made = {m.name for m in group.parameters if (m.name, m.dim) in outputs or (m.name, m.dim) not in inputs}
        if coupled == "inner" and group.residual:
            found[position] = "it is a residual stream, which coupled='inner' leaves whole"
        elif made & spared:
            found[position] = "it is spared"
    return found


def _find_spared_parameters(
    model: nn.Module, spare: Sequence[str], unseen: Sequence[str], first: bool | None, output: bool | None
) -> set[str]:
    """Return the names of the parameters that retain all channels, by the options `spare`, `first` and `output`.

    A pattern that matches no parameter is an error, unless it matches a module in `unseen`, which is not traced.
    """
    ends = scopes.first_and_last_layer_parameters(model)
    found = (ends[0] if first is False else set()) | (ends[1] if output is False else set())
    for pattern in spare:
        try:
            found |= scopes.match_spared_parameters(model, (pattern,))
        except ScopeError:
            if not any(fnmatchcase(name, pattern) for name in unseen):
                raise
    return found


# -- numbers of channels -----------------------------------------------------------------------------------------------


def _count_affordable_channels(
    group: ChannelGroup, parts: Roles, mask: Mask, shapes: Mapping[str, tuple[int, ...]]
) -> int:
    """Return how many channels of a group have together as many weights as the mask retains, at least one."""
    kept = total = 0
    for member in group.within(parts.outputs):
        shape = shapes[member.name]
        each = math.prod(shape) // shape[member.dim] * len(member.indices[0])
        total += each * group.size
        kept += int(_count_retained_by_index(mask, member, shapes)[torch.from_numpy(member.array)].sum())
    if not kept:
        layers = ", ".join(repr(member.name) for member in group.within(parts.outputs))
        raise LayerCollapseError(
            f"the mask keeps nothing of {layers}: none of the {group.size} channels of {group.name} would be filled"
            f" (layer collapse); choose a mask of higher density, or leave them whole with spare={group.name!r}"
        )
    return max(kept * group.size // total, 1)


def _fill_to_density(
    choice: ChannelChoice, count_filled_channels: Callable[[float], list[int]], density: float
) -> list[int]:
    """Return how many channels to fill in each group, so that the density of the mask is nearest to `density`.

    `count_filled_channels` returns these numbers for a value of `plus`, the fraction of the emptied channels to fill.
    """
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _density_if_filled(choice, count_filled_channels(middle)) < density else (low, middle)
        )
    return min(
        (count_filled_channels(low), count_filled_channels(high)),
        key=lambda filled: abs(_density_if_filled(choice, filled) - density),
    )


def _density_if_filled(choice: ChannelChoice, filled: Sequence[int]) -> float:
    """Return the density of a mask that retains `filled[i]` channels of group i, for each i."""
    left = {name: list(choice.shapes[name]) for name in choice.masked_names}
    for group, count in zip(choice.groups, filled, strict=True):
        for member in group.parameters:
            left[member.name][member.dim] -= (group.size - count) * len(member.indices[0])
    return sum(map(math.prod, left.values())) / sum(math.prod(choice.shapes[name]) for name in left)
