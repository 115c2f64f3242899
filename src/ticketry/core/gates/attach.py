"""Attach gates to a model: to single weights, to blocks of weights, or to whole channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn

from ticketry.core.allocate import allocate_for_gates
from ticketry.core.computed_weights import require_computed_weights_are_removed
from ticketry.core.gates.charges import Charges
from ticketry.core.gates.gates import Gates, create_logits
from ticketry.core.gates.kinds import Kind, make_kind
from ticketry.core.gates.parameter_swap import find_gated_parameters
from ticketry.core.gates.product import apply_gate, block_product, weighted_sum
from ticketry.core.mask import Mask
from ticketry.core.scope import Scope, named_parameters
from ticketry.core.scope import scope as scope_of
from ticketry.core.sharding import is_sharded
from ticketry.core.sparse_training.hold import release_interrupted_trainings
from ticketry.core.structure.channel_choice import removable_group_positions
from ticketry.core.structure.coupling import Member, Structure
from ticketry.core.structure.layout import layouts
from ticketry.core.structure.pattern import Pattern
from ticketry.errors import MaskError, ScopeError, UsageError
from ticketry_engine.support.entry_points import CHANGES, entry_point


class GateOptions(TypedDict, total=False):
    """The keyword arguments of `attach`, the function that adds trainable gates to the weights of a model."""

    init: float
    kind: str | Kind
    scope: Scope | None
    within: Mask | None
    pattern: str | Pattern
    seed: int
    charges: Charges | None


LARGEST_INIT = 50
"""Largest accepted absolute value of `init`. Papers use -0.3 to 0.3. Beyond 50, the gradient of a new gate vanishes in
float32, so the gate does not train.
"""


@entry_point(CHANGES)
def attach(
    model: nn.Module,
    *,
    init: float = 0.0,
    kind: str | Kind = "continuous",
    scope: Scope | None = None,
    within: Mask | None = None,
    pattern: str | Pattern = "unstructured",
    seed: int = 0,
    charges: Charges | None = None,
) -> Gates:
    """Multiply weights of `model` by trainable gates, until `Gates.detach`.

    Each gate is computed from a trainable number s, its logit. Whenever the model or one of its modules is called, it
    computes with w * gate instead of the weight w; both w and s get gradients. The model's class, its parameters, their
    names and its state dict do not change, and hold w. Attach gates after the model is on its device and in its memory
    layout. A weight that several modules share has one gate, which all these modules use, also those outside the scope.
    A deep or pickled copy of the model has no gates.

    torch.compile works, but the multiplication by gates is not compiled, and modules compiled earlier are recompiled.
    DistributedDataParallel ignores `Gates.parameters`: average their gradients yourself. nn.DataParallel on several
    devices and TorchScript modules are not supported.

    Args:
        model: any module.
        init: s0, the initial value of every logit s; a larger s0 gives a denser final mask.
        kind: a name of `KINDS`, or a configured kind such as ``Continuous(final=500)``.
        scope: the parameters that get gates; by default the parameters of `within`, or else `ticketry.scope(model)`.
        within: a mask of the parameters in scope, in the same pattern; gates of weights that it removes stay 0.
        pattern: the blocks of weights that share a gate: ``unstructured`` (each weight has its own gate), ``4x1``,
            ``16x1`` … (4 or 16 adjacent rows at one column) or ``channel`` (a whole row of one layer), see
            `structure.Pattern`. The mask then retains or removes whole blocks. The gradient of a block's s is a sum
            over the block's weights, so s moves faster than for a single weight. With ``channel``, a batch norm after
            the layer cancels a soft gate on a filter, except in the filter's gradient, until the gate is 0.
            `attach_channels` avoids this: it gates channels where the next layers read them.
        seed: seed of the random numbers, for kinds of gates that are random.
        charges: what each open gate costs in the penalty, see `Charges`; None: all weights cost the same.

    Raises:
        UsageError: if `within` is not a mask; if the kind or pattern is unknown; if the pattern has no blocks (2:4);
            if `charges` are for other weights; if `init` is out of range; or if a parameter already has gates or is
            sharded over several devices (`fully_shard`).
        ScopeError, MaskError: if scope or mask do not fit the model or each other, or if the mask retains parts of
            blocks or would make a computed weight (weight_norm) NaN.

    Examples:
        >>> model = nn.Linear(4, 3)
        >>> gates = tk.gates.attach(model, init=0.0)
        >>> gates.penalty(0.1)  # 0.1 * 12 gates, each half open
        tensor(0.6000, grad_fn=<_WeightedSumBackward>)
        >>> optimizer = torch.optim.SGD([*model.parameters(), *gates.parameters()], lr=0.1)
        >>> x, y = torch.randn(16, 4), torch.arange(16) % 3
        >>> for step in range(10):
        ...     gates.anneal(tk.gates.by_step(step, 10))
        ...     optimizer.zero_grad()
        ...     (nn.functional.cross_entropy(model(x), y) + gates.penalty(0.01)).backward()
        ...     optimizer.step()
        >>> with gates.hardened():
        ...     y = model(x)  # with the mask that the gates give now
        >>> with gates.lifted():
        ...     y = model(x)  # without gates
        >>> mask = gates.harden(collapse="keep")
        >>> gates.detach()
        >>> sorted(mask), mask.total
        (['weight'], 12)
        >>> other = tk.gates.attach(nn.Linear(4, 3), kind="stochastic", init=0.0)
        >>> other.set_step(10)
        >>> state = other.state_dict()
        >>> state["kind"], state["step"] == other.step, round(other.soft_density(), 2)
        ('stochastic', True, 0.5)
        >>> other.load_state_dict(state)
        >>> other.hard()
        >>> with other.drawing():
        ...     pass  # draws gates in eval mode too: to train them over frozen weights
    """
    check_initial_logit(init)
    if scope is not None:
        parameters = scope.parameters(model)
    else:
        parameters = scope_of(model).parameters(model) if within is None else within.parameters(model)
    if within is not None and within.shapes != {name: tuple(p.shape) for name, p in parameters.items()}:
        raise MaskError("the mask that gates are to stay within is not of the parameters in scope")
    check_attachable(model, parameters)
    if within is not None:
        require_computed_weights_are_removed(model, parameters, within)
    if charges is not None and charges.sizes != tuple(parameter.numel() for parameter in parameters.values()):
        raise UsageError("the charges are of gates on other weights: make them of the parameters in scope, in order")
    pattern = Pattern.parse(pattern)
    if pattern.unstructured:
        found = Gates(model, parameters, make_kind(kind), init, within, seed)
    else:
        found = BlockGates(model, parameters, pattern, make_kind(kind), init, within, seed)
    found.charges = charges
    return found


def check_initial_logit(init: float) -> None:
    """Raise `UsageError` if the initial logit s0 is out of range."""
    if not -LARGEST_INIT <= init <= LARGEST_INIT:
        raise UsageError(
            f"init is the value that all s begin with, a number from {-LARGEST_INIT} to {LARGEST_INIT}, not {init!r}"
        )


def check_attachable(model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Check that these parameters of `model` can get gates; raise the errors of `attach`."""
    release_interrupted_trainings(model)
    taken = find_gated_parameters(model)
    for name, parameter in parameters.items():
        if id(parameter) in taken:
            raise UsageError(f"{name!r} has gates already: detach them first")
        if not parameter.is_floating_point():
            raise ScopeError(f"{name!r} holds {parameter.dtype}, and gates are for floating-point weights: spare it")
        if is_sharded(parameter):
            raise UsageError(
                f"{name!r} is sharded over several devices, and gates need whole weights: attach them to a model"
                " that each device has whole, under DistributedDataParallel"
            )
    # glibc returns large freed blocks to the system, and getting them back costs a millisecond per step of a LeNet,
    # until a block of up to 32 MiB has been freed. This one is never touched, so it costs nothing.
    torch.empty(31 << 20, dtype=torch.uint8)


