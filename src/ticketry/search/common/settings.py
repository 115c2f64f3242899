"""Settings that methods share: where a search prunes, how much, which shape, and at what cost. Needs no torch.

`PruningSettings` has the fields of nearly every method, `ScoreSettings` adds those of methods that rank weights by a
score. What the fields mean together is a value: `Budget` and `Shape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import Self

from ticketry.budgets.granularity import FINEST, single_granularity
from ticketry.budgets.units import EAGER, ENGINE, Base, Latencies, Unit, format_cost, parse_share_or_amount
from ticketry.choices import check_choices
from ticketry.core.structure.pattern import (
    SHARES,
    Distribution,
    check_density,
    check_layer_minimum_option,
    parse_share_option,
)
from ticketry.errors import UsageError
from ticketry.search.common.plan import Training
from ticketry.search.common.shape import NONE, Family, Shape
from ticketry.step import Step

if TYPE_CHECKING:
    from ticketry.budgets.cost_model import CostModel

Shares = tuple[float, ...] | float | None
"""One share or several; one is stored as a number, so that records and names of runs stay the same."""
COUNTED = {"flops": "multiplications", "time": "time", "bytes": "bytes"}
"""Setting of each budget, and the cost that it is a share of."""
MEASURED = ("time", "bytes")
"""Budgets whose costs a file contains."""
UNITS: dict[str, Unit] = {"time": "seconds", "bytes": "bytes"}
"""Unit of the costs of each of them."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Cost limit of tickets, in place of their density."""

    kind: str
    """flops, time or bytes."""
    amounts: tuple[float | str, ...]
    """Shares of the dense network's cost, or amounts such as 5ms; each gives a ticket."""
    base: Base
    profile: str
    measured: bool
    unweighed: bool

    @property
    def unmeasured(self) -> bool:
        """Whether its costs have to be measured on this machine before the search, because no file has them."""
        return self.kind in MEASURED and not self.profile

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """The budgets as shares of the dense network's cost, falling."""
        amounts: Sequence[Any] = self.amounts
        if self.unmeasured:
            amounts = _stand_ins(self.kind, amounts)
        elif self.kind in MEASURED:
            costs = self.costs()
            amounts = [_share_of(costs, one, self.base) for one in amounts]
        return tuple(sorted(amounts, reverse=True))

    @property
    def named_base(self) -> Base | None:
        """The base of a share of latency, unless it is the compiled network; else None.

        Names and keys have it only then: runs from before bases could be named were shares of the compiled network.
        """
        shares = self.kind == "time" and any(parse_share_or_amount(one, "seconds")[1] for one in self.amounts)
        return self.base if shares and self.base != ENGINE else None

    @cached_property
    def terms(self) -> str:
        """Kind and digest of the costs, which distinguish budgets in keys."""
        if self.kind not in MEASURED:
            return self.kind
        return f"{self.kind}{'+measured' if self.measured else ''}:{self.costs().digest}"

    def costs(self) -> CostModel:
        """Return the costs in the profile; `UsageError` without one, or for costs in another unit."""
        unit = UNITS[self.kind]
        if not self.profile:
            raise UsageError(
                f"{self.kind} needs the costs of this network: --profile FILE, which ticketry cost --unit {unit} writes"
            )
        costs = costs_in(self.profile)
        if costs.unit != unit:
            raise UsageError(f"the costs in {self.profile} are in {costs.unit}, and {self.kind} is asked for")
        return costs

    def check_shares(self) -> None:
        """Raise `UsageError` for shares outside (0, 1] or named twice."""
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
    """Settings of a method: where it prunes, how much, and what the whole search may cost."""

    points: ClassVar[tuple[str, ...]] = ()
    """Names of the settings that are points of the schedule."""
    structures: ClassVar[tuple[Family, ...]] = ()
    """Families of shapes that the method offers in its setting `structure`."""

    spare: tuple[str, ...] = ()
    """Names or patterns of layers that are not pruned (and not counted in the density), such as fc3 or conv1."""
    spare_output: bool = False
    """Do not prune the last layer."""
    spare_first_conv: bool = False
    """Do not prune the first convolution."""
    embeddings: bool = False
    """Prune embeddings too. One whose matrix is also the last layer's (tied weights) is pruned in any case, once."""
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
        take_as_written(self)
        check_choices(self)
        if self.equal_cost == "flops" and not self.one_training:
            raise UsageError(
                "equal_cost flops trains a network for longer once it is sparse, which this method of several trainings"
                " has no place for: use equal_cost steps, or a method that costs 1 a density (ticketry list methods)"
            )
        if hasattr(self, "structure"):
            object.__setattr__(self, "structure", self.shape.text)
        _ = self.targets
        for point in self.points:
            Step.parse(getattr(self, point))
        self._check_budget()

    @property
    def one_training(self) -> bool:
        """Whether a ticket takes one training, sparse at the end, which equal cost in FLOPs can prolong."""
        return True

    @cached_property
    def budget(self) -> Budget | None:
        """Return the cost limit of tickets; None if a density is requested."""
        named = [name for name in COUNTED if getattr(self, name)]
        if len(named) > 1:
            raise UsageError(f"give one budget: {' or '.join(named)}")
        if not named:
            return None
        common = {name: getattr(self, name) for name in ("base", "profile", "measured", "unweighed")}
        return Budget(kind=named[0], amounts=getattr(self, named[0]), **common)

    @property
    def budget_terms(self) -> str:
        """`Budget.terms`; empty without a budget."""
        return self.budget.terms if self.budget else ""

    @cached_property
    def shape(self) -> Shape:
        """Which weights are removed together."""
        text = str(getattr(self, "structure", NONE))
        return Shape.parse(text, self.structures, latency=self.budget is not None and self.budget.kind == "time")

    @property
    def targets(self) -> tuple[float, ...]:
        """The requested densities, or shares of the budget, falling."""
        if self.budget:
            return self.budget.shares
        return requested_densities(self.density, self.sparsity) or (0.1,)

    @property
    def weighed(self) -> bool:
        """Whether each score is weighed against what its weight costs, as a budget does by default."""
        return self.budget is not None and not self.unweighed and getattr(self, "distribution", "global") == "global"

    @property
    def by_value(self) -> bool:
        """Whether a budget is spent by the importance of weights per cost, which leaves no layer empty."""
        return False

    def plan_tickets(self, **how: Any) -> list[Training]:
        """Plan a ticket for each target, trained as `how` says; by keywords of `Training`."""
        return [
            Training(level=level, density=None if self.budget else target, **how)
            for level, target in enumerate(self.targets, start=1)
        ]

    def only(self, level: int) -> tuple[Self, int | None]:
        """Return the settings that find the ticket of this level alone, and its level there (None for the last)."""
        own: Any = {self.budget.kind if self.budget else "density": (self.targets[level - 1],)}
        return replace(self, **{"density": (), "sparsity": (), **own}), 1

    def in_format_1(self) -> dict[str, Any]:
        """Return the settings as run names have them, which stay the same for ever."""
        values = asdict(self)
        if values.pop("structure", NONE) != NONE:
            values |= self.shape.old
        values["budget"] = values.pop("equal_cost")
        if self.budget:
            if self.profile:
                values["profile"] = self.budget.terms  # the costs themselves, wherever the file is stored
            if self.by_value:
                values["by_value"] = True  # such budgets were once spent by magnitudes
        del values["base"]
        if self.budget and self.budget.named_base:
            values["base"] = self.budget.named_base
        return values

    def goal(self, share: float) -> str:
        """Return what a ticket is to reach, for messages: ``density 0.1``, ``flops 0.25``."""
        return f"{self.budget.kind if self.budget else 'density'} {share:g}"

    def _check_budget(self) -> None:
        """Raise `UsageError` for a wrong budget, or for settings that have no meaning beside it or without it."""
        budget, shape = self.budget, self.shape
        kind = budget.kind if budget else ""
        if self.profile and kind not in MEASURED:
            raise UsageError("profile has costs for a budget of time or bytes: name one, or leave profile out")
        if self.base != EAGER and kind != "time":
            raise UsageError(f"base {self.base} says what a share in time refers to: give time too, or leave base out")
        if self.measured and kind != "time":
            raise UsageError("measured needs a budget of time: name one (time and profile), or leave measured out")
        if shape.needs_latency and kind != "time":
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
        if shape.needs_latency:
            self._check_granularity()
        elif shape.text != NONE or getattr(self, "half_rate", None):
            name = "half_rate" if shape.text == NONE else f"structure {shape}"
            raise UsageError(f"{kind} is spent on single weights: leave {name} out, or give a density")
        if budget.profile and self.by_value:
            costs_in(budget.profile).check_granularity(FINEST)

    def _check_granularity(self) -> None:
        for name, default in (("unweighed", False), ("distribution", "global"), ("keep_at_least", 0)):
            if getattr(self, name, default) != default:
                raise UsageError(
                    f"structure {self.shape} chooses whole blocks of each layer by their time: leave {name} out"
                )
        if self.profile:
            costs_in(self.profile).check_granularity(single_granularity(self.shape.granularity))


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
        if self.shape.channels:
            if self.distribution not in ("global", "uniform"):
                raise UsageError(
                    f"channels are distributed global or uniform, not {self.distribution}: a group may span many layers"
                )
            if self.half_rate:
                raise UsageError("half_rate is for single weights: whole channels of a layer go with their neighbours")
        pattern = self.shape.parsed_pattern
        if pattern.m and self.half_rate:
            raise UsageError(f"half_rate has no meaning with structure {self.shape}: all layers lose the same share")
        for density in self.mask_densities if pattern.m else ():
            pattern.check_density(density)

    @property
    def mask_densities(self) -> tuple[float, ...]:
        """Densities of all masks that lead to the targets."""
        return self.targets

    @property
    def by_value(self) -> bool:
        """Whether a budget is spent by the importance of weights per cost, which leaves no layer empty.

        That is the default for time and FLOPs where a method's score is magnitude. Magnitude itself is not in the unit
        of the loss; weighed against costs it would empty the layers whose weights cost the most.
        """
        default = self.score == getattr(type(self), "score", "") == "magnitude"
        spent = self.budget is not None and self.budget.kind in ("time", "flops")
        return default and spent and self.weighed and not self.shape.granularity

    @property
    def other_score(self) -> str:
        """The score that masks are chosen by, if it is not the one in `score`; else empty.

        Where layers are compared by the change of the loss without their weights, kfac replaces the default, magnitude.
        """
        replaced = (self.by_value or self.shape.granularity) and self.score == "magnitude"
        return "kfac" if replaced else ""


