"""Settings that methods share: what a search prunes, how much of it, in which structure, at which cost. No torch.

`PruningSettings` has the fields of nearly every method; `ScoreSettings` adds fields for methods that rank weights by a
score. Fields that only have a meaning together are combined into a `Budget` and a `ParsedStructure`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from typing_extensions import Doc, Self

from ticketry.budgets.units import (
    EAGER,
    ENGINE,
    FINEST,
    Base,
    Latencies,
    Unit,
    format_cost,
    parse_share_or_amount,
    retains_whole_blocks,
    single_granularity,
)
from ticketry.choices import check_choices, did_you_mean
from ticketry.core.structure.pattern import (
    SHARES,
    UNSTRUCTURED,
    Distribution,
    Pattern,
    Structuring,
    check_density,
    check_layer_minimum_option,
    parse_n_of_m,
    parse_share_option,
)
from ticketry.errors import UsageError
from ticketry.search.common.plan import Training
from ticketry.step import Step

if TYPE_CHECKING:
    from ticketry.budgets.cost_model import CostModel


Shares = tuple[float, ...] | float | None
"""One share, several or none. A single share is stored as a number, as older records and names of runs have it."""
COUNTED = {"flops": "multiplications", "time": "time", "bytes": "bytes"}
"""Name of a budget's setting -> the cost that the budget limits, for messages."""
MEASURED = ("time", "bytes")
"""Budgets whose costs are read from a file or measured; those of flops are counted."""
UNITS: dict[str, Unit] = {"time": "seconds", "bytes": "bytes"}
"""Name of a measured budget -> unit of its costs."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Cost limit of tickets, which the user gives instead of a density."""

    kind: str
    """flops, time or bytes."""
    amounts: tuple[float | str, ...]
    """Shares of the dense network's cost, or amounts such as 5ms; the search finds one ticket for each."""
    base: Base
    profile: str
    measured: bool
    unweighed: bool

    @property
    def needs_measurement(self) -> bool:
        """Whether costs must be measured on this machine before the search, because no file of costs was given."""
        return self.kind in MEASURED and not self.profile

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """The amounts, converted to shares of the dense network's cost, in falling order.

        Until costs are measured, amounts such as 5ms have placeholder shares, which let checks pass but choose no mask.
        """
        amounts: Sequence[Any] = self.amounts
        if self.needs_measurement:
            read = [parse_share_or_amount(one, UNITS[self.kind]) for one in amounts]
            largest = max((number for number, is_share in read if not is_share), default=1.0)
            amounts = [number if is_share else 0.4321 * number / largest for number, is_share in read]
        elif self.kind in MEASURED:
            costs = self.read_costs()
            amounts = [_parse_budget_share(costs, one, self.base) for one in amounts]
        return tuple(sorted(amounts, reverse=True))

    @property
    def base_for_run_name(self) -> Base | None:
        """The `base` to name in the run's name: only if it is not the default and an amount is a share of latency."""
        shares = self.kind == "time" and any(parse_share_or_amount(one, "seconds")[1] for one in self.amounts)
        return self.base if shares and self.base != ENGINE else None

    @cached_property
    def cache_key(self) -> str:
        """Text that identifies the budget in cache keys: its kind and, for measured costs, the digest of the costs."""
        if self.kind not in MEASURED:
            return self.kind
        return f"{self.kind}{'+measured' if self.measured else ''}:{self.read_costs().digest}"

    def read_costs(self) -> CostModel:
        """Read the file of costs; raise `UsageError` if none was given or its unit is not the budget's."""
        from ticketry.budgets.cost_model import CostModel

        unit = UNITS[self.kind]
        if not self.profile:
            raise UsageError(
                f"{self.kind} needs the costs of this network: --profile FILE, which ticketry cost --unit {unit} writes"
            )
        costs = CostModel.load(self.profile)
        if costs.unit != unit:
            raise UsageError(f"the costs in {self.profile} are in {costs.unit}, and {self.kind} is asked for")
        return costs

    def check_shares(self) -> None:
        """Raise `UsageError` if a share is outside (0, 1] or given twice."""
        for share in self.shares:
            if not 0 < share <= 1:
                raise UsageError(
                    f"{self.kind} is the share of the dense network's {COUNTED[self.kind]} that is left,"
                    f" 0 < {self.kind} <= 1, or as 25%, not {share:g}"
                )
        if len(set(self.shares)) < len(self.shares):
            raise UsageError(f"{self.kind} names each share once, not {', '.join(map(str, self.shares))}")


