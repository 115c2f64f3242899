"""A request for a mask under a budget, checked before anything is scored or measured."""

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
from ticketry.core.layer_minimum import count_candidates
from ticketry.core.mask import Mask, require_mask
from ticketry.core.output_change import output_change
from ticketry.core.scope import Scope
from ticketry.core.score import Score, ScoreInputs, get
from ticketry.core.score.kfac import kfac
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
        UsageError: for options that contradict each other.
        LayerCollapseError: if no mask with `keep_at_least` weights in each layer can meet the budget.
    """

    model: nn.Module
    example_inputs: Any
    scope: Scope
    unit: Unit
    amount: float | str
    """A share of the dense network's cost, or an amount: ``"5ms"``."""
    scores: Callable[[], Mapping[str, Tensor]]
    """Function that returns the score of each weight."""
    structure: str = NONE
    within: Mask | None = None
    keep_at_least: int = 0
    cost: CostModel | None = None
    """Costs of the model; None: they are measured on this machine."""
    base: str = ENGINE
    """Engine whose latency a share of seconds is of, see `units.BASES`."""
    channels: ChannelOptions | None = None
    """How whole channels are chosen, if they are requested."""

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
        """Raise `LayerCollapseError` if the minimum per layer retains all weights for a share below 1."""
        if self.keep_at_least:
            check_not_all_kept(self._candidate_counts, share, self.keep_at_least, self.unit)

    def check_floor(self, costs: CostModel, amount: float | str) -> None:
        """Raise an error if an amount does not pay for `keep_at_least` weights in each layer.

        Raises:
            UsageError: if it is below the cost of empty layers.
            LayerCollapseError: if it is below the cost of these weights, see `allocation.check_floor_of_costs`.
        """
        if self.keep_at_least:
            check_floor_of_costs(costs, self._candidate_counts, costs.budget(amount), self.keep_at_least)

    def check_base_elsewhere(self, other: str) -> None:
        """Raise `UsageError` for a share of a base that would have to be timed on another machine.

        Args:
            other: why the costs are not of this machine.
        """
        if parse_share_or_amount(self.amount, self.unit)[1] and self.base != ENGINE:
            raise UsageError(
                f"time={self.amount!r} is a share of the latency of {self.base}, which cannot be timed here: {other}."
                " Give base='engine' (a share of the compiled model without pruning) or an amount (time='5ms')"
            )

    def all_candidates(self) -> Mask:
        """Return the mask that retains every candidate."""
        return self.within or Mask.ones(self.scope)

    @property
    def _candidate_counts(self) -> dict[str, int]:
        return count_candidates(self.scope.shapes, self.within)


# -- defaults of structure and score -----------------------------------------------------------------------------------


def default_structure(structure: str | None, score: str | Score | None) -> str:
    """Return the structure of a budget: by default ``none`` if a score is given, and ``weights`` without a score."""
    return structure or (NONE if score is not None else FINEST)


def default_structure_of_latency(
    structure: str | None, score: str | Score | None, cost: CostModel | None, within: Mask | None
) -> str:
    """Return the structure of a latency budget; by default the best one by measurement.

    Costs cover one structure and candidates are single weights; with either the default is `default_structure`.
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
    """Return a function that computes the scores for a budget.

    The default is magnitude, unless the structure sums scores over blocks and compares layers: then it is kfac, or
    `output_change` without batches.

    Raises:
        UsageError: for magnitudes with a structure that sums scores.
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
