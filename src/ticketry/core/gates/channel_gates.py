"""Gates on whole channels: one gate per coupled channel, which scales the weights of all layers that read it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ticketry.core.gates.attach import check_attachable, check_init
from ticketry.core.gates.gates import GateFunction, Gates, create_logits
from ticketry.core.gates.kinds import Kind, make_kind
from ticketry.core.gates.product import apply_gate, weighted_sum
from ticketry.core.mask import Mask
from ticketry.core.scope import Scope, named_parameters
from ticketry.core.structure.channel_choice import removable_group_positions
from ticketry.core.structure.coupling import ChannelGroup, Member, Structure
from ticketry.errors import UsageError
from ticketry_engine.support.entry_points import CHANGES, entry_point


@entry_point(CHANGES)
def attach_channels(
    model: nn.Module, structure: Structure, scope: Scope, *, init: float = 0.0, kind: str | Kind, seed: int = 0
) -> ChannelGates:
    """Multiply each channel by a trainable gate at the layers that read it, until `Gates.detach`.

    Coupled channels, which can only be removed together, form one channel c of a group and share one gate z_c. Every
    layer that reads the channel sees its value, after norm and nonlinearity, times z_c; so no norm cancels the gate.
    This is implemented by scaling the weights with which the layer reads the channel; the model's modules do not
    change. A depthwise convolution is not scaled; the layers after it are. (Louizos, Welling & Kingma 2018, arXiv
    1712.01312, section 4, gate single neurons and filters in this way.)

    Args:
        model: on the device where it trains, see `attach`.
        structure: channel structure of the model.
        scope: a channel gets a gate if it can be removed and is computed by layers in scope only. The layers that read
            it need not be in scope.
        init: initial value of every s.
        kind, seed: see `attach`.

    Raises:
        StructureError: if there are no channels that can be removed.
        UsageError: if no layer with a known weight reads the channels of a group, or a weight has gates already.
    """
    check_init(init)
    readers = find_readers(model, structure, scope)
    read = {member.name for members in readers.values() for member in members}
    parameters = {name: parameter for name, parameter in named_parameters(model).items() if name in read}
    check_attachable(model, parameters)
    return ChannelGates(model, parameters, readers, make_kind(kind), init, seed)


def find_readers(model: nn.Module, structure: Structure, scope: Scope) -> dict[str, list[Member]]:
    """Return, by the name of each removable channel group, the weight dimensions that read the group's channels.

    Dimensions that also compute channels, such as those of a depthwise convolution, are left out. Raises the same
    errors as `attach_channels`.
    """
    parts = structure.roles
    groups = _name_uniquely([structure.groups[position] for position in removable_group_positions(structure, scope)])
    places = parts.inputs - parts.outputs
    readers = {name: group.within(places) for name, group in groups.items()}
    for name, members in readers.items():
        if not members:
            raise UsageError(
                f"no layer whose weights are known reads the channels of {name}, so that a gate has nothing to"
                f" multiply: leave it out (--spare {name})"
            )
    return readers


@dataclass(frozen=True)
class _ChannelIndices:
    """Where the channels of a group are in a weight: indices along one dimension."""

    group: int
    dim: int
    index: Tensor
    """int64 [channels, indices per channel]: the indices of each channel along dimension `dim`."""


class ChannelGates(Gates):
    """Gates on channels, created by `attach_channels`.

    Each channel has one logit s. The logits of a group are a tensor [channels], named like the group. `kept`, `ties`,
    densities and histograms count channels; the penalty and `weights` count weights.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        readers: Mapping[str, Sequence[Member]],
        kind: Kind,
        init: float,
        seed: int,
    ) -> None:
        """Create gates; `readers` maps each group's name to the dimensions of `parameters` that read its channels."""
        self._readers = readers
        parts: dict[str, list[_ChannelIndices]] = {name: [] for name in parameters}
        for group, members in enumerate(readers.values()):
            for member in members:
                index = torch.tensor(member.indices, device=parameters[member.name].device)
                parts[member.name].append(_ChannelIndices(group, member.dim, index))
        self._channel_indices = list(parts.values())
        self._weights_per_channel = [
            sum(_count_weights_per_channel(m, parameters[m.name]) for m in members) for members in readers.values()
        ]
        super().__init__(model, parameters, kind, init, None, seed)

    def penalty(self, coefficient: float) -> Tensor:
        """Return the penalty: `coefficient` times the number of weights behind open gates.

        Each gate counts as far as it is open, times the number of weights that it multiplies. For hard-concrete gates
        this is the expected number of weights that are not multiplied by 0 (Louizos, Welling & Kingma 2018, section 2:
        groups that share a gate). The weights that compute a channel are not counted, only those that read it.
        """
        opened = zip(self._compute_openness(), self._weights_per_channel, strict=True)
        return weighted_sum([value.sum() * weights for value, weights in opened], coefficient)

    @property
    def weights(self) -> int:
        return sum(weights * len(s) for weights, s in zip(self._weights_per_channel, self._logits, strict=True))

    def harden(self, *, collapse: str = "raise") -> Mask:
        """Raise `UsageError`; use `channel_masks.prune_channels_by_scores` to turn channel gates into a mask."""
        return self.allocate(1.0)

    def by_weight(self) -> dict[str, Tensor]:
        """Raise `UsageError`: a weight may be multiplied by the gates of several channels."""
        raise UsageError("gates on channels multiply what layers read: a weight has that of its input, and of no other")

    def allocate(self, density: float, *, collapse: str = "raise") -> Mask:
        """Raise `UsageError`; use `channel_masks.prune_channels_by_scores` to turn channel gates into a mask."""
        raise UsageError(
            "gates on channels rank channels, and become a mask at a density:"
            " structure.channel_masks.prune_channels_by_scores(model, structure, [s of each group], density)"
        )

    def __repr__(self) -> str:
        return f"ChannelGates({self.kind.name}, {len(self._names)} groups, {self._gate_count:,} channels)"

    # -- inside ----------------------------------------------------------------------------------------------------

    def _create_logits(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        made = {}
        for name, members in self._readers.items():
            like = parameters[members[0].name]
            channels = nn.Parameter(like.new_empty(len(members[0].indices)), requires_grad=False)
            made[name] = create_logits(channels, self.init)
        return made

    def _apply_gate_function(
        self, numbers: Sequence[int], weights: Sequence[Tensor], act: GateFunction
    ) -> list[Tensor]:
        return self._apply_channel_gates(numbers, weights, lambda group: act(self._logits[group], self._moment))

    def _apply_training_gates(
        self, numbers: Sequence[int], weights: Sequence[Tensor], everything: bool
    ) -> list[Tensor]:
        def gate(group: int) -> Tensor:
            return self.kind.gate(self._logits[group], self._moment, self._draw_uniform(group))

        return self._apply_channel_gates(numbers, weights, gate)

    def _apply_channel_gates(
        self, numbers: Sequence[int], weights: Sequence[Tensor], gate: Callable[[int], Tensor]
    ) -> list[Tensor]:
        gates = {part.group: Tensor() for number in numbers for part in self._channel_indices[number]}
        for group in gates:
            gates[group] = gate(group)  # once per group, although it multiplies several weights
        products = []
        for number, weight in zip(numbers, weights, strict=True):
            factors = [_broadcast_gates(weight, part, gates[part.group]) for part in self._channel_indices[number]]
            products.append(apply_gate(weight, math.prod(factors[1:], start=factors[0]), None))
        return products

    def _check_devices(self, numbers: Sequence[int], weights: Sequence[Tensor]) -> None:
        for number, weight in zip(numbers, weights, strict=True):
            places = {part.index.device for part in self._channel_indices[number]}
            places |= {self._logits[part.group].device for part in self._channel_indices[number]}
            if places != {weight.device}:
                raise UsageError(
                    f"a weight that has gates on its channels is on {weight.device}, and they are on"
                    f" {', '.join(sorted(map(str, places)))}: attach gates after the model is where it trains, on one"
                    " device"
                )


def _broadcast_gates(weight: Tensor, part: _ChannelIndices, gate: Tensor) -> Tensor:
    """Return a factor for `weight`, to be broadcast: the gates of a group at the channels of the group, 1 elsewhere."""
    # Indices are unique, so that neither this nor its gradient depends on an order of summation.
    spread = gate.new_ones(weight.shape[part.dim]).index_put((part.index,), gate[:, None].expand(part.index.shape))
    return spread.view([-1 if dim == part.dim else 1 for dim in range(weight.dim())])


def _count_weights_per_channel(member: Member, parameter: Tensor) -> int:
    """Return how many weights of `parameter` read a channel; `member` is the dimension that reads it."""
    return parameter.numel() // parameter.shape[member.dim] * len(member.indices[0])


def _name_uniquely(groups: Sequence[ChannelGroup]) -> dict[str, ChannelGroup]:
    """Return groups by name; append a number to the name if several groups have the same one."""
    named: dict[str, ChannelGroup] = {}
    for group in groups:
        name, number = group.name, 1
        while name in named:
            number += 1
            name = f"{group.name} ({number})"
        named[name] = group
    return named
