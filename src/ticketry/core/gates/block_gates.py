"""Gates on blocks of weights: one gate for several adjacent rows at a column, or for a whole row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ticketry.core.allocate import allocate_for_gates
from ticketry.core.gates.charges import charge_penalty
from ticketry.core.gates.gates import GateFunction, Gates, create_logits
from ticketry.core.gates.kinds import Kind
from ticketry.core.gates.product import block_product
from ticketry.core.mask import Mask
from ticketry.core.structure.layout import layouts
from ticketry.core.structure.pattern import Pattern


class BlockGates(Gates):
    """Gates on blocks of weights, created by `attach` with a pattern.

    Each block has one logit s. The logits of a weight are a tensor of shape `Blocks.shape`, named like the weight.
    `kept`, densities, masks and the penalty count weights; `histogram` and `ties` count gates.
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
            pattern.check_blocks("gates").blocks(tuple(parameter.shape), self._layouts[name])
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

    @property
    def weights(self) -> int:
        return sum(int(blocks.sizes.sum()) for blocks in self._blocks)

    def penalty(self, coefficient: float) -> Tensor:
        """Return the penalty: `coefficient` times the sum, over all weights, of how far their gates are open.

        Add this scalar to the loss. A block's gate counts once for each weight that it multiplies, so the penalty is as
        large as with one gate per weight. For random gates the sum is the expected number of retained weights (Louizos,
        Welling & Kingma 2018, arXiv 1712.01312, section 2: groups that share a gate).
        """
        opened = zip(self._compute_openness(), self._sizes, strict=True)
        return charge_penalty([(value * sizes).sum() for value, sizes in opened], self, coefficient)

    def kept(self) -> dict[str, int]:
        at = self.kind.threshold
        found = {}
        for number, (name, logits) in enumerate(self.named_parameters()):
            on, kept = logits.detach() > at, self._kept[number]
            found[name] = int(self._sizes[number][on if kept is None else on & (kept != 0)].double().sum())
        return found

    def density(self) -> float:
        return sum(self.kept().values()) / self.weights

    @torch.no_grad()
    def soft_density(self) -> float:
        opened = zip(self._compute_openness(), self._sizes, strict=True)
        return sum(float((value.double() * sizes).sum()) for value, sizes in opened) / self.weights

    def harden(self, *, collapse: str = "raise") -> Mask:
        """Return the mask of the gates that are on, in whole blocks; see `Gates.harden`.

        With ``collapse="keep"``, a parameter without open gates retains the block with the largest s.
        """
        return Mask(self._expand_to_weights(super().harden(collapse=collapse)))

    def allocate(self, density: float, *, collapse: str = "raise") -> Mask:
        """Return the mask of the blocks with the largest s, as close to `density` as whole blocks permit."""
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

    def _apply_gate_function(
        self, numbers: Sequence[int], weights: Sequence[Tensor], act: GateFunction
    ) -> list[Tensor]:
        return self._apply_block_gates(
            numbers, weights, [act(self._logits[number], self._moment) for number in numbers]
        )

    def _apply_training_gates(
        self, numbers: Sequence[int], weights: Sequence[Tensor], everything: bool
    ) -> list[Tensor]:
        gates = [self.kind.gate(self._logits[number], self._moment, self._draw_uniform(number)) for number in numbers]
        return self._apply_block_gates(numbers, weights, gates)

    def _apply_block_gates(
        self, numbers: Sequence[int], weights: Sequence[Tensor], gates: Sequence[Tensor]
    ) -> list[Tensor]:
        products = []
        for number, weight, gate in zip(numbers, weights, gates, strict=True):
            kept = self._kept[number]
            products.append(block_product(weight, gate if kept is None else gate * kept, self._blocks[number]))
        return products

    def _initial_mask(self) -> Mask | None:
        blocks = super()._initial_mask()
        return None if blocks is None else Mask(self._expand_to_weights(blocks))

    def _expand_to_weights(self, of_blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors in the shapes of the weights, in which each weight has the value of its block."""
        pairs = zip(of_blocks.items(), self._blocks, strict=True)
        return {name: blocks.expand_to_weights(values) for (name, values), blocks in pairs}