@dataclass(frozen=True, kw_only=True)
class PruningSettings:
    """Settings that every method has: what to prune, how much of it, and what the whole search may cost."""

    points: ClassVar[tuple[str, ...]] = ()
    """Names of the settings that are points of the schedule."""
    structures: ClassVar[tuple[Family, ...]] = ()
    """Families of values that the method offers for its setting `structure`."""

    spare: tuple[str, ...] = ()
    """Names or patterns of layers that are not pruned (and not counted in the density), such as fc3 or conv1."""
    spare_output: bool = False
    """Do not prune the last layer."""
    spare_first_conv: bool = False
    """Do not prune the first convolution."""
    embeddings: bool = False
    """Prune embeddings too. An embedding whose matrix is also the last layer's (tied weights) is always pruned."""
    density: Shares = ()
    """Fraction of weights retained at the end. Several (0.5,0.2,0.1) give one ticket each, from one dense training.
    0.1 if neither density nor sparsity is given."""
    sparsity: Shares = ()
    """Fraction removed at the end, instead of density."""
    flops: tuple[float, ...] = ()
    """Share of the dense network's MACs (of the layers that are pruned) that a ticket takes, such as 0.25 or 25%, in
    place of density. A weight costs one MAC for each position where it is applied; the weights of the highest score per
    cost are retained (the default score is then kfac, where it is magnitude). Several values give one ticket each."""
    time: tuple[float | str, ...] = ()
    """Latency budget of a ticket in place of density: a share of the latency of --base (0.3, 30%), or an amount such as
    5ms, as the costs in --profile estimate it; chosen as under flops. Several values give one ticket each."""
    base: Base = "eager"
    """Network whose latency a share in --time refers to: eager (as it runs in PyTorch), torch.compile, onnxruntime,
    openvino, or engine (compiled by ticketry without pruning)."""
    bytes: tuple[float | str, ...] = ()
    """Budget in bytes (2MB), like time; --profile then has costs in bytes."""
    profile: str = ""
    """File with the costs of this network, layer by layer, as ticketry cost writes it. Without one, --time refers to
    this machine, for calls of 16 examples in one thread, which is measured before the search begins."""
    measured: bool = False
    """With --time: measure the latency of each ticket on this machine, the one that the costs are from, and correct
    its density until the budget is met. Measurements are recorded with each network and reused from the store."""
    unweighed: bool = False
    """With a budget: retain the highest scores until it is spent, without weighing them against costs, as a density
    does; gates all cost the same."""
    equal_cost: Literal["", "steps", "flops"] = ""
    """Limit the cost of the whole search for the sparsest ticket to that of one dense training: steps (schedules are
    compressed), flops (the network is trained for longer once it is sparse, where a method has one training); by
    default methods cost what was published."""

    def __post_init__(self) -> None:
        convert_setting_fields(self)
        check_choices(self)
        if self.equal_cost == "flops" and not self.finds_ticket_in_one_training:
            raise UsageError(
                "equal_cost flops trains a network for longer once it is sparse, which this method of several trainings"
                " has no place for: use equal_cost steps, or a method that costs 1 a density (ticketry list methods)"
            )
        if hasattr(self, "structure"):
            object.__setattr__(self, "structure", self.parsed_structure.text)
        _ = self.targets
        for point in self.points:
            Step.parse(getattr(self, point))
        self._check_budget()

    @property
    def finds_ticket_in_one_training(self) -> bool:
        """Whether the method finds each ticket in a single training, so that `equal_cost` may be ``flops``."""
        return True

    @cached_property
    def budget(self) -> Budget | None:
        """The cost limit of tickets; None if the user requests a density."""
        named = [name for name in COUNTED if getattr(self, name)]
        if len(named) > 1:
            raise UsageError(f"give one budget: {' or '.join(named)}")
        if not named:
            return None
        common = {name: getattr(self, name) for name in ("base", "profile", "measured", "unweighed")}
        return Budget(kind=named[0], amounts=getattr(self, named[0]), **common)

    @property
    def budget_cache_key(self) -> str:
        """`Budget.cache_key` of the cost budget; empty if there is no budget."""
        return self.budget.cache_key if self.budget else ""

    @cached_property
    def parsed_structure(self) -> ParsedStructure:
        """The parsed setting `structure`: which weights are removed together."""
        text = str(getattr(self, "structure", NONE))
        return ParsedStructure.parse(
            text, self.structures, latency=self.budget is not None and self.budget.kind == "time"
        )

    @property
    def targets(self) -> tuple[float, ...]:
        """The requested densities, or shares of the dense cost, in falling order."""
        if self.budget:
            return self.budget.shares
        return requested_densities(self.density, self.sparsity) or (0.1,)

    @property
    def ranks_by_score_per_cost(self) -> bool:
        """Whether weights are ranked by score divided by cost, as is the default under a budget."""
        return self.budget is not None and not self.unweighed and getattr(self, "distribution", "global") == "global"

    @property
    def spends_budget_by_importance(self) -> bool:
        """Whether a budget is spent on the weights of the highest importance per cost, leaving no layer empty."""
        return False

    def plan_tickets(self, **how: Any) -> list[Training]:
        """Plan one ticket training for each target; `how` are further keywords of `Training`."""
        return [
            Training(level=level, density=None if self.budget else target, **how)
            for level, target in enumerate(self.targets, start=1)
        ]

    def for_level(self, level: int) -> tuple[Self, int | None]:
        """Return settings of a search for only the ticket of `level`, and its level there (None: the last level)."""
        own: Any = {self.budget.kind if self.budget else "density": (self.targets[level - 1],)}
        return replace(self, **{"density": (), "sparsity": (), **own}), 1

    def values_for_run_name(self) -> dict[str, Any]:
        """Return setting -> value, with the names of record format 1; names of runs are derived from these."""
        values = asdict(self)
        if values.pop("structure", NONE) != NONE:
            values |= self.parsed_structure.old
        values["budget"] = values.pop("equal_cost")
        if self.budget:
            if self.profile:
                values["profile"] = self.budget.cache_key  # the costs themselves, wherever the file is stored
            if self.spends_budget_by_importance:
                values["by_value"] = True  # such budgets were once spent by magnitudes
        del values["base"]
        if self.budget and self.budget.base_for_run_name:
            values["base"] = self.budget.base_for_run_name
        return values

    def describe_target(self, share: float) -> str:
        """Return a text for messages that names a ticket's target, such as ``density 0.1`` or ``flops 0.25``."""
        return f"{self.budget.kind if self.budget else 'density'} {share:g}"

    def _check_budget(self) -> None:
        """Raise `UsageError` if the budget is invalid, or a setting needs a budget or excludes one."""
        budget, shape = self.budget, self.parsed_structure
        kind = budget.kind if budget else ""
        if self.profile and kind not in MEASURED:
            raise UsageError("profile has costs for a budget of time or bytes: name one, or leave profile out")
        if self.base != EAGER and kind != "time":
            raise UsageError(f"base {self.base} says what a share in time refers to: give time too, or leave base out")
        if self.measured and kind != "time":
            raise UsageError("measured needs a budget of time: name one (time and profile), or leave measured out")
        if shape.granularity and kind != "time":
            raise UsageError(
                f"structure {shape} needs a budget of time: name one (time and profile), or another structure"
            )
        if budget is None:
            if self.unweighed:
                raise UsageError("unweighed needs a budget: name one (flops), or leave unweighed out")
            return
        budget.check_shares()
        if beside := [name for name in ("density", "sparsity", "densities") if getattr(self, name, None)]:
            raise UsageError(f"give either {beside[0]} or {kind}: both say how much of the network is left")
        if self.unweighed and getattr(self, "distribution", "global") != "global":
            raise UsageError("unweighed ranks all layers together: leave it out, or distribution")
        if shape.granularity:
            for name, default in (("unweighed", False), ("distribution", "global"), ("keep_at_least", 0)):
                if getattr(self, name, default) != default:
                    raise UsageError(
                        f"structure {shape} chooses whole blocks of each layer by their time: leave {name} out"
                    )
            if budget.profile:
                budget.read_costs().check_granularity(single_granularity(shape.granularity))
        elif shape.text != NONE or getattr(self, "half_rate", None):
            name = "half_rate" if shape.text == NONE else f"structure {shape}"
            raise UsageError(f"{kind} is spent on single weights: leave {name} out, or give a density")
        if budget.profile and self.spends_budget_by_importance:
            budget.read_costs().check_granularity(FINEST)


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(PruningSettings):
    """Settings of a method that ranks weights by a score."""

    score: str = "magnitude"
    """Score by which the highest weights are retained. With structure channels, snip and crop are those of gates on
    channels (SNAP, structured CroP), and l1, l2 and slimming rank channels too."""
    distribution: Distribution = "global"
    """global, layerwise, uniform or erk: how the retained weights are distributed over the layers."""
    half_rate: tuple[str, ...] = ()
    """Names or patterns of layers pruned at half the rate, such as fc3 (the output layer in Frankle & Carbin)."""
    keep_at_least: int = 0
    """Weights (with structure channels: channels, at least 1) that each layer retains at least; with 0 a density that
    would empty a layer is an error that names it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layer_minimum_option(self.keep_at_least)
        if self.parsed_structure.channels:
            if self.distribution not in ("global", "uniform"):
                raise UsageError(
                    f"channels are distributed global or uniform, not {self.distribution}: a group may span many layers"
                )
            if self.half_rate:
                raise UsageError("half_rate is for single weights: whole channels of a layer go with their neighbours")
        pattern = self.parsed_structure.parsed_pattern
        if pattern.m and self.half_rate:
            raise UsageError(
                f"half_rate has no meaning with structure {self.parsed_structure}: all layers lose the same share"
            )
        for density in self.mask_densities if pattern.m else ():
            pattern.check_density(density)

    @property
    def mask_densities(self) -> tuple[float, ...]:
        """Densities of all masks that the search chooses: intermediate ones and the targets."""
        return self.targets

    @property
    def spends_budget_by_importance(self) -> bool:
        """Whether a budget is spent by the importance of weights per cost, which leaves no layer empty.

        This is so for budgets of time and FLOPs if the score is magnitude, the default. Ranking by magnitude divided by
        cost would empty the layers whose weights cost the most.
        """
        default = self.score == getattr(type(self), "score", "") == "magnitude"
        spent = self.budget is not None and self.budget.kind in ("time", "flops")
        return default and spent and self.ranks_by_score_per_cost and not self.parsed_structure.granularity

    @property
    def replacing_score(self) -> str:
        """The score that chooses masks instead of the setting `score`; empty if `score` itself does.

        The score ``kfac`` replaces magnitude if layers are compared by how much the loss rises without their weights.
        """
        replaced = (self.spends_budget_by_importance or self.parsed_structure.granularity) and self.score == "magnitude"
        return "kfac" if replaced else ""


def budget_of(settings: object) -> Budget | None:
    """Return the cost budget of a method's settings; None if they have no budget."""
    found = getattr(settings, "budget", None)
    return found if isinstance(found, Budget) else None


