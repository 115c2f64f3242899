"""Gates that are linear in s between 0 and 1 (Courbariaux et al. 2015, arXiv 1511.00363, equation 3)."""

from dataclasses import dataclass

import ticketry as tk


@dataclass(frozen=True)
class HardSigmoid(tk.gates.Kind):
    """Gates clip((s + 1) / 2, 0, 1): in training and when testing; hardened they are 0 or 1."""

    name = "hard-sigmoid"

    def gate(self, logits, moment, uniform):
        return ((logits + 1) / 2).clamp(0, 1)

    def test_gate(self, logits, moment):
        return self.gate(logits, moment, None)

    def open(self, logits, moment):
        return self.gate(logits, moment, None)
