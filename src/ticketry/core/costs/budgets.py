"""Budgets that are asked for in `prune`, and who measures what the core cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ticketry.core.costs.cost_model import CostModel
from ticketry.core.costs.words import Unit
from ticketry.core.mask import Mask, require_mask
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
    scores: Callable[[], Mapping[str, Tensor]] | None
    """Of each weight; None for those of the structure."""
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
        if self.in_blocks and (self.within is not None or self.keep_at_least):
            raise UsageError(
                f"structure {self.structure} chooses whole blocks of each layer anew: leave out within and"
                " keep_at_least"
            )

    @property
    def in_blocks(self) -> bool:
        """Whether blocks of each layer are chosen for what they take."""
        return in_blocks(self.structure)


METERS: Registry[Callable[[Request], Mask]] = Registry(
    "meter of costs", "ticketry.meters", {"engine": "ticketry.engine.cost.public:mask_for"}
)
"""Who finds a mask under a budget of seconds or bytes: it has to know what runs the network."""
