"""Budgets that are asked for in `prune`, and who measures what the core cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ticketry.core.costs.cost_model import CostModel
from ticketry.core.costs.granularity import FINEST
from ticketry.core.costs.least import candidates, check_all_kept, check_floor_of_costs
from ticketry.core.costs.words import Unit, share_or_amount
from ticketry.core.mask import Mask, require_mask
from ticketry.core.pattern import check_at_least
from ticketry.core.scope import Scope
from ticketry.core.structuring import NONE, in_blocks
from ticketry.errors import UsageError
from ticketry.registry import Registry


@dataclass(frozen=True)
class Request:
    """What is asked of a mask under a budget."""

    model: nn.Module
    example_inputs: Any
    scope: Scope
    unit: Unit
    amount: float | str
    """A share of the dense network's cost, or an amount: ``"5ms"``."""
    scores: Callable[[], Mapping[str, Tensor]]
    """Of each weight."""
    structure: str = "none"
    within: Mask | None = None
    keep_at_least: int = 0
    cost: CostModel | None = None
    """Of the model; None for those of this machine, measured now."""

    def __post_init__(self) -> None:
        if self.within is not None:
            require_mask(self.within, "within")
        if self.structure != NONE and not self.in_blocks:
            raise UsageError(
                "the structure under a budget is none, auto, weights or rows:N (such as rows:16), not"
                f" {self.structure!r}"
            )
        if self.example_inputs is None:
            raise UsageError(f"{self.unit} are those of a call: prune(model, ..., example_inputs=x)")
        if self.cost is not None and self.cost.unit != self.unit:
            raise UsageError(f"a budget of {self.unit} needs costs in {self.unit}, not in {self.cost.unit}")
        if self.in_blocks and self.structure != FINEST and self.within is not None:
            raise UsageError(f"structure {self.structure} chooses whole blocks of each layer anew: leave out within")
        if self.in_blocks and self.unit != "seconds":
            raise UsageError(
                f"what goes together makes no difference in {self.unit}: structure {self.structure} is for a time"
            )
        share, is_share = share_or_amount(self.amount, self.unit)
        if check_at_least(self.keep_at_least) and is_share:
            check_all_kept(self._candidates, share, self.keep_at_least, self.unit)

    def check_floor(self, costs: CostModel) -> None:
        """Make sure that the budget pays for the weights that every layer keeps: before any mask is scored or timed.

        Raises:
            UsageError: for a budget below what empty layers cost.
            LayerCollapseError: for one below what these weights cost, see `least.check_floor_of_costs`.
        """
        if self.keep_at_least:
            check_floor_of_costs(costs, self._candidates, costs.budget(self.amount), self.keep_at_least)

    @property
    def _candidates(self) -> dict[str, int]:
        return candidates(self.scope.shapes, self.within)

    @property
    def in_blocks(self) -> bool:
        """Whether blocks of each layer are chosen for what they take."""
        return in_blocks(self.structure)


METERS: Registry[Callable[[Request], Mask]] = Registry(
    "meter of costs", "ticketry.meters", {"engine": "ticketry.engine.cost.public:mask_for"}
)
"""Who finds a mask under a budget of seconds or bytes: it has to know what runs the network."""
