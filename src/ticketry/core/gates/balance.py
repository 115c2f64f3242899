"""Gradient balancing (GradBalance), which steers gates to a density."""

from __future__ import annotations

import torch
from torch import Tensor

from ticketry.core.gates.gates import Gates
from ticketry.errors import UsageError

HEADROOM = 1.1
"""Gates are closed while their expected density exceeds this number times the requested density, as in the official
code.
"""
SMOOTHING = 0.01
"""Share of the newest ratio in the moving average of `Balance`, as in the official code."""


class Balance:
    """Steers gates to a density: while the gates are too open, a gradient that closes them is added.

    This is GradBalance of Concrete Ticket Search (Arora & Teuscher 2025, arXiv 2512.07142). Let g be the gradient of
    the loss with respect to all logits s, E the expected number of retained weights (`Gates.penalty(1.0)`), and e the
    gradient of E. The logits get the gradient g + lambda e. Here, lambda is a moving average over steps. A step adds
    |g| / |e| (L2 norms over all gates) to the average if E exceeds ``headroom * density * weights``, and 0 otherwise.
    So the closing gradient is as strong as the loss gradient, whatever the scale of the loss. Use an optimiser with
    adaptive step sizes, such as Adam, and initialise gates at the requested density.

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
            headroom: the gates are closed while their expected density is above headroom * `density`.
            smoothing: share of the newest ratio in the moving average, above 0 and at most 1.

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
        """The number lambda, a float64 scalar; None before the first step. A checkpoint needs no other state."""

    def add_gradients(self) -> None:
        """Add the gradient that closes gates; call this between `backward` and the step of the gates' optimiser."""
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
    """Return the L2 norm over all tensors; it is computed in float64, where squares of small gradients fit."""
    parts = [torch.linalg.vector_norm(tensor, dtype=torch.float64).to(tensors[0].device) for tensor in tensors]
    total: Tensor = torch.linalg.vector_norm(torch.stack(parts))
    return total