# -- values as users write them ----------------------------------------------------------------------------------------


def convert_setting_fields(settings: Any) -> None:
    """Convert the fields of a frozen dataclass to their declared types; call this in ``__post_init__``.

    - If a field's default is a tuple, a single value (``0.2``, ``"fc3"``) or a list is converted to a tuple.
    - Shares are converted to numbers: ``"20%"`` to 0.2, and, if several are allowed, ``"50%,20%"`` to (0.5, 0.2).
    - If a field's default is None, a single share is stored as a number, and several shares as a tuple.
    """
    for one in fields(settings):
        name, value, several = one.name, getattr(settings, one.name), isinstance(one.default, tuple)
        if value is one.default:
            continue
        shares = name in SHARES
        if several or (shares and value is not None):
            if shares and isinstance(value, str):
                value = value.split(",")
            value = tuple(value) if isinstance(value, list | tuple) else (value,)
        if shares and value is not None:
            for item in value:
                if isinstance(item, bool) or not isinstance(item, str | int | float):
                    raise UsageError(f"{name} is a number or a text such as 20%, not {item!r:.60}")
            value = tuple(float(parse_share_option(name, item)) for item in value)
            if not several and len(value) < 2:
                value = value[0] if value else None
        object.__setattr__(settings, name, value)


