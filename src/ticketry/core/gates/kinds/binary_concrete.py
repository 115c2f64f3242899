"""Binary-concrete gates: a differentiable relaxation of Bernoulli draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ticketry.core.gates.gate_kind import Kind, Moment, sigmoid
from ticketry.errors import UsageError


@dataclass(frozen=True)
class BinaryConcrete(Kind):
    """Gates in (0, 1) whose logits s are those of the retention probabilities sigmoid(s).

    Training: m = sigmoid((log u - log(1 - u) + s) / temperature) with u ~ U(0, 1) drawn once a step (Maddison et al.
    2017, arXiv 1611.00712, section 3.2 and appendix; Concrete Ticket Search, Arora & Teuscher 2025, arXiv 2512.07142,
    uses them over frozen weights). P(m > 0.5) = sigmoid(s). Eval: the retention probability sigmoid(s); hardened:
    1[s > 0]. Penalty: sum of sigmoid(s), the expected number of weights kept. Not normalised, not annealed.

    For a mask of an exact density, which Concrete Ticket Search asks for, give the logits to `ticketry.allocate`.

    Examples:
        >>> kind, s = tk.gates.BinaryConcrete(temperature=1.0), torch.tensor([0.0])
        >>> moment = tk.gates.Moment(init=0.0, beta=1.0)
        >>> kind.gate(s, moment, uniform=torch.tensor([0.75]))
        tensor([0.7500])
        >>> kind.test_gate(s, moment)
        tensor([0.5000])
    """

    name: ClassVar[str] = "binary-concrete"
    draws: ClassVar[bool] = True
    temperature: float = 2 / 3

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def gate(self, logits: Tensor, moment: Moment, uniform: Tensor | None) -> Tensor:
        assert uniform is not None
        return concrete(logits, uniform, self.temperature)

    def test_gate(self, logits: Tensor, moment: Moment) -> Tensor:
        return sigmoid(logits)

    def open(self, logits: Tensor, moment: Moment) -> Tensor:
        return sigmoid(logits)


def concrete(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """A binary-concrete draw: sigmoid((logistic noise + s) / temperature)."""
    return torch.sigmoid((torch.logit(uniform) + logits) / temperature)


def check_temperature(temperature: float) -> None:
    """Raises `UsageError` unless 0 < temperature <= 1 (above 1 the density of a concrete gate peaks in between)."""
    if not 0 < temperature <= 1:
        raise UsageError(f"the temperature of a concrete gate is above 0 and at most 1, not {temperature!r}")
