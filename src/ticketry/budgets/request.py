"""A request for a mask under a budget, which is checked before anything is scored or measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ticketry.budgets.allocation import check_floor_of_costs, check_not_all_kept
from ticketry.budgets.cost_model import CostModel
from ticketry.budgets.granularity import BY_MEASUREMENT, FINEST, NONE, sums_block_scores
from ticketry.budgets.units import ENGINE, Unit, check_base, parse_share_or_amount
from ticketry.core.allocate import count_candidates
from ticketry.core.mask import Mask, require_mask
from ticketry.core.output_change import output_change
from ticketry.core.scope import Scope
from ticketry.core.score import Score, ScoreInputs, get
from ticketry.core.score.gradient_scores import kfac
from ticketry.core.score.measurement import has_mask_option, score_pruned_model
from ticketry.core.score.weight_scores import magnitude
from ticketry.core.structure.pattern import check_layer_minimum_option
from ticketry.errors import UsageError

if TYPE_CHECKING:
    from ticketry.core.structure.channel_choice import ChannelOptions


@dataclass(frozen=True)
class Request:
    """A request for a mask under a budget of seconds or bytes.

    Raises:
        UsageError: if options contradict each other.
        LayerCollapseError: if no mask with `keep_at_least` weights in each layer can meet the budget.
    """

    model: nn.Module
    example_inputs: Any
    scope: Scope
    unit: Unit
    amount: float | str
    """The budget: a share of the dense network's cost (of the base's latency for seconds), or an amount such as
    ``"5ms"``."""
    scores: Callable[[], Mapping[str, Tensor]]
    """Function that returns parameter name -> score of each weight; it is called only when scores are needed."""
    structure: str = NONE
    within: Mask | None = None
    keep_at_least: int = 0
    cost: CostModel | None = None
    """Costs of the model; None to measure or count them."""
    base: str = ENGINE
    """How the unpruned model runs whose latency a share of seconds refers to: one of `units.BASES`."""
    channels: ChannelOptions | None = None
    """How whole channels are chosen, if the structure is channels; None for the default way."""

    def __post_init__(self) -> None:
        check_base(self.base)
        if self.within is not None:
            require_mask(self.within, "within")
        if self.structure != NONE and not sums_block_scores(self.structure):
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
        check_layer_minimum_option(self.keep_at_least)
        share, is_share = parse_share_or_amount(self.amount, self.unit)
        if is_share and (self.unit != "seconds" or self.base == ENGINE):
            self.check_retained(share)

    def check_retained(self, share: float) -> None:
        """Raise `LayerCollapseError` if `keep_at_least` retains all weights although `share` is below 1."""
        if self.keep_at_least:
            check_not_all_kept(self._candidate_counts, share, self.keep_at_least, self.unit)

    def check_floor(self, costs: CostModel, amount: float | str) -> None:
        """Raise an error if the budget `amount` does not pay for `keep_at_least` weights in each layer.

        Raises:
            UsageError: if the budget is below the cost of the network with all layers empty.
            LayerCollapseError: if the budget is below the cost with these weights, see
                `allocation.check_floor_of_costs`.
        """
        if self.keep_at_least:
            check_floor_of_costs(costs, self._candidate_counts, costs.budget(amount), self.keep_at_least)

    def check_base_elsewhere(self, other: str) -> None:
        """Raise `UsageError` if the budget is a share of a base that cannot be timed on this machine.

        Args:
            other: message that the costs are of another machine.
        """
        if parse_share_or_amount(self.amount, self.unit)[1] and self.base != ENGINE:
            raise UsageError(
                f"time={self.amount!r} is a share of the latency of {self.base}, which cannot be timed here: {other}."
                " Give base='engine' (a share of the compiled model without pruning) or an amount (time='5ms')"
            )

    def all_candidates(self) -> Mask:
        """Return the mask that retains all candidates for pruning."""
        return self.within or Mask.ones(self.scope)

    @property
    def _candidate_counts(self) -> dict[str, int]:
        return count_candidates(self.scope.shapes, self.within)


# -- defaults of structure and score -----------------------------------------------------------------------------------


def default_structure(structure: str | None, score: str | Score | None) -> str:
    """Return the structure of a budget; by default ``none`` if a score is given, else ``weights``."""
    return structure or (NONE if score is not None else FINEST)


def default_structure_of_latency(
    structure: str | None, score: str | Score | None, cost: CostModel | None, within: Mask | None
) -> str:
    """Return the structure of a latency budget; by default several are timed and the best one is chosen.

    If `score`, `cost` or `within` is given, the default is that of `default_structure` instead: costs cover one
    structure only, and candidates in `within` are single weights.
    """
    if structure is None and score is None and cost is None and within is None:
        return BY_MEASUREMENT
    return default_structure(structure, score)


def score_finder(
    score: str | Score | None,
    model: nn.Module,
    scope: Scope,
    within: Mask | None,
    inputs: ScoreInputs,
    structure: str,
    example_inputs: Any,
) -> Callable[[], dict[str, Tensor]]:
    """Return a function that computes the scores by which a budget chooses weights.

    The default score is magnitude. If the structure sums scores over blocks and compares layers, the default is kfac,
    or without batches `output_change`.

    Raises:
        UsageError: if the score is magnitude, but the structure sums scores.
    """
    if score is None and sums_block_scores(structure):
        if inputs.batches is None:
            return partial(output_change, model, scope, example_inputs)
        score = kfac
    function = get(score or magnitude)
    if function is magnitude and sums_block_scores(structure):
        raise UsageError(
            f"structure {structure} adds scores up and compares layers by them, which magnitudes cannot be: leave the"
            " score out, or take another, such as fisher"
        )
    seen = within if has_mask_option(function) else None
    return partial(score_pruned_model, function, model, scope, seen, inputs)
