"""Deterministic soft gates that harden as they are annealed: Continuous Sparsification."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ticketry.core.gates.gate_kind import Kind, Moment, check_final, gated, inverse_temperature, sigmoid
from ticketry.core.gates.product import sigmoid_product


@dataclass(frozen=True)
class Continuous(Kind):
    """Gates of Continuous Sparsification (Savarese, Silva & Maire 2020, arXiv 1912.04427, section 4 and algorithm 2).

    Training and eval: m = sigmoid(beta s) / sigmoid(s0) with beta = final ** progress. The division, which is the
    official code's, makes a fresh gate 1 (to rounding), so that gates attached to a trained network do not change it.
    Hardened: 1[s > 0] / sigmoid(s0), which the soft gates tend to as beta grows. Penalty: sum of sigmoid(beta s), as in
    the paper; the official code adds up the divided gates, so its coefficient counts 1 / sigmoid(s0) times as much.

    Examples:
        >>> kind, s = tk.gates.Continuous(final=100.0), torch.tensor([-1.0, 0.0, 1.0])
        >>> kind.inverse_temperature(0.5)
        10.0
        >>> moment = tk.gates.Moment(init=0.0, beta=10.0)
        >>> kind.gate(s, moment, None)
        tensor([9.0796e-05, 1.0000e+00, 1.9999e+00])
        >>> kind.hard_gate(s, moment), kind.scale(moment)
        (tensor([0., 0., 2.]), 2.0)
    """

    name: ClassVar[str] = "continuous"
    rounds: ClassVar[bool] = True
    final: float = 200.0
    """beta_T"""

    def __post_init__(self) -> None:
        check_final(self.final)

    def inverse_temperature(self, progress: float) -> float:
        return inverse_temperature(progress, self.final)

    def gate(self, logits: Tensor, moment: Moment, uniform: Tensor | None) -> Tensor:
        return sigmoid(logits, moment.beta) * self.scale(moment)

    def test_gate(self, logits: Tensor, moment: Moment) -> Tensor:
        return self.gate(logits, moment, None)

    def hard_gate(self, logits: Tensor, moment: Moment) -> Tensor:
        return super().hard_gate(logits, moment) * self.scale(moment)

    def open(self, logits: Tensor, moment: Moment) -> Tensor:
        return sigmoid(logits, moment.beta)

    def product(
        self, weight: Tensor, logits: Tensor, kept: Tensor | None, moment: Moment, uniform: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if weight.dtype != logits.dtype or torch._C._are_functorch_transforms_active():
            return gated(weight, self.gate(logits, moment, None), kept), None
        return sigmoid_product(weight, logits, kept, moment.beta, self.scale(moment))

    @staticmethod
    def scale(moment: Moment) -> float:
        """1 / sigmoid(s0)"""
        return 1 + math.exp(-moment.init)
