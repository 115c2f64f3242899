"""Hard-concrete gates: concrete gates stretched beyond [0, 1] and clipped, so that they are exactly 0 or 1 at times."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ticketry.core.gates.gate_kind import Kind, Moment, sigmoid
from ticketry.core.gates.kinds.binary_concrete import check_temperature, concrete
from ticketry.errors import UsageError


@dataclass(frozen=True)
class HardConcrete(Kind):
    """Gates of L0 regularisation (Louizos, Welling & Kingma 2018, arXiv 1712.01312, sections 2.2-2.3); s is log alpha.

    Training: m = clip(z (zeta - gamma) + gamma, 0, 1) with z a binary-concrete draw (equations 10 and 11). Eval and
    hardened: m = clip(sigmoid(s) (zeta - gamma) + gamma, 0, 1) (equation 13), whose support is the mask, so a weight is
    kept where s > log(-gamma / zeta) = -2.398. Penalty: sum of P(m != 0) = sigmoid(s - temperature log(-gamma / zeta))
    (equation 12), the expected number of weights kept. Not annealed.

    Examples:
        >>> kind, s = tk.gates.HardConcrete(), torch.tensor([-3.0, 0.0, 3.0])
        >>> moment = tk.gates.Moment(init=0.0, beta=1.0)
        >>> kind.test_gate(s, moment), round(kind.threshold, 3)
        (tensor([0.0000, 0.5000, 1.0000]), -2.398)
    """

    name: ClassVar[str] = "hard-concrete"
    draws: ClassVar[bool] = True
    gamma: float = -0.1
    zeta: float = 1.1
    temperature: float = 2 / 3
    """beta in the paper."""

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if not (self.gamma < 0 and self.zeta > 1):
            raise UsageError(f"hard-concrete gates need gamma < 0 and zeta > 1, not {self.gamma!r} and {self.zeta!r}")

    @property
    def threshold(self) -> float:
        return math.log(-self.gamma / self.zeta)

    def gate(self, logits: Tensor, moment: Moment, uniform: Tensor | None) -> Tensor:
        assert uniform is not None
        return self._stretched(concrete(logits, uniform, self.temperature))

    def test_gate(self, logits: Tensor, moment: Moment) -> Tensor:
        return self._stretched(sigmoid(logits))

    def hard_gate(self, logits: Tensor, moment: Moment) -> Tensor:
        # At the threshold itself rounding would leave a gate that is not quite 0, which the mask does not keep.
        return self._stretched(sigmoid(logits)) * (logits > self.threshold)

    def open(self, logits: Tensor, moment: Moment) -> Tensor:
        return sigmoid(logits - self.temperature * self.threshold)

    def _stretched(self, concrete: Tensor) -> Tensor:
        return (concrete * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)