def budget_of(settings: object) -> Budget | None:
    """Return the budget of settings of any method; None if they have none."""
    found = getattr(settings, "budget", None)
    return found if isinstance(found, Budget) else None


# -- values as users write them ----------------------------------------------------------------------------------------


def take_as_written(settings: Any) -> None:
    """Convert the fields of a frozen dataclass to their types, while it is built.

    Where several values are allowed (a tuple), a single one, ``0.2`` or ``"fc3"``, becomes a tuple of one, and a list a
    tuple. Shares become numbers: 0.2, 1, ``"0.2"`` and ``"20%"``; where several are allowed also ``"50%,20%"``. Where a
    share is None by default, one is stored as a number and several as a tuple, as records and names of runs have them.

    Raises:
        UsageError: for a value that is not a share.
    """
    for field in fields(settings):
        value, several = getattr(settings, field.name), isinstance(field.default, tuple)
        if value is field.default:
            continue
        shares = field.name in SHARES
        if several or (shares and value is not None):
            value = _several(value, apart=shares)
        if shares and value is not None:
            value = tuple(_share(field.name, one) for one in value)
            if not several and len(value) < 2:
                value = value[0] if value else None
        object.__setattr__(settings, field.name, value)


def _several(value: Any, *, apart: bool) -> tuple[Any, ...]:
    if isinstance(value, str) and apart:
        return tuple(value.split(","))
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _share(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f"{name} is a number or a text such as 20%, not {value!r:.60}")
    return float(parse_share_option(name, value))


