"""The tick of Gate Decorators: gates on norms are trained for a few steps, and what each is worth is added up.

You, Yan, Ye, Ma & Wang, "Gate Decorator" (2019, arXiv 1909.08174), section 3: each channel of a norm is multiplied by a
gate phi, behind scale and shift, and while gates are trained at a small learning rate each is worth the sum over steps
of |phi dL/dphi|: to first order, what the loss would change by without the channel.

No gate is built in. As in the authors' code phi begins as the scale and takes the scale's place: with r = shift / scale
at the start of the tick, the norm's output is phi (x + r), so that its scale is phi, its shift is phi r, and
dL/dphi = dL/dscale + r dL/dshift. The function is the same, and the result is a network of the same names. |r| is held
at most at 10, as in the code, which changes the function there; here a shift moves by r times what its scale does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ticketry.core.mask import Mask
from ticketry.core.scope import named_parameters
from ticketry.errors import ScopeError
from ticketry.lab.loop import Loop, TrainingState
from ticketry.lab.optimizer import load_optimizer, make_optimizer
from ticketry.lab.segment import Segment
from ticketry.lab.shrunk import ShrunkLoop
from ticketry.tasks.course import Course

WORTH = "worth"
_RATIO = "ratio"
_LARGEST_RATIO = 10.0


class TickLoop(Loop):
    """A segment in training in which gates, and the last linear layer, are all that moves.

    The network is in training mode: norms normalise by the batch, and their running statistics follow. The state of its
    own optimiser stays with it; the training after the tick goes on with that of the training before.
    `TrainingState.optimizer` has besides, of each norm's scale, ``scale/worth``: what its channels are worth so far,
    float64, and ``scale/ratio``.
    """

    def __init__(self, course: Course, segment: Segment, state: TrainingState, mask: Mask | None) -> None:
        super().__init__(course, segment, state, mask)
        assert segment.tick is not None
        known = named_parameters(self.model)
        self._norms = [(known[scale], known[shift] if shift else None) for scale, shift in segment.tick.norms]
        self._worth, self._ratios = [], []
        for name, (scale, shift) in zip(segment.tick.scales, self._norms, strict=True):
            worth, ratio = (state.optimizer.get(f"{name}/{entry}") for entry in (WORTH, _RATIO))
            worth = torch.zeros(scale.shape, dtype=torch.float64) if worth is None else worth.clone()
            self._worth.append(worth.to(scale.device))
            self._ratios.append(_ratio(scale, shift) if ratio is None else ratio.to(scale.device))

    def _state_now(self) -> TrainingState:
        found = super()._state_now()
        assert self.segment.tick is not None
        for name, worth, ratio in zip(self.segment.tick.scales, self._worth, self._ratios, strict=True):
            found.optimizer |= {f"{name}/{WORTH}": worth.clone(), f"{name}/{_RATIO}": ratio.clone()}
        return found

    def _made_optimizer(self, tensors: dict[str, Tensor]) -> Optimizer:
        tick = self.segment.tick
        assert tick is not None
        gates = _Chosen(self.model, {*tick.scales, *tick.head})
        shifts = {shift for _, shift in tick.norms}
        for name, parameter in named_parameters(self.model).items():
            parameter.requires_grad_(name in gates.names or name in shifts)
        recipe = self.segment.recipe.changed(
            optimizer="sgd", lr=tick.lr, momentum=tick.momentum, nesterov=False, weight_decay=0.0
        )
        optimizer = make_optimizer(recipe, gates)
        own = {key: value for key, value in tensors.items() if key.rpartition("/")[2] not in (WORTH, _RATIO)}
        load_optimizer(optimizer, gates, own)
        return optimizer

    def _differentiated(self, batch: Any) -> Tensor:
        loss = super()._differentiated(batch)
        for (scale, shift), ratio, worth in zip(self._norms, self._ratios, self._worth, strict=True):
            if scale.grad is None:
                continue
            if shift is not None and shift.grad is not None:
                scale.grad.addcmul_(ratio, shift.grad)
                shift.grad = None
            worth += (scale.detach() * scale.grad).abs()
        return loss

    def _one_step(self, batch: Any) -> None:
        before = [scale.detach().clone() for scale, _ in self._norms]
        super()._one_step(batch)
        with torch.no_grad():
            for (scale, shift), ratio, old in zip(self._norms, self._ratios, before, strict=True):
                if shift is not None:
                    shift.addcmul_(ratio, scale - old)

    def _learning_rate(self, step: int) -> float:
        assert self.segment.tick is not None
        return self.segment.tick.lr


class ShrunkTickLoop(ShrunkLoop, TickLoop):
    """The same without the channels that a mask removes: what they are worth, and how they began, is 0."""


def _ratio(scale: Tensor, shift: Tensor | None) -> Tensor:
    """shift / scale where there is a scale, between -10 and 10."""
    if shift is None:
        return torch.zeros_like(scale, requires_grad=False)
    ratio = shift.detach() / scale.detach()
    return torch.where(scale.detach() == 0, 0.0, ratio).clamp_(-_LARGEST_RATIO, _LARGEST_RATIO)


class _Chosen:
    """Some parameters of a model, for an optimiser."""

    def __init__(self, model: nn.Module, names: set[str]) -> None:
        known = named_parameters(model)
        if unknown := sorted(names - known.keys()):
            raise ScopeError(f"a tick is to train {unknown[0]!r}, which {type(model).__name__} does not have")
        self.names = names
        self._chosen = [(name, parameter) for name, parameter in known.items() if name in names]

    def parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for _, parameter in self._chosen)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self._chosen)
