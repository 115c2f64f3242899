"""What a kind of gate has to say, how the inverse temperature of a round grows, and how far a round has come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ticketry.errors import UsageError

LARGEST = 1e12
"""No larger inverse temperature is accepted: far above what rounds a float32 sigmoid to 0 or 1, far below overflow."""


def inverse_temperature(progress: float, final: float) -> float:
    """beta = final ** progress: 1 at the start of a round, `final` at its end (Savarese et al. 2020, section 4).

    Args:
        progress: share of the round that is done, 0 <= progress <= 1.
        final: beta_T, at least 1.

    Raises:
        UsageError: for numbers outside these ranges.

    Examples:
        >>> tk.gates.inverse_temperature(0.5, final=100.0)
        10.0
        >>> tk.gates.inverse_temperature(2.0, final=100.0)
        Traceback (most recent call last):
            ...
        ticketry.errors.UsageError: progress is a share of the round that is done, from 0 to 1, not 2.0
    """
    if not 0 <= progress <= 1:
        raise UsageError(f"progress is a share of the round that is done, from 0 to 1, not {progress!r}")
    return float(check_final(final) ** progress)


def check_final(final: float) -> float:
    """`final` itself; `UsageError` if it is no inverse temperature to end at."""
    if not 1 <= final <= LARGEST:
        raise UsageError(f"the final inverse temperature is a number from 1 to {LARGEST:g}, not {final!r}")
    return final


def by_step(step: int, steps: int) -> float:
    """The progress after `step` of a round's `steps` updates: the temperature falls with every update (the paper).

    Examples:
        >>> tk.gates.by_step(50, 100)
        0.5
    """
    _check(step, steps, "step")
    return step / steps


def by_epoch(epoch: int, epochs: int) -> float:
    """The progress in epoch 0, 1, … of `epochs`: 0 all through the first, 1 all through the last (the official code).

    A round of a single epoch has no first epoch that is not the last: its progress is 1.

    Examples:
        >>> [tk.gates.by_epoch(epoch, 3) for epoch in range(3)]
        [0.0, 0.5, 1.0]
    """
    _check(epoch, epochs - 1, "epoch")
    return epoch / (epochs - 1) if epochs > 1 else 1.0


def _check(done: int, last: int, what: str) -> None:
    if not 0 <= done <= last:
        raise UsageError(f"{what} {done!r} is not one of a round's, which go from 0 to {last!r}")


@dataclass(frozen=True)
class Moment:
    """What gates depend on besides their logits s.

    Examples:
        >>> moment = tk.gates.Moment(init=0.0, beta=2.0)
        >>> tk.gates.Continuous().gate(torch.zeros(2), moment, None)
        tensor([1., 1.])
    """

    init: float
    """s0, the value that every s began with."""
    beta: float
    """The inverse temperature."""


class Kind:
    """A kind of gate. All methods take logits s of any shape and give tensors of that shape, differentiable in s.

    Examples:
        >>> class Square(tk.gates.Kind):
        ...     name = "square"
        ...     def gate(self, logits, moment, uniform):
        ...         return logits.clamp(min=0) ** 2
        ...     def test_gate(self, logits, moment):
        ...         return self.gate(logits, moment, None)
        ...     def open(self, logits, moment):
        ...         return self.gate(logits, moment, None).clamp(max=1)
        >>> kind, moment = Square(), tk.gates.Moment(init=1.0, beta=1.0)
        >>> s = torch.tensor([-1.0, 0.5, 1.0])
        >>> kind.threshold, kind.inverse_temperature(0.5), kind.hard_gate(s, moment), kind.open(s, moment)
        (0.0, 1.0, tensor([0., 1., 1.]), tensor([0.0000, 0.2500, 1.0000]))
        >>> kind.product(torch.ones(3), s, None, moment, None)[0], kind.test_gate(s, moment)
        (tensor([0.0000, 0.2500, 1.0000]), tensor([0.0000, 0.2500, 1.0000]))
        >>> gates = tk.gates.attach(nn.Linear(4, 3), kind=kind, init=1.0)
        >>> gates.soft_density()
        1.0
    """

    name: ClassVar[str]
    draws: ClassVar[bool] = False
    """Whether gates are drawn at random in training."""
    rounds: ClassVar[bool] = False
    """Whether a search goes on in further rounds by the rule of Continuous Sparsification."""
    final: float = 1.0
    """beta_T: the inverse temperature at the end of a round, and the factor of the rule between rounds."""

    @property
    def threshold(self) -> float:
        """A gate is kept where s is above this; s exactly there is a tie, and off."""
        return 0.0

    def inverse_temperature(self, progress: float) -> float:
        """beta at this progress of a round; 1 throughout for kinds that are not annealed."""
        inverse_temperature(progress, 1.0)  # whoever calls is told of a progress outside [0, 1]
        return 1.0

    def gate(self, logits: Tensor, moment: Moment, uniform: Tensor | None) -> Tensor:
        """The gates in training; `uniform` holds draws from (0, 1) of the shape of s, for kinds that draw.

        Args:
            logits: s of a parameter.
            moment: s0 and the inverse temperature.
            uniform: draws, None for kinds that draw none.
        """
        raise NotImplementedError

    def test_gate(self, logits: Tensor, moment: Moment) -> Tensor:
        """The gates of a model in eval mode: never drawn."""
        raise NotImplementedError

    def hard_gate(self, logits: Tensor, moment: Moment) -> Tensor:
        """The gates as the mask has them: exactly 0 where the mask is."""
        return (logits > self.threshold).to(logits.dtype)

    def open(self, logits: Tensor, moment: Moment) -> Tensor:
        """How far each gate is open, from 0 to 1: what the penalty adds up and what `soft_density` averages."""
        raise NotImplementedError

    def product(
        self, weight: Tensor, logits: Tensor, kept: Tensor | None, moment: Moment, uniform: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """weight * gate in training, in the dtype of the weight, and the sum of `open` if that comes for nothing.

        Args:
            weight: of the parameter.
            logits: its s.
            kept: 0 and 1: the mask that gates stay within; None for all.
            moment: s0 and the inverse temperature.
            uniform: draws, None for kinds that draw none.
        """
        return gated(weight, self.gate(logits, moment, uniform), kept), None


def gated(weight: Tensor, gate: Tensor, kept: Tensor | None) -> Tensor:
    """weight * gate (* kept), computed in the dtype of the gate and given in that of the weight."""
    if kept is not None:
        gate = gate * kept
    return (weight.to(gate.dtype) * gate).to(weight.dtype)


def sigmoid(logits: Tensor, factor: float = 1.0) -> Tensor:
    """The logistic function of factor * s."""
    return torch.sigmoid(logits if factor == 1 else logits * factor)
