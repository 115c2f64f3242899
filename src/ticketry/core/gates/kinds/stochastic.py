"""Stochastic gates: Bernoulli draws with a straight-through gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ticketry.core.gates.gate_kind import Kind, Moment, check_final, sigmoid


@dataclass(frozen=True)
class Stochastic(Kind):
    """Gates of Iterative Stochastic Sparsification (ISS), the baseline of Savarese et al. (2020).

    Training: m ~ Bernoulli(sigmoid(s)), drawn once a step; the gradient goes straight through the draw, dm/ds =
    sigmoid(s) (1 - sigmoid(s)) (Bengio et al. 2013, arXiv 1308.3432). Gates are 0 or 1 and not normalised. Eval: the
    deterministic mask 1[s > 0], soft or hardened. Penalty: sum of sigmoid(s), the expected number of weights kept.
    There is no temperature to anneal.

    Examples:
        >>> kind, s = tk.gates.Stochastic(), torch.tensor([0.0, 0.0, 2.0])
        >>> moment = tk.gates.Moment(init=0.0, beta=1.0)
        >>> kind.gate(s, moment, uniform=torch.tensor([0.4, 0.6, 0.6]))
        tensor([1., 0., 1.])
        >>> kind.test_gate(s, moment)
        tensor([0., 0., 1.])
    """

    name: ClassVar[str] = "stochastic"
    draws: ClassVar[bool] = True
    rounds: ClassVar[bool] = True
    final: float = 200.0
    """Only for the rule between rounds, which is that of Continuous Sparsification."""

    def __post_init__(self) -> None:
        check_final(self.final)

    def gate(self, logits: Tensor, moment: Moment, uniform: Tensor | None) -> Tensor:
        assert uniform is not None
        probability = sigmoid(logits)
        drawn = (uniform < probability).to(logits.dtype)
        return drawn + (probability - probability.detach())

    def test_gate(self, logits: Tensor, moment: Moment) -> Tensor:
        return self.hard_gate(logits, moment)

    def open(self, logits: Tensor, moment: Moment) -> Tensor:
        return sigmoid(logits)
