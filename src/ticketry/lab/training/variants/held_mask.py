"""Training with a mask that is held: pruned weights, their gradients and their optimiser's state are exactly 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ticketry.core.sparse_training.hold import Hold
from ticketry.lab.training.variant import Effect, InTraining, Surroundings, Variant


@dataclass(frozen=True, kw_only=True)
class HeldMask(Variant):
    """Hold a stored mask."""

    name = "held_mask"
    several_ranks = True
    in_parts = True
    outermost = True
    sparse_kernels = True
    replayable = True
    mask: str
    """Its digest."""

    def masked_by(self) -> str:
        return self.mask

    def effect(self, around: Surroundings) -> HoldingEffect:
        return HoldingEffect(around)


class HoldingEffect(Effect):
    """The mask of a training, held."""

    def begin(self, training: InTraining, carried: Mapping[str, Tensor]) -> None:
        assert self.around.mask is not None
        # The loop masks gradients itself, in one call for all, which costs less than a hook a parameter.
        self._training, self._hold = training, Hold(training.model, self.around.mask, hooks=False)
        self._hold.mask_state(training.optimizer)

    def entering_session(self, entries: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Its copies of parameters without the weights that the mask removes, see `Session.copies`."""
        prefix, mask = self._training.session.copies, self.around.mask
        assert mask is not None
        kept = {f"{prefix}{name}": kept for name, kept in mask.items()} if prefix else {}
        return {name: one.masked_fill(~kept[name], 0) if name in kept else one for name, one in entries.items()}

    def after_backward(self) -> None:
        self._hold.mask_gradients()

    def check(self) -> None:
        """Raises `HoldError` if a pruned weight, or its optimiser's state, is not 0."""
        self._hold.check(self._training.optimizer)

    def tensors(self) -> object:
        return self._hold.tensors
