"""Budgets that are asked for in `prune`, and who measures what the core cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ticketry.core.costs.bases import ENGINE, check_base
from ticketry.core.costs.cost_model import CostModel
from ticketry.core.costs.granularity import FINEST
from ticketry.core.costs.least import candidates, check_all_kept, check_floor_of_costs
from ticketry.core.costs.words import Unit, share_or_amount
from ticketry.core.mask import Mask, require_mask
from ticketry.core.pattern import check_at_least
from ticketry.core.scope import Scope
from ticketry.core.structuring import NONE, adds_scores, in_blocks
from ticketry.errors import UsageError
from ticketry.registry import Registry

if TYPE_CHECKING:
    from ticketry.core.structure.channel_wise.path import ChannelOptions


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
    base: str = ENGINE
    """Whose latency a share of seconds is of, see `bases.BASES`."""
    channels: ChannelOptions | None = None
    """How whole channels are chosen, where that is requested."""

    def __post_init__(self) -> None:
        check_base(self.base)
        if self.within is not None:
            require_mask(self.within, "within")
        if self.structure != NONE and not adds_scores(self.structure):
            raise UsageError(
                "the structure under a budget is none, auto, weights, rows:N (such as rows:16) or channels, not"
                f" {self.structure!r}"
            )
        if self.example_inputs is None:
            raise UsageError(f"{self.unit} are those of a call: prune(model, ..., example_inputs=x)")
        if self.cost is not None and self.cost.unit != self.unit:
            raise UsageError(
                f"a budget of {self.unit} needs costs in {self.unit}, not in {self.cost.unit}: leave cost out, or take"
                f" those of tk.cost.model(model, example_inputs, unit={self.unit!r})"
            )
        if self.within is not None and self.structure not in (NONE, FINEST) and self.channels is None:
            raise UsageError(f"structure {self.structure} chooses whole blocks of each layer anew: leave out within")
        if self.structure != NONE and self.unit != "seconds" and self.channels is None:
            raise UsageError(
                f"what goes together makes no difference in {self.unit}: structure {self.structure} is for a time"
            )
        share, is_share = share_or_amount(self.amount, self.unit)
        check_at_least(self.keep_at_least)
        if is_share and (self.unit != "seconds" or self.base == ENGINE):
            self.check_retained(share)

    def check_retained(self, share: float) -> None:
        """Raise `LayerCollapseError` if all weights would stay for a share of the unpruned cost below 1."""
        if self.keep_at_least:
            check_all_kept(self._candidates, share, self.keep_at_least, self.unit)

    def check_floor(self, costs: CostModel, amount: float | str) -> None:
        """Raise an error, before any mask is scored or timed, if an amount does not pay for `keep_at_least`.

        Raises:
            UsageError: if it is below the cost of empty layers.
            LayerCollapseError: if it is below the cost of these weights, see `least.check_floor_of_costs`.
        """
        if self.keep_at_least:
            check_floor_of_costs(costs, self._candidates, costs.budget(amount), self.keep_at_least)

    def check_base_elsewhere(self, other: str) -> None:
        """Raise `UsageError` for a share of a base that would have to be timed on another machine.

        Args:
            other: why the costs are not of this machine.
        """
        if share_or_amount(self.amount, self.unit)[1] and self.base != ENGINE:
            raise UsageError(
                f"time={self.amount!r} is a share of the latency of {self.base}, which cannot be timed here: {other}."
                " Give base='engine' (a share of the compiled model without pruning) or an amount (time='5ms')"
            )

    def all_candidates(self) -> Mask:
        """The mask that retains every candidate."""
        return self.within or Mask.ones(self.scope)

    @property
    def _candidates(self) -> dict[str, int]:
        return candidates(self.scope.shapes, self.within)

    @property
    def in_blocks(self) -> bool:
        """Whether blocks of each layer are chosen for what they take."""
        return in_blocks(self.structure)


METERS: Registry[Callable[[Request], Mask]] = Registry(
    "meter of costs", "ticketry.meters", {"engine": "ticketry.engine.cost.latency_budgets:mask_for"}
)
"""Who finds a mask under a budget of seconds or bytes: it has to know what runs the network."""