class BlockGates(Gates):
    """Gates on blocks of weights, created by `attach` with a pattern.

    Each block has one trainable logit. The logits of a weight form a tensor of shape `Blocks.shape`.
    `kept`, densities, masks and the penalty count weights; `histogram` and `ties` count gates. For random gates, the
    penalty is then the expected number of retained weights (Louizos, Welling & Kingma 2018, arXiv 1712.01312, section
    2: groups that share a gate).
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        pattern: Pattern,
        kind: Kind,
        init: float,
        within: Mask | None,
        seed: int,
    ) -> None:
        self.pattern = pattern
        self._layouts = layouts(model, parameters)
        self._blocks = [
            pattern.require_blocks("gates").blocks(tuple(parameter.shape), self._layouts[name])
            for name, parameter in parameters.items()
        ]
        kept = None
        if within is not None:
            flags = zip(parameters, self._blocks, strict=True)
            kept = Mask({name: blocks.retained_blocks(within[name], name) for name, blocks in flags})
        super().__init__(model, parameters, kind, init, kept, seed)
        self._sizes = [
            torch.empty_like(s, requires_grad=False).copy_(blocks.sizes)
            for s, blocks in zip(self._logits, self._blocks, strict=True)
        ]

    def harden(self, *, collapse: str = "raise") -> Mask:
        """Return the mask that retains the blocks whose gates are on, that is, whose logits exceed a threshold.

        Args:
            collapse: what to do if no gate of a parameter is on: ``raise`` an error, or ``keep`` the best block.
        """
        return Mask(self._expand_to_weights(super().harden(collapse=collapse)))

    def allocate(self, density: float, *, collapse: str = "raise") -> Mask:
        """Return the mask of the blocks with the largest logits, as close to `density` as whole blocks permit.

        Args:
            density: fraction of the weights to retain.
            collapse: what to do if a layer would be left empty: ``raise`` an error, or ``keep`` its best block.
        """
        more = {"pattern": self.pattern, "layouts": self._layouts, "within": self._initial_mask()}
        return allocate_for_gates(self.by_weight(), density, collapse=collapse, **more)

    def by_weight(self) -> dict[str, Tensor]:
        return self._expand_to_weights(super().by_weight())

    def __repr__(self) -> str:
        gates = super().__repr__().removeprefix("Gates(")
        return f"BlockGates({self.pattern}, {gates.replace(' weights,', ' blocks,')}"

    # -- inside ----------------------------------------------------------------------------------------------------

    def _create_logits(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        made = {}
        for (name, parameter), blocks in zip(parameters.items(), self._blocks, strict=True):
            like = parameter.detach().new_empty(blocks.shape)
            for dimensions, kept in ((4, torch.channels_last), (5, torch.channels_last_3d)):
                if parameter.dim() == like.dim() == dimensions and parameter.is_contiguous(memory_format=kept):
                    like = like.contiguous(memory_format=kept)  # so that products traverse both in memory order
            made[name] = create_logits(nn.Parameter(like, requires_grad=False), self.init)
        return made

    def _apply_training_gates(
        self, positions: Sequence[int], weights: Sequence[Tensor], all_parameters: bool
    ) -> list[Tensor]:
        return self._multiply(positions, weights, self._compute_training_gate)

    def _multiply(
        self, positions: Sequence[int], weights: Sequence[Tensor], gate: Callable[[int], Tensor]
    ) -> list[Tensor]:
        products = []
        for number, weight in zip(positions, weights, strict=True):
            kept, own = self._kept[number], gate(number)
            products.append(block_product(weight, own if kept is None else own * kept, self._blocks[number]))
        return products

    def _initial_mask(self) -> Mask | None:
        blocks = super()._initial_mask()
        return None if blocks is None else Mask(self._expand_to_weights(blocks))

    def _expand_to_weights(self, of_blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors in the shapes of the weights, in which each weight has the value of its block."""
        pairs = zip(of_blocks.items(), self._blocks, strict=True)
        return {name: blocks.expand_to_weights(values) for (name, values), blocks in pairs}