def requested_densities(density: Shares, sparsity: Shares) -> tuple[float, ...]:
    """Return the densities requested by `density` or `sparsity`, the densest first; empty if neither is given."""
    retained, removed = _shares_to_tuple(density), _shares_to_tuple(sparsity)
    if retained and removed:
        raise UsageError("give either density (fraction kept) or sparsity (fraction removed), and only one of them")
    found = [check_density(sparsity=share) for share in removed] or [check_density(share) for share in retained]
    if len(set(found)) < len(found):
        raise UsageError(f"density names each share once, not {', '.join(map(str, found))}")
    return tuple(sorted(found, reverse=True))


def _shares_to_tuple(shares: Shares) -> tuple[float, ...]:
    return shares if isinstance(shares, tuple) else () if shares is None else (shares,)


def _parse_budget_share(costs: CostModel, requested: float | str, base: str) -> float:
    """Convert a requested budget, such as 5ms or 0.5, to a share of the dense network's cost in `costs`."""
    if costs.unit != "seconds":
        amount = costs.budget(requested)
        if amount > costs.dense:
            raise UsageError(
                f"{requested} is more than the {format_cost(costs.dense, costs.unit)} that the dense network takes"
            )
        return float(f"{amount / costs.dense:.12g}")
    number, is_share = parse_share_or_amount(requested, "seconds")
    now = costs.base_seconds(base) if is_share else costs.dense
    share = (number * now if is_share else number) / costs.dense
    if share > 1:
        known = Latencies(base if is_share else ENGINE, now, costs.dense, number * now if is_share else number)
        raise UsageError(
            f"time {requested}: {known}. Ask for less, or for a share of the compiled network (base engine)"
        )
    costs.budget(share)
    return float(f"{share:.12g}")


