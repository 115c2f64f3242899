"""Budgets of tickets: what a mask is to cost, in place of a density. Needs no torch.

Not to be taken for `--budget`, which is what a whole search may cost.
"""

from __future__ import annotations

from dataclasses import dataclass

from ticketry.core.pattern import UNSTRUCTURED
from ticketry.errors import UsageError

COUNTED = {"flops": "multiplications"}
"""Setting -> what it is a share of."""


@dataclass(frozen=True, kw_only=True)
class Aimed:
    """A budget of each ticket, in place of its density."""

    flops: tuple[float, ...] = ()
    """Share of the dense network's multiplications (of the layers that are pruned) that a ticket takes, such as 0.25 or
    25%, in place of density: each weight is charged as many as there are places it is applied at, and the most score
    for the budget is kept. Of several each is a ticket."""
    unweighed: bool = False
    """Under a budget: keep the highest scores until it is spent, wherever they lie, as a density does, and take no
    notice of what each costs."""

    @property
    def aim(self) -> str:
        """The setting that names the budget; empty where a density is asked for."""
        return next((name for name in COUNTED if getattr(self, name)), "")

    @property
    def shares(self) -> tuple[float, ...]:
        """The budgets asked for, falling; empty where a density is asked for."""
        return tuple(sorted(getattr(self, self.aim), reverse=True)) if self.aim else ()

    def check_aim(self) -> None:
        """Raises `UsageError` for a budget that cannot be, or beside what has no meaning with one."""
        if not self.aim:
            if self.unweighed:
                raise UsageError("unweighed is of a budget: name one (flops), or leave it away")
            return
        for share in self.shares:
            if not 0 < share <= 1:
                raise UsageError(
                    f"{self.aim} is the share of the dense network's {COUNTED[self.aim]} that is left, 0 < {self.aim}"
                    f" <= 1, or as 25%, not {share:g}"
                )
        if len(set(self.shares)) < len(self.shares):
            raise UsageError(f"{self.aim} names each share once, not {', '.join(map(str, self.shares))}")
        if beside := [name for name in ("density", "sparsity", "densities") if getattr(self, name, None)]:
            raise UsageError(f"give either {beside[0]} or {self.aim}: both say how much of the network is left")
        if self.unweighed and getattr(self, "distribution", "global") != "global":
            raise UsageError("unweighed is of one ranking over all layers: leave it away, or distribution")
        for name, nothing in _SINGLE_WEIGHTS.items():
            if getattr(self, name, nothing) != nothing:
                raise UsageError(f"{self.aim} is spent on single weights: leave {name} away, or ask for a density")


_SINGLE_WEIGHTS = {"structured": False, "structure": "none", "pattern": UNSTRUCTURED, "half_rate": ()}
"""Settings by which not every weight is chosen for itself, with the value that says nothing."""


def aim_of(settings: object) -> str:
    """The budget that settings of any method name; empty for a density."""
    return settings.aim if isinstance(settings, Aimed) else ""