@entry_point(CHANGES)
def attach_channels(
    model: nn.Module, structure: Structure, scope: Scope, *, init: float = 0.0, kind: str | Kind, seed: int = 0
) -> ChannelGates:
    """Multiply each channel by a trainable gate at the layers that read it, until `Gates.detach`.

    Coupled channels, which can only be removed together, form one channel c of a group and share one gate z_c. Every
    layer that reads the channel gets its value after norm and nonlinearity, times z_c; so no norm cancels the gate.
    This is implemented by scaling the weights with which the layer reads the channel; the model's modules do not
    change. A depthwise convolution is not scaled; the layers after it are. (Louizos, Welling & Kingma 2018, arXiv
    1712.01312, section 4, gate single neurons and filters in this way.)

    Args:
        scope: a channel gets a gate if it can be removed and is computed by layers in scope only. The layers that read
            it need not be in scope.
    """
    check_initial_logit(init)
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
    places = structure.roles.inputs - structure.roles.outputs
    readers: dict[str, list[Member]] = {}
    for position in removable_group_positions(structure, scope):
        group = structure.groups[position]
        name, number = group.name, 1
        while name in readers:  # several groups may have the same name
            number += 1
            name = f"{group.name} ({number})"
        readers[name] = group.within(places)
        if not readers[name]:
            raise UsageError(
                f"no layer whose weights are known reads the channels of {name}, so that a gate has nothing to"
                f" multiply: leave it out (--spare {name})"
            )
    return readers


