"""Requests for masks under a budget, their checks before anything is measured, and results of latency budgets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ticketry.budgets.allocation import check_floor_of_costs
from ticketry.budgets.cost_model import CostModel
from ticketry.budgets.units import (
    BY_MEASUREMENT,
    CHANNELS,
    ENGINE,
    FINEST,
    NONE,
    Latencies,
    Unit,
    check_base,
    format_cost,
    parse_share_or_amount,
    sums_block_scores,
)
from ticketry.core.allocate import count_candidates
from ticketry.core.mask import Mask, require_mask
from ticketry.core.output_change import output_change
from ticketry.core.scope import Scope
from ticketry.core.score import Score, ScoreInputs, get
from ticketry.core.score.gradient_scores import kfac
from ticketry.core.score.measurement import has_mask_option, score_pruned_model
from ticketry.core.score.weight_scores import magnitude
from ticketry.core.structure.pattern import check_layer_minimum_option
from ticketry.errors import LayerCollapseError, UsageError

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
    """Way to run the unpruned model, to whose latency a share of seconds refers: one of `units.BASES`."""
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
            self.check_not_all_retained(share)

    def check_not_all_retained(self, share: float) -> None:
        """Raise `LayerCollapseError` if `keep_at_least` retains all weights although `share` is below 1."""
        sizes, least = self._candidate_counts, self.keep_at_least
        largest_layer = max(sizes, key=lambda name: sizes[name])
        if least and share < 1 and least >= sizes[largest_layer]:
            raise LayerCollapseError(
                f"{share:g} of the dense network's {self.unit} cannot be met with {least} weights kept in each layer:"
                f" the largest, {largest_layer}, has {sizes[largest_layer]:,}, so that all weights of all"
                f" {len(sizes)} layers would stay",
                "keep fewer in each (keep_at_least)",
            )

    def check_floor(self, costs: CostModel, amount: float | str) -> None:
        """Raise an error if the budget `amount` does not pay for `keep_at_least` weights in each layer.

        Raises:
            UsageError: if the budget is below the cost of the network with all layers empty.
            LayerCollapseError: if the budget is below the cost with these weights, see
                `allocation.check_floor_of_costs`.
        """
        if self.keep_at_least:
            check_floor_of_costs(costs, self._candidate_counts, costs.budget(amount), self.keep_at_least)

    def mask_of_all_candidates(self) -> Mask:
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

    If `score`, `cost` or `within` is given, the default is that of `default_structure` instead, because costs cover one
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


# -- results -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Considered:
    """Result for one granularity that was tried: the density, latency and value of its mask nearest to the budget."""

    structure: str
    density: float
    seconds: float
    value: float
    """Mean over layers of the logarithm of the retained share of importance, weighted by each layer's importance; 0 if
    all is retained."""
    why_not: str = ""
    """Why this granularity has no mask; all numbers are then NaN. Empty if it has a mask."""

    def __str__(self) -> str:
        if self.why_not:
            return f"structure={self.structure!r} has no mask: {self.why_not}"
        retained, seconds = f"{100 * self.density:.3g} %", format_cost(self.seconds, "seconds")
        return f"structure={self.structure!r} retains {retained} at {seconds}"


@dataclass(frozen=True)
class Met:
    """Result of a latency budget: the mask, its measured latency, the budget, and the estimate.

    Examples:
        >>> model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
        >>> met = tk.cost.meet(model, torch.randn(64, 256), 0.8, base="engine", keep_at_least=1, threads=1)
        >>> 0 < met.low <= met.share <= met.high
        True
        >>> round(met.missed_by, 6) == round(met.share / met.requested - 1, 6)
        True
        >>> met.latencies.base, met.latencies.met_unpruned
        ('engine', False)
    """

    mask: Mask
    latencies: Latencies
    """Latencies in seconds of the base, of the unpruned compiled model, and requested."""
    share: float
    """Latency with the mask as a share of the base's latency. It is the median of a separate timing after the mask was
    chosen, in which both compiled models are called in turns, in new memory."""
    low: float
    """Lower end of the 95 % interval of `share`."""
    high: float
    estimated: float | None = None
    """Estimated latency of the mask in seconds; None if nothing had to be pruned."""
    rounds: int = 0
    """Number of masks that were timed."""
    first: float = 1.0
    """Estimated latency divided by measured latency of the first timed mask, before any correction."""
    chosen: float = 0.0
    """Share that was measured when the mask was chosen. It is biased towards the request: use `share` instead."""
    costs: CostModel | None = None
    """Costs by which masks were chosen; None if nothing had to be pruned or only channels were tried."""
    structure: str = ""
    """Granularity of the mask: ``weights``, ``auto`` (weights or groups of rows, chosen for each layer), ``channels``
    …"""
    considered: tuple[Considered, ...] = ()
    """Results for all granularities that were tried, including the chosen one."""

    @property
    def requested(self) -> float:
        """Requested latency as a share of the base's latency."""
        return self.latencies.requested / self.latencies.now

    @property
    def seconds(self) -> float:
        """Latency with the mask in seconds: `share` times the base's latency."""
        return self.share * self.latencies.now

    @property
    def missed_by(self) -> float:
        """Relative distance of the measured latency from the requested one; negative if the mask is faster."""
        return self.share / self.requested - 1

    @property
    def pruned(self) -> bool:
        """Whether weights had to be pruned to meet the budget."""
        return not self.latencies.met_unpruned

    def __str__(self) -> str:
        if not self.pruned:
            return str(self.latencies)
        of = "the unpruned compiled model" if self.latencies.base == ENGINE else self.latencies.base
        estimated = f"; estimated {format_cost(self.estimated, 'seconds')}" if self.estimated else ""
        structure = f"; {self.structure}" if self.structure else ""
        return (
            f"{self.latencies}; achieved {format_cost(self.seconds, 'seconds')}, {100 * self.share:.1f} %"
            f" [{100 * self.low:.1f}, {100 * self.high:.1f}] of {of}, {100 * self.requested:.1f} % requested"
            f"{estimated}; {self.rounds} masks timed; density {self.mask.density:.4g}{structure}"
        )


