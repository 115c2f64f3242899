"""Refill: from an unstructured mask whole channels, as many as its kept weights pay for.

Chen, Chen, Ma, Wang, Wang, "Coarsening the Granularity: Towards Structurally Sparse Lottery Tickets", ICML 2022,
section 3.2. There the filters that are not filled are only zeroed; here all that belongs to a channel goes with it
(bias, norm, inputs of the layers behind), so that the network can be shrunk and is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn

from ticketry.core.layout import Roles
from ticketry.core.mask import Mask
from ticketry.core.pattern import check_density, share_of
from ticketry.core.scope import Patterns, Scope, as_names, end_layers, named_parameters, parameters_of, scope_of_shapes
from ticketry.core.score import Loss, Score, ScoreInputs
from ticketry.core.structure.channel_wise.choice import Choice
from ticketry.core.structure.channel_wise.ranking import check_counts
from ticketry.core.structure.channel_wise.refill_scores import check_refill_score, kept_counts, refill_scores
from ticketry.core.structure.dependencies.channel_groups import ChannelGroup, Structure
from ticketry.core.structure.dependencies.model_copies import Inputs
from ticketry.core.structure.shrinking.removal_trial import structure_around
from ticketry.core.structure.shrinking.selection import Flags, shapes_of
from ticketry.core.structuring import COUPLINGS
from ticketry.errors import LayerCollapseError, ScopeError, StructureError, UsageError
from ticketry_engine.support.entry_points import entry_point


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
    """A mask of whole channels from an unstructured one, which `shrink` can take out.

    Each layer keeps k0 = floor(density · channels) of its channels, at least one, where density is the share of the
    layer's weights that `mask` keeps: as many channels as the kept weights fill. Those with the highest scores are
    filled back whole, ties by position, the others emptied, with all that belongs to them: biases, norm scales and
    shifts, and the inputs of the layers behind. These inputs are not part of the count, as in the paper: the result's
    density is below the mask's, down to its square; `density` fills back more.

    Where several layers make the same channels, as in a residual stream, k0 is that of the weights of all of them
    together, and so is the ranking: of each layer's scores divided by their sum over the channels, so that every layer
    has one vote. The size of weights in front of a norm has no meaning, and a layer with larger ones would decide
    alone. Kept-weight counts and ``taylor`` have one unit in all layers (weights, loss) and are added up as they are.

    A layer out of the mask keeps all its channels, and so do those that share them; one in the mask whose channels
    cannot be removed, such as the classifier, is filled back whole but for the inputs that are gone.

    Args:
        model: with the weights that the scores are of: those trained with `mask`.
        mask: unstructured, of any of the model's parameters.
        example_inputs: a tensor, or a tuple of the model's arguments; two examples or more.
        score: of a channel, by its kept weights in the layers that make it: ``remaining`` (how many), ``l1``, ``l2``
            (norm), ``taylor`` (sum of |w dL/dw|); ``activation_l1``, ``activation_l2`` (mean |value|, root mean square
            of what the layers behind read, in the masked network); or any other of `structure.channels`, of the masked
            network; ``shuffled:l1`` fills as many channels at random, a control.
        plus: refill+: the share of the emptied channels that is filled back too, the best first:
            k = floor(k0 + (channels - k0) · plus).
        density: instead of `plus`: the share that brings the result's density nearest to this one. Not below k0.
        coupled: ``agree``: the layers of a residual stream keep the same channels; ``inner``: residual streams
            (whatever an addition joins) keep all of theirs, and only channels inside a block go.
        first: whether channels that the first convolution makes may go; by default if the mask names it (in the paper
            that of ResNets is not in the mask). True: though the mask does not name it; all its weights count as kept.
        output: the same of the last linear or convolution layer, where its channels are not the model's outputs.
        spare: names or patterns, as in `ticketry.scope`, of layers that keep all their channels. Of a module that
            looks at its activations to decide what to run, and so cannot be followed, all channels that enter it stay
            as well.
        keep_at_least: channels that each layer keeps.
        multiple: the number of channels is rounded to the nearest multiple (at least one): see `channels`.
        batches, loss, seed: what the score needs, if it needs any: see `channels`.
        structure: the model's, where it is known (`structure.tried_structure`): finding it takes most of the time.

    Raises:
        UsageError: for an unknown score or option, `plus` out of [0, 1], patterns that match nothing.
        MaskError: if the mask does not fit the model.
        LayerCollapseError: if the mask keeps no weight of a layer whose channels can go.
        StructureError: if the model cannot be followed, `structure` is another model's, or none of the masked layers
            has channels that can be removed.

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
    density = None if density is None else share_of(density)
    _check(plus, density, coupled, keep_at_least, multiple)
    named = _first_names(model, mask)
    spare = as_names(spare)
    known, unseen = structure_around(model, example_inputs, spare) if structure is None else (structure, ())
    _check_structure(known, shapes_of(model))
    stays = _staying(model, known, known.roles, coupled, first, output, _spared(model, spare, unseen))
    choice = Choice(model, known.staying(stays), _scope(model, named, first, output))
    budgets = [_budget(group, choice.roles, named, choice.shapes) for group in choice.groups]

    def channels(share: float) -> list[int]:
        return [budget.channels(share, keep_at_least, multiple) for budget in budgets]

    filled = channels(plus) if density is None else _nearest(choice, channels, density)
    scores = refill_scores(choice, named, score, ScoreInputs(batches, loss, seed))
    choice.check_numbers(scores)
    return choice.mask([_lowest(values, count) for values, count in zip(scores, filled, strict=True)])


