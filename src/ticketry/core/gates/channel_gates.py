"""Gates on whole channels: one for each coupled channel, in the weights of all layers that read it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ticketry.core.gates.attach import check_init, prepare
from ticketry.core.gates.gate_kind import Kind, gated
from ticketry.core.gates.gates import Act, Gates
from ticketry.core.gates.kinds import kind_of
from ticketry.core.gates.logits import logits_like
from ticketry.core.gates.product import summed
from ticketry.core.mask import Mask
from ticketry.core.scope import Scope, named_parameters
from ticketry.core.structure.channel_choice import candidates
from ticketry.core.structure.coupling import ChannelGroup, Member, Structure
from ticketry.errors import UsageError
from ticketry_engine.support.entry_points import CHANGES, entry_point


@entry_point(CHANGES)
def attach_channels(
    model: nn.Module, structure: Structure, scope: Scope, *, init: float = 0.0, kind: str | Kind, seed: int = 0
) -> ChannelGates:
    """Multiply what each channel gives to the layers behind it by a gate that is trained, until `Gates.detach`.

    Channel c of a group has one gate z_c. Every layer that reads the channel sees z_c times its value: as it reads it,
    behind norm and nonlinearity, so that no norm divides the gate out again. This is done in the weights that the
    layers have for it, all scaled by z_c, which is the same and needs no change of the model. A depthwise convolution
    reads a channel and gives it on: it is left as it is, and the layers behind it see the gate. (Louizos, Welling &
    Kingma 2018, arXiv 1712.01312, section 4: group sparsity, for neurons and filters; here for channels as coupled.)

    Args:
        model: where it trains, see `attach`.
        structure: of the model.
        scope: the channels that all layers in scope make have gates, if they can be removed. Layers that only read
            them need not be in scope.
        init: what every s begins with.
        kind, seed: see `attach`.

    Raises:
        StructureError: if there are no channels that can be removed.
        UsageError: if no layer with a known weight reads some of them, or a weight has gates already.
    """
    check_init(init)
    readers = readers_of(model, structure, scope)
    read = {member.name for members in readers.values() for member in members}
    parameters = {name: parameter for name, parameter in named_parameters(model).items() if name in read}
    prepare(model, parameters)
    return ChannelGates(model, parameters, readers, kind_of(kind), init, seed)


def readers_of(model: nn.Module, structure: Structure, scope: Scope) -> dict[str, list[Member]]:
    """name of each group that may lose channels -> the dimensions of weights that read them. Raises `attach_channels`'.

    A dimension that makes channels too, as a depthwise convolution's, is none.
    """
    parts = structure.roles
    groups = _named([structure.groups[position] for position in candidates(structure, scope)])
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
class _Part:
    """Where the channels of a group lie in a weight."""

    group: int
    dim: int
    index: Tensor
    """int64 [channels, indices of each]"""


class ChannelGates(Gates):
    """Gates on channels. Made by `attach_channels`.

    As `Gates`, but for one s for each channel: a tensor [channels] for each group, by the group's name. Counts,
    densities and histograms are of channels, the penalty of weights.
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
        """`readers`: name of each group -> where in `parameters` the layers behind it have its channels."""
        self._readers = readers
        parts: dict[str, list[_Part]] = {name: [] for name in parameters}
        for group, members in enumerate(readers.values()):
            for member in members:
                index = torch.tensor(member.indices, device=parameters[member.name].device)
                parts[member.name].append(_Part(group, member.dim, index))
        self._parts = list(parts.values())
        self._worth = [sum(_of_a_channel(m, parameters[m.name]) for m in members) for members in readers.values()]
        super().__init__(model, parameters, kind, init, None, seed)

    def penalty(self, coefficient: float) -> Tensor:
        """coefficient * the sum over gates of |g| * how far each is open, |g| the weights that it multiplies: a scalar.

        Of hard-concrete gates: the expected number of weights that are not multiplied by 0 (Louizos, Welling & Kingma
        2018, section 2: the penalty for groups that share a gate), with no regard to those that make the channels.
        """
        opened = zip(self._open(), self._worth, strict=True)
        return summed([value.sum() * worth for value, worth in opened], coefficient)

    @property
    def weights(self) -> int:
        return sum(worth * len(s) for worth, s in zip(self._worth, self._logits, strict=True))

    def harden(self, *, collapse: str = "raise") -> Mask:
        """Refused: see `structure.channels.cut_channels`."""
        return self.allocate(1.0)

    def by_weight(self) -> dict[str, Tensor]:
        """Refused too: some weights are multiplied by several gates."""
        raise UsageError("gates on channels multiply what layers read: a weight has that of its input, and of no other")

    def allocate(self, density: float, *, collapse: str = "raise") -> Mask:
        """Refused too."""
        raise UsageError(
            "gates on channels rank channels, and become a mask at a density: structure.channels.cut_channels(model,"
            " structure, [s of each group], density)"
        )

    def __repr__(self) -> str:
        return f"ChannelGates({self.kind.name}, {len(self._names)} groups, {self._total:,} channels)"

    # -- inside ----------------------------------------------------------------------------------------------------

    def _made_logits(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        made = {}
        for name, members in self._readers.items():
            like = parameters[members[0].name]
            channels = nn.Parameter(like.new_empty(len(members[0].indices)), requires_grad=False)
            made[name] = logits_like(channels, self.init)
        return made

    def _fixed(self, numbers: Sequence[int], weights: Sequence[Tensor], act: Act) -> list[Tensor]:
        return self._spread(numbers, weights, lambda group: act(self._logits[group], self._moment))

    def _trained(self, numbers: Sequence[int], weights: Sequence[Tensor], everything: bool) -> list[Tensor]:
        def gate(group: int) -> Tensor:
            return self.kind.gate(self._logits[group], self._moment, self._uniform(group))

        return self._spread(numbers, weights, gate)

    def _spread(self, numbers: Sequence[int], weights: Sequence[Tensor], gate: Callable[[int], Tensor]) -> list[Tensor]:
        gates = {part.group: Tensor() for number in numbers for part in self._parts[number]}
        for group in gates:
            gates[group] = gate(group)  # once, whatever number of weights it multiplies
        products = []
        for number, weight in zip(numbers, weights, strict=True):
            factors = [_along(weight, part, gates[part.group]) for part in self._parts[number]]
            products.append(gated(weight, math.prod(factors[1:], start=factors[0]), None))
        return products

    def _check_devices(self, numbers: Sequence[int], weights: Sequence[Tensor]) -> None:
        for number, weight in zip(numbers, weights, strict=True):
            places = {part.index.device for part in self._parts[number]}
            places |= {self._logits[part.group].device for part in self._parts[number]}
            if places != {weight.device}:
                raise UsageError(
                    f"a weight that has gates on its channels is on {weight.device}, and they are on"
                    f" {', '.join(sorted(map(str, places)))}: attach gates after the model is where it trains, on one"
                    " device"
                )


def _along(weight: Tensor, part: _Part, gate: Tensor) -> Tensor:
    """The gates of a group where a weight has its channels, 1 elsewhere; in a shape that multiplies the weight."""
    # No index is there twice, so that neither this nor its gradient adds up in an order of its own.
    spread = gate.new_ones(weight.shape[part.dim]).index_put((part.index,), gate[:, None].expand(part.index.shape))
    return spread.view([-1 if dim == part.dim else 1 for dim in range(weight.dim())])


def _of_a_channel(member: Member, parameter: Tensor) -> int:
    """Weights of a parameter that each channel is read by."""
    return parameter.numel() // parameter.shape[member.dim] * len(member.indices[0])


def _named(groups: Sequence[ChannelGroup]) -> dict[str, ChannelGroup]:
    """By name; of those of one layer the later ones are numbered."""
    named: dict[str, ChannelGroup] = {}
    for group in groups:
        name, number = group.name, 1
        while name in named:
            number += 1
            name = f"{group.name} ({number})"
        named[name] = group
    return named
