"""Gradient balancing (GradBalance), which steers gates to a density."""

from __future__ import annotations

import torch
from torch import Tensor

from ticketry.core.gates.gates import Gates
from ticketry.errors import UsageError

HEADROOM = 1.1
"""Target of the expected density relative to the requested one, as in the official code; the mask retains the best
gates.
"""
SMOOTHING = 0.01
"""Weight of the newest ratio in the moving average, as in the official code."""


class Balance:
    """Steers gates to a density by adding a gradient that closes them while they are too open.

    GradBalance of Concrete Ticket Search (Arora & Teuscher 2025, arXiv 2512.07142). Let g be the gradient of the loss
    with respect to all logits s, E the expected number of retained weights (`Gates.penalty(1.0)`), and e its gradient.
    The gates get the gradient g + lambda e, where lambda is a moving average of |g| / |e| (L2 norms over all gates) at
    steps where E exceeds ``headroom * density * weights``, and of 0 at other steps. So the closing gradient is as
    strong as the loss gradient, whatever the scale of the loss. Use an optimiser with adaptive step sizes, such as
    Adam, and initialise gates at the requested density.

    Examples:
        >>> model = nn.Linear(4, 3)
        >>> gates = tk.gates.attach(model, kind="binary-concrete", init=0.0)
        >>> balance = tk.gates.Balance(gates, density=0.1)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> before = gates.parameters()[0].grad.clone()
        >>> balance.add_gradients()
        >>> bool((gates.parameters()[0].grad > before).all())
        True
    """

    def __init__(
        self, gates: Gates, density: float, *, headroom: float = HEADROOM, smoothing: float = SMOOTHING
    ) -> None:
        """Create a balance.

        Args:
            gates: the gates to steer.
            density: target density of all weights that have gates, above 0 and below 1.
            headroom: expected density allowed, relative to `density`.
            smoothing: weight of the newest ratio in the moving average.

        Raises:
            UsageError: for settings out of range.
        """
        if not 0 < density < 1:
            raise UsageError(f"gates are balanced at a density above 0 and below 1, not {density!r}")
        if not (headroom > 0 and 0 < smoothing <= 1):
            raise UsageError(
                f"headroom is a number above 0 and smoothing one above 0 and at most 1, not {headroom!r}, {smoothing!r}"
            )
        self._gates, self._smoothing = gates, smoothing
        self._wanted = headroom * density * gates.weights
        self.multiplier: Tensor | None = None
        """lambda, a float64 scalar; None before the first step. It is the only state to save in checkpoints."""

    def add_gradients(self) -> None:
        """Add the closing gradient to the gates; call this between `backward` and the step of their optimiser."""
        logits = self._gates.parameters()
        expected = self._gates.penalty(1.0)
        closing = torch.autograd.grad(expected, logits)
        with torch.no_grad():
            opening = [s.grad if s.grad is not None else torch.zeros_like(s) for s in logits]
            ratio = _joint_norm(opening) / (_joint_norm(closing) + torch.finfo(torch.float64).tiny)
            target = torch.where(expected.detach() < self._wanted, torch.zeros_like(ratio), ratio)
            before = target if self.multiplier is None else self.multiplier.to(target.device)
            self.multiplier = torch.lerp(before, target, self._smoothing)
            for s, own, added in zip(logits, opening, closing, strict=True):
                s.grad = torch.addcmul(own, added, self.multiplier.to(added))


def _joint_norm(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Return the L2 norm over all tensors in float64, because squares of small gradients underflow in float32."""
    parts = [torch.linalg.vector_norm(tensor, dtype=torch.float64).to(tensors[0].device) for tensor in tensors]
    total: Tensor = torch.linalg.vector_norm(torch.stack(parts))
    return total