NONE = "none"
FILTERS = "filters"
Family = Literal["blocks", "n:m", "channels", "tickets", "latency"]
"""A family of values of the setting ``structure``; a method offers whole families.

blocks: blocks of one layer's weights are removed together. n:m: at most N of every M inputs remain. channels: whole
coupled channels are removed. tickets: the structure is applied to a ticket's mask after the search. latency: a
granularity is chosen for each layer, under a latency budget.
"""
ALL_STRUCTURES: tuple[Family, ...] = get_args(Family)
AnyStructure = Annotated[
    str,
    Doc(
        """
        Removed together: none (single weights); in all masks of the search rows:4, rows:16 (so many neighbouring rows,
        at one column), filters (whole rows of one layer), search:2:4 (at most 2 of every 4 inputs), channels (whole
        coupled channels, trained as a physically smaller network) or channels:16 (each group that loses any keeps a
        multiple of 16); in the tickets alone refill, refill+:0.2 (whole channels; plus a share of those that it drops,
        or refill+:match for the same density), regroup:16 (groups of 16 rows with the same columns) or 2:4. Their
        options follow after commas: score=l1 (of channels: remaining, l1, l2, taylor, activation_l1, activation_l2 or
        another score), coupled=agree (or inner: only channels of one layer alone), method=similarity (or hypergraph,
        paper, random), collapse=raise (or keep). Positions that are filled back start from the weights that tickets
        start from. With a latency budget also auto (each layer in the granularity that retains most for its time) or
        one granularity for all layers, weights, rows:4, rows:16.
        """
    ),
]
"""Type of the setting ``structure`` of a method that offers every family, with the text of its help."""
_WORDS: dict[Family, str] = {
    "blocks": "rows:4, filters",
    "n:m": "search:2:4",
    "channels": "channels, channels:16",
    "tickets": "refill, refill+, regroup, 2:4",
    "latency": "auto, weights, rows:4 (with a latency budget)",
}
_OPTIONS = {
    "refill": {"score": "score", "coupled": "coupled"},
    "refill+": {"score": "score", "coupled": "coupled"},
    "regroup": {"method": "method", "collapse": "collapse"},
}
"""For each kind of ticket structure, its options: name in the text -> field of `Structuring`."""
_OLD_NAMES = {
    "plus": "plus",
    "match": "refill_match",
    "rows": "rows",
    "method": "regroup_method",
    "collapse": "regroup_collapse",
    "score": "refill_score",
    "coupled": "refill_coupled",
}
"""Field of `Structuring` -> name of the same setting in record format 1."""