def requested_densities(density: Shares, sparsity: Shares) -> tuple[float, ...]:
    """Return the densities that are requested by density or sparsity, the densest first; empty if none is.

    Raises:
        UsageError: for both, a density outside of (0, 1], or one that is named twice.
    """
    retained, removed = _as_tuple(density), _as_tuple(sparsity)
    if retained and removed:
        raise UsageError("give either density (fraction kept) or sparsity (fraction removed), and only one of them")
    found = [check_density(sparsity=share) for share in removed] or [check_density(share) for share in retained]
    if len(set(found)) < len(found):
        raise UsageError(f"density names each share once, not {', '.join(map(str, found))}")
    return tuple(sorted(found, reverse=True))


def _as_tuple(shares: Shares) -> tuple[float, ...]:
    return shares if isinstance(shares, tuple) else () if shares is None else (shares,)


# -- costs -------------------------------------------------------------------------------------------------------------


def costs_in(profile: str) -> CostModel:
    """Read the costs in a file; `CostError` if it has none."""
    from ticketry.budgets.cost_model import CostModel

    return CostModel.load(profile)


def _share_of(costs: CostModel, requested: float | str, base: str) -> float:
    """Return a budget as a share of the unpruned network's costs.

    Raises:
        UsageError: for a budget that needs no pruning.
        CostError: if the costs do not have the base's latency.
    """
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


def _stand_ins(kind: str, requested: Sequence[float | str]) -> list[float]:
    """Return shares unchanged, and placeholder shares for amounts (5ms) until the costs are measured.

    They are only checked: no mask is chosen by them, see `Budget.costs`.
    """
    read = [parse_share_or_amount(one, UNITS[kind]) for one in requested]
    largest = max((number for number, is_share in read if not is_share), default=1.0)
    return [number if is_share else 0.4321 * number / largest for number, is_share in read]