def result_without_pruning(mask: Mask, latencies: Latencies) -> Met:
    """Return the result for a budget that the unpruned compiled model meets; `mask` retains all candidates."""
    share = latencies.unpruned / latencies.now
    return Met(mask, latencies, share, share, share)


# -- warnings about a result -------------------------------------------------------------------------------------------

_LEAST_STAGE_DENSITY = 0.05
"""Density of a stage (layers with a common prefix) below which retraining rarely recovers the accuracy."""

_LARGE_ERROR = 0.2
"""Relative error of the first estimate above which a warning is given."""

_LARGE_MISS = 0.1
"""Share of the requested latency by which the measured one may exceed it without a warning."""


def quality_warnings(found: Met) -> Iterator[str]:
    """Yield warnings about a result: a missed budget, stages with hardly any weights, and an inaccurate estimate."""
    if found.missed_by > _LARGE_MISS:
        yield (
            f"the budget was missed: {100 * found.share:.0f} % of the base's latency was achieved, and"
            f" {100 * found.requested:.0f} % requested. Prune again while the machine is quiet, or request more time"
        )
    kept, total = Counter[str](), Counter[str]()
    for row in found.mask.table():
        kept[stage_of(row.name)] += row.kept
        total[stage_of(row.name)] += row.total
    densities = {stage: kept[stage] / count for stage, count in total.items() if count}
    low = {stage: density for stage, density in densities.items() if density < _LEAST_STAGE_DENSITY}
    others = [one for one in found.considered if one.structure != found.structure]
    most = (1 + _LARGE_MISS) * found.latencies.requested
    fitting = [one for one in others if one.seconds <= most and one.density > found.mask.density]
    denser = max(fitting, key=lambda one: one.density, default=None)
    if low:
        if denser is not None:
            instead = f"{denser} for this budget; or request more time"
        elif others or found.structure == CHANNELS:
            instead = "request more time, or start from a smaller network"
        else:
            instead = "request more time, or try structure='channels', which keeps dense kernels"
        worst = min(low, key=lambda stage: low[stage])
        more = f" and {len(low) - 1} more stages are below {100 * _LEAST_STAGE_DENSITY:g} %" if len(low) > 1 else ""
        yield (
            f"{worst} retains {100 * low[worst]:.2g} % of its weights{more}: retraining seldom recovers the accuracy."
            f" Instead: {instead}"
        )
    if abs(found.first - 1) > _LARGE_ERROR:
        other = f" Instead: {denser}" if denser is not None else ""
        if len(found.considered) < 2:
            other = " Leave structure out to have all granularities timed"
        yield (
            f"the first mask was estimated at {100 * found.first:.0f} % of its measured latency; the budget is met by"
            f" measurement, but how it is spread over the layers is uncertain.{other}"
        )


def stage_of(name: str) -> str:
    """Return the stage of a parameter: its name up to the first part that ends with a digit, else its layer's name.

    >>> stage_of("blocks.2.1.conv_pw.weight"), stage_of("layer1.0.conv1.weight"), stage_of("conv_head.weight")
    ('blocks.2', 'layer1', 'conv_head')
    """
    parts = name.split(".")
    for index, part in enumerate(parts[:-1]):
        if part[-1:].isdecimal():
            return ".".join(parts[: index + 1])
    return ".".join(parts[:-1]) or name