def _check(plus: float, density: float | None, coupled: str, keep_at_least: int, multiple: int) -> None:
    if not 0 <= plus <= 1:
        raise UsageError(f"plus is the share of the emptied channels that is filled back, 0 to 1, not {plus:g}")
    if density is not None and check_density(density) and plus:
        raise UsageError("plus= says how many channels are filled back, and so does density=: give one of them")
    if coupled not in COUPLINGS:
        raise UsageError(f"coupled is {' or '.join(COUPLINGS)}, not {coupled!r}")
    check_counts(keep_at_least, multiple)


def _check_structure(structure: Structure, shapes: Mapping[str, tuple[int, ...]]) -> None:
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


# -- which channels may go ---------------------------------------------------------------------------------------------


def _first_names(model: nn.Module, mask: Mask) -> Mask:
    """The mask under the first names of shared parameters; `MaskError` if it does not fit."""
    names = {id(parameter): name for name, parameter in named_parameters(model).items()}
    return Mask({names[id(parameter)]: mask[name].cpu() for name, parameter in mask.parameters(model).items()})


def _scope(model: nn.Module, mask: Mask, first: bool | None, output: bool | None) -> Scope:
    """What the mask names, and the ends of the network where asked for."""
    asked = [names for names, want in zip(end_layers(model), (first, output), strict=True) if want]
    parameters = named_parameters(model)
    shapes = mask.shapes
    for name in parameters:
        if any(name in names for names in asked) and parameters[name].dim() > 1:
            shapes.setdefault(name, tuple(parameters[name].shape))
    return scope_of_shapes(model, shapes)


def _staying(
    model: nn.Module,
    structure: Structure,
    parts: Roles,
    coupled: str,
    first: bool | None,
    output: bool | None,
    spared: set[str],
) -> dict[int, str]:
    """Positions of the groups that the caller wants whole, and why."""
    ends = end_layers(model)
    spared = spared | (ends[0] if first is False else set()) | (ends[1] if output is False else set())
    found: dict[int, str] = {}
    for position, group in enumerate(structure.groups):
        made = {
            m.name for m in group.parameters if (m.name, m.dim) in parts.outputs or (m.name, m.dim) not in parts.inputs
        }
        if not group.prunable:
            continue
        if coupled == "inner" and group.residual:
            found[position] = "it is a residual stream, which coupled='inner' leaves whole"
        elif made & spared:
            found[position] = "it is spared"
    return found


def _spared(model: nn.Module, spare: Sequence[str], unseen: Sequence[str]) -> set[str]:
    """The parameters that patterns name; one that names a module not looked into need not name any."""
    found: set[str] = set()
    for pattern in spare:
        try:
            found |= parameters_of(model, (pattern,), "spare")
        except ScopeError:
            if not any(fnmatchcase(name, pattern) for name in unseen):
                raise
    return found


# -- how many ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Budget:
    """Of a group: its channels, and of the weights that make them how many there are and how many are kept."""

    size: int
    kept: int
    total: int

    def channels(self, plus: float, keep_at_least: int, multiple: int) -> int:
        """How many are filled."""
        paid = max(self.kept * self.size // self.total, 1)
        filled = paid + math.floor((self.size - paid) * plus + 1e-9)  # 0.3 · 10 is 3, whatever its last bit
        whole = max((filled + multiple // 2) // multiple, 1) * multiple
        return min(max(whole, keep_at_least), self.size)


def _budget(group: ChannelGroup, parts: Roles, mask: Mask, shapes: Mapping[str, tuple[int, ...]]) -> _Budget:
    kept = total = 0
    for member in group.within(parts.outputs):
        shape = shapes[member.name]
        each = math.prod(shape) // shape[member.dim] * len(member.indices[0])
        total += each * group.size
        kept += int(kept_counts(mask, member, shapes).sum())
    if not kept:
        layers = ", ".join(repr(member.name) for member in group.within(parts.outputs))
        raise LayerCollapseError(
            f"the mask keeps nothing of {layers}: none of the {group.size} channels of {group.name} would be filled"
            f" (layer collapse); choose a mask of higher density, or leave them whole with spare={group.name!r}"
        )
    return _Budget(group.size, kept, total)


def _nearest(choice: Choice, channels: Callable[[float], list[int]], density: float) -> list[int]:
    """The channels filled at the share of emptied ones whose density is nearest."""
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if _density(choice, channels(middle)) < density else (low, middle)
    return min((channels(low), channels(high)), key=lambda filled: abs(_density(choice, filled) - density))


def _density(choice: Choice, filled: Sequence[int]) -> float:
    """Of the mask with so many channels of each group: a tensor keeps the product of what its dimensions keep."""
    left = {name: list(choice.shapes[name]) for name in choice.held}
    for group, count in zip(choice.groups, filled, strict=True):
        for member in group.parameters:
            left[member.name][member.dim] -= (group.size - count) * len(member.indices[0])
    return sum(map(math.prod, left.values())) / sum(math.prod(choice.shapes[name]) for name in left)


def _lowest(scores: Tensor, filled: int) -> Flags:
    """For each channel whether it goes: all but the `filled` best, ties by position."""
    removed = np.ones(len(scores), dtype=bool)
    removed[torch.argsort(scores, descending=True, stable=True)[:filled].numpy()] = False
    return removed