@dataclass(frozen=True)
class _ChannelIndices:
    """The indices along one dimension of a weight that belong to the channels of a group."""

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
            sum(
                parameters[one.name].numel() // parameters[one.name].shape[one.dim] * len(one.indices[0])
                for one in members
            )
            for members in readers.values()
        ]
        super().__init__(model, parameters, kind, init, None, seed)

    def penalty(self, coefficient: float) -> Tensor:
        """Return the penalty: `coefficient` times the number of weights behind open gates.

        Each gate counts by how far it is open, times the number of weights that it multiplies. For hard-concrete gates
        this is the expected number of weights that are not multiplied by 0 (Louizos, Welling & Kingma 2018, section 2:
        groups that share a gate). The weights that compute a channel are not counted, only those that read it.
        """
        opened = zip(self._compute_openness(), self._weights_per_channel, strict=True)
        return weighted_sum([value.sum() * weights for value, weights in opened], coefficient)

    @property
    def weights(self) -> int:
        return sum(weights * len(s) for weights, s in zip(self._weights_per_channel, self._logits, strict=True))

    @property
    def _total(self) -> int:
        return self._gate_count

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

    def _apply_training_gates(
        self, positions: Sequence[int], weights: Sequence[Tensor], all_parameters: bool
    ) -> list[Tensor]:
        return self._multiply(positions, weights, self._compute_training_gate)

    def _multiply(
        self, positions: Sequence[int], weights: Sequence[Tensor], gate: Callable[[int], Tensor]
    ) -> list[Tensor]:
        gates = {part.group: Tensor() for number in positions for part in self._channel_indices[number]}
        for group in gates:
            gates[group] = gate(group)  # once per group, although it multiplies several weights
        products = []
        for number, weight in zip(positions, weights, strict=True):
            factors = []
            for part in self._channel_indices[number]:
                own = gates[part.group]
                # Indices are unique, so that neither this nor its gradient depends on an order of summation.
                spread = own.new_ones(weight.shape[part.dim])
                spread = spread.index_put((part.index,), own[:, None].expand(part.index.shape))
                factors.append(spread.view([-1 if dim == part.dim else 1 for dim in range(weight.dim())]))
            products.append(apply_gate(weight, math.prod(factors[1:], start=factors[0]), None))
        return products

    def _check_devices(self, positions: Sequence[int], weights: Sequence[Tensor]) -> None:
        for number, weight in zip(positions, weights, strict=True):
            places = {part.index.device for part in self._channel_indices[number]}
            places |= {self._logits[part.group].device for part in self._channel_indices[number]}
            if places != {weight.device}:
                raise UsageError(
                    f"a weight that has gates on its channels is on {weight.device}, and they are on"
                    f" {', '.join(sorted(map(str, places)))}: attach gates after the model is where it trains, on one"
                    " device"
                )