@dataclass(frozen=True)
class ParsedStructure:
    """A parsed value of the setting ``structure``: which weights are removed together.

    Examples:
        >>> from ticketry.search.common.settings import ParsedStructure
        >>> ParsedStructure.parse("channels:16", ["channels"]).multiple
        16
        >>> str(ParsedStructure.parse("regroup:16,method=hypergraph", ["tickets"]).tickets)
        'regroup, 16 rows, hypergraph'
        >>> ParsedStructure.parse("row:4", ["blocks"])
        Traceback (most recent call last):
            ...
        ticketry.errors.UsageError: structure 'row:4' is not offered: did you mean rows:4? none, rows:4, filters
    """

    text: str = NONE
    """The shortest text that `parse` reads as this structure."""
    pattern: str = UNSTRUCTURED
    """Pattern of the masks that the search chooses, such as 4x1 or 2:4, see `core.structure.pattern`."""
    channels: bool = False
    """Whether the search removes whole coupled channels."""
    multiple: int = 1
    """A group that loses channels retains a multiple of this number."""
    granularity: str = ""
    """Granularity of masks that are chosen by latency: auto, weights or rows:N; else empty."""
    tickets: Structuring | None = None
    """How a ticket's mask is derived from the search's mask; None if the ticket has the search's mask."""
    old: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The structure as settings of record format 1, without those that have default values."""

    @classmethod
    def parse(cls, text: str, offered: Iterable[Family], *, latency: bool = False) -> ParsedStructure:
        """Parse a value of the setting ``structure``; raise `UsageError` unless its family is in `offered`.

        `latency` says whether there is a latency budget.
        """
        families = tuple(offered)
        head, *options = text.split(",")
        kind, _, amount = head.partition(":")
        if text == NONE:
            return cls()
        if retains_whole_blocks(text) and "latency" in families and (latency or kind != "rows"):
            return cls(text, granularity=text, old={"structure": text})
        if not options and "blocks" in families and (kind == "rows" or head == FILTERS):
            rows = _parse_count(amount, text, least=2) if kind == "rows" else 0
            blocks = f"{rows}x1" if rows else "channel"
            return cls(text, blocks, old={"pattern": blocks})
        pattern = head.removeprefix("search:")
        by_search = kind == "search" or "tickets" not in families
        if not options and by_search and "n:m" in families and parse_n_of_m(pattern):
            return cls(f"search:{pattern}" if "tickets" in families else pattern, pattern, old={"pattern": pattern})
        if not options and "channels" in families and kind == "channels":
            multiple = _parse_count(amount, text, least=1) if amount else 1
            shortest = f"channels:{multiple}" if multiple > 1 else "channels"
            old = {"structured": True} | ({"multiple": multiple} if multiple > 1 else {})
            return cls(shortest, channels=True, multiple=multiple, old=old)
        if "tickets" in families and (kind in _OPTIONS or parse_n_of_m(head)):
            return _parse_ticket_structure(text, kind if kind in _OPTIONS else head, amount, options)
        words = ", ".join(_WORDS[family] for family in _WORDS if family in families)
        near = did_you_mean(head, words.replace(" (with a latency budget)", "").split(", "))
        raise UsageError(f"structure {text!r} is not offered: {near}{NONE}{words and f', {words}'}")

    @property
    def parsed_pattern(self) -> Pattern:
        return Pattern.parse(self.pattern)

    @property
    def trains_smaller_network(self) -> bool:
        """Whether tickets are trained without their removed channels, as smaller networks."""
        return self.channels or (self.tickets is not None and self.tickets.whole_channels)

    def __str__(self) -> str:
        return self.text


def _parse_ticket_structure(text: str, kind: str, amount: str, options: list[str]) -> ParsedStructure:
    """Parse a structure that is applied to tickets after the search, such as ``refill``."""
    values: dict[str, Any] = {}
    known = _OPTIONS.get(kind, {})
    for option in options:
        name, has_value, value = option.partition("=")
        if not has_value or name not in known:
            takes = ", ".join(f"{one}=…" for one in known) or "none"
            raise UsageError(f"structure {text!r} has the option {option!r}: the options of {kind} are {takes}")
        values[known[name]] = value
    if amount and kind == "regroup":
        values["rows"] = _parse_count(amount, text, least=1)
    elif amount and kind == "refill+":
        try:
            values |= {"match": True} if amount == "match" else {"plus": float(amount)}
        except ValueError:
            raise UsageError(
                f"structure {text!r}: after refill+ comes a share such as 0.2, or match, got {amount!r}"
            ) from None
    elif amount and kind == "refill":
        raise UsageError(f"structure {text!r}: refill takes no number: write refill, or refill+:{amount}")
    by = Structuring(kind=kind, **values)
    changed = {name: value for name, value in values.items() if value != getattr(Structuring, name)}
    number = "match" if changed.get("match") else changed.get("plus", changed.get("rows"))
    head = kind if number is None else f"{kind}:{number}"
    named = [f"{name}={changed[option]}" for name, option in known.items() if option in changed]
    old = {"structure": kind, **{_OLD_NAMES[name]: value for name, value in changed.items()}}
    return ParsedStructure(",".join([head, *named]), tickets=by, old=old)


def parsed_structure_of(settings: object) -> ParsedStructure:
    """Return the parsed structure of a method's settings; that of single weights if the method has no structure."""
    found = getattr(settings, "parsed_structure", None)
    return found if isinstance(found, ParsedStructure) else ParsedStructure()


def _parse_count(amount: str, text: str, *, least: int) -> int:
    if not amount.isdecimal() or int(amount) < least:
        raise UsageError(f"structure {text!r} needs a whole number from {least} on after the colon, got {amount!r}")
    return int(amount)
