"""Budgets of tickets: what a mask is to cost, in place of a density. Needs no torch.

Not to be taken for `--budget`, which is what a whole search may cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ticketry.budgets.granularity import FINEST, NONE, in_blocks, single_granularity
from ticketry.budgets.units import EAGER, ENGINE, Base, Latencies, Unit, format_cost, parse_share_or_amount
from ticketry.core.structure.pattern import UNSTRUCTURED
from ticketry.errors import UsageError

if TYPE_CHECKING:
    from ticketry.budgets.cost_model import CostModel

COUNTED = {"flops": "multiplications", "time": "time", "bytes": "bytes"}
"""Setting -> what it is a share of."""
BY_COSTS = ("time", "bytes")
"""Those that costs of the network tell, in a file."""
BY_VALUE = ("time", "flops")
"""Those that are spent by what weights are worth if nothing else is asked for: of bytes every weight takes the same."""


@dataclass(frozen=True, kw_only=True)
class Aimed:
    """A budget of each ticket, in place of its density."""

    flops: tuple[float, ...] = ()
    """Share of the dense network's multiplications (of the layers that are pruned) that a ticket takes, such as 0.25 or
    25%, in place of density: each weight is charged as many as there are places it is applied at, and what is worth
    most is kept (by kfac, for which magnitude stands here), or the most of another score. Of several each is a ticket.
    """
    time: tuple[float | str, ...] = ()
    """Latency budget of a ticket in place of density: a share of the latency of --base (0.3, 30%), or an amount such as
    5ms, as the costs in --profile estimate it; chosen as under flops. Several values give one ticket each."""
    base: Base = "eager"
    """Whose latency a share in --time is of: eager (the network as it runs in PyTorch), torch.compile, onnxruntime,
    openvino, or engine (compiled by ticketry without pruning)."""
    bytes: tuple[float | str, ...] = ()
    """The same of bytes (2MB), where --profile is of costs in bytes."""
    profile: str = ""
    """A file of what this network costs, layer by layer, as ticketry cost writes it. Without one a time is of this
    machine, for calls of 16 examples in one thread, which is measured before the search begins."""
    measured: bool = False
    """Under a budget of time: time each ticket on this machine, the one that the costs are of, and correct what it
    keeps until the time is met. What was measured is told with each network, and counts in this store from then on."""
    unweighed: bool = False
    """Under a budget: keep the highest scores until it is spent, wherever they lie, as a density does, and take no
    notice of what each costs; gates are all charged alike."""

    @property
    def aim(self) -> str:
        """The setting that names the budget; empty where a density is asked for."""
        return next((name for name in COUNTED if getattr(self, name)), "")

    @property
    def unmeasured(self) -> bool:
        """Whether the budget is of costs that no file tells: a search measures them here before it begins."""
        return self.aim in BY_COSTS and not self.profile

    @property
    def shares(self) -> tuple[float, ...]:
        """The budgets asked for, as shares, falling; empty where a density is asked for."""
        if not self.aim:
            return ()
        asked = getattr(self, self.aim)
        if self.unmeasured:
            asked = _stand_ins(self.aim, asked)
        elif self.aim in BY_COSTS:
            costs = costs_for(self.aim, self.profile)
            asked = [_share_of(costs, one, self.base) for one in asked]
        return tuple(sorted(asked, reverse=True))

    @property
    def named_base(self) -> Base | None:
        """The base, if the budget is a share of its latency and it is not the compiled network; else None.

        Names and keys have it only then: runs from before bases could be named were shares of the compiled network.
        """
        shares = self.aim == "time" and any(parse_share_or_amount(one, "seconds")[1] for one in self.time)
        return self.base if shares and self.base != ENGINE else None

    @property
    def terms(self) -> str:
        """The aim, with the digest of the costs that it goes by: what tells one from another in a key."""
        if self.aim not in BY_COSTS:
            return self.aim
        return f"{self.aim}{'+measured' if self.measured else ''}:{costs_for(self.aim, self.profile).digest}"

    def check_aim(self) -> None:
        """Raises `UsageError` for a budget that cannot be, or beside what has no meaning with one."""
        if len(named := [name for name in COUNTED if getattr(self, name)]) > 1:
            raise UsageError(f"give one budget: {' or '.join(named)}")
        if self.profile and self.aim not in BY_COSTS:
            raise UsageError("profile has costs for a budget of time or bytes: name one, or leave it away")
        if self.base != EAGER and self.aim != "time":
            raise UsageError(f"base {self.base} says what a share in time is of: give time too, or leave base out")
        if self.measured and self.aim != "time":
            raise UsageError("measured is of a budget of time: name one (time and profile), or leave it away")
        if self._mixed and self.aim != "time":
            raise UsageError(
                f"structure {self._structure} is of a budget of time: name one (time and profile), or another structure"
            )
        if not self.aim:
            if self.unweighed:
                raise UsageError("unweighed is of a budget: name one (flops), or leave it away")
            return
        shares = self.shares
        for share in shares:
            if not 0 < share <= 1:
                raise UsageError(
                    f"{self.aim} is the share of the dense network's {COUNTED[self.aim]} that is left, 0 < {self.aim}"
                    f" <= 1, or as 25%, not {share:g}"
                )
        if len(set(shares)) < len(shares):
            raise UsageError(f"{self.aim} names each share once, not {', '.join(map(str, shares))}")
        if beside := [name for name in ("density", "sparsity", "densities") if getattr(self, name, None)]:
            raise UsageError(f"give either {beside[0]} or {self.aim}: both say how much of the network is left")
        if self.unweighed and getattr(self, "distribution", "global") != "global":
            raise UsageError("unweighed is of one ranking over all layers: leave it away, or distribution")
        if self._mixed:
            self._check_mixed()
        if self.profile and by_value(self):
            costs_in(self.profile).check_granularity(FINEST)
        for name, nothing in _SINGLE_WEIGHTS.items():
            if getattr(self, name, nothing) != nothing and not (name == "structure" and self._mixed):
                raise UsageError(f"{self.aim} is spent on single weights: leave {name} away, or ask for a density")

    @property
    def _mixed(self) -> bool:
        return chosen_in_blocks(self)

    @property
    def _structure(self) -> str:
        return getattr(self, "structure", NONE)

    def _check_mixed(self) -> None:
        beside = {"unweighed": False, "distribution": "global", "keep_at_least": 0}
        for name, nothing in beside.items():
            if getattr(self, name, nothing) != nothing:
                raise UsageError(
                    f"structure {self._structure} chooses whole blocks of each layer by their time: leave {name} away"
                )
        if self.profile:
            costs_in(self.profile).check_granularity(single_granularity(self._structure))


_SINGLE_WEIGHTS = {"structured": False, "structure": "none", "pattern": UNSTRUCTURED, "half_rate": ()}
"""Settings by which not every weight is chosen for itself, with the value that says nothing."""


UNITS: dict[str, Unit] = {"time": "seconds", "bytes": "bytes"}
"""Setting -> the unit of its costs."""


def _share_of(costs: CostModel, asked: float | str, base: str) -> float:
    """Return a budget as a share of the unpruned network's costs.

    Raises:
        UsageError: for a budget that no pruning is needed for.
        CostError: if the costs do not have the base's latency.
    """
    if costs.unit != "seconds":
        amount = costs.budget(asked)
        if amount > costs.dense:
            raise UsageError(
                f"{asked} is more than the {format_cost(costs.dense, costs.unit)} that the dense network takes"
            )
        return float(f"{amount / costs.dense:.12g}")
    number, is_share = parse_share_or_amount(asked, "seconds")
    now = costs.base_seconds(base) if is_share else costs.dense
    share = (number * now if is_share else number) / costs.dense
    if share > 1:
        known = Latencies(base if is_share else ENGINE, now, costs.dense, number * now if is_share else number)
        raise UsageError(f"time {asked}: {known}. Ask for less, or for a share of the compiled network (base engine)")
    costs.budget(share)
    return float(f"{share:.12g}")


def _stand_ins(aim: str, asked: Sequence[float | str]) -> list[float]:
    """The shares asked for, and others for amounts (5ms), whose own only costs tell: what is checked before these are
    measured is checked of them. No mask is made by them, see `costs_for`."""
    read = [parse_share_or_amount(one, UNITS[aim]) for one in asked]
    largest = max((number for number, is_share in read if not is_share), default=1.0)
    return [number if is_share else 0.4321 * number / largest for number, is_share in read]


def costs_for(aim: str, profile: str) -> CostModel:
    """The costs in a file; `UsageError` without a file, or for costs in another unit than that of the aim."""
    if not profile:
        raise UsageError(
            f"{aim} needs the costs of this network: --profile FILE, which ticketry cost --unit {UNITS[aim]} writes"
        )
    costs = costs_in(profile)
    if costs.unit != UNITS[aim]:
        raise UsageError(f"the costs in {profile} are in {costs.unit}, and {aim} is asked for")
    return costs


def costs_in(profile: str) -> CostModel:
    """The costs in a file; `CostError` if there are none."""
    from ticketry.budgets.cost_model import CostModel

    return CostModel.load(profile)


def with_base(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored settings with the base of their latency budget.

    Files that name none were written when every share was of the network compiled by ticketry without pruning.
    """
    format_cost = dict(settings)
    return {**format_cost, "base": ENGINE} if format_cost.get("time") and "base" not in format_cost else format_cost


def terms_of(settings: object) -> str:
    """See `Aimed.terms`; empty for a density."""
    return settings.terms if isinstance(settings, Aimed) else ""


def aim_of(settings: object) -> str:
    """The budget that settings of any method name; empty for a density."""
    return settings.aim if isinstance(settings, Aimed) else ""


def weighed(settings: object) -> bool:
    """Whether each score is weighed against what its weight costs: of a budget, if nothing else is asked for."""
    apart = getattr(settings, "unweighed", False) or getattr(settings, "distribution", "global") != "global"
    return bool(aim_of(settings)) and not apart


def chosen_in_blocks(settings: object) -> bool:
    """Whether masks are chosen in a granularity by what that takes, see `budgets.granularity.in_blocks`."""
    return in_blocks(str(getattr(settings, "structure", NONE)))


def by_value(settings: object) -> bool:
    """Whether a budget is spent by what weights are worth, which no layer is emptied by.

    Of time or multiplications, if nothing else is asked for, where a method's score is magnitude: that is not in the
    unit of the loss, and weighed against costs it empties the layers whose weights are the dearest.
    """
    unasked = getattr(settings, "score", "") == getattr(type(settings), "score", "") == "magnitude"
    return unasked and aim_of(settings) in BY_VALUE and weighed(settings) and not chosen_in_blocks(settings)


def goal(settings: object, share: float) -> str:
    """What a ticket is to reach, for people: ``density 0.1``, ``flops 0.25``."""
    return f"{aim_of(settings) or 'density'} {share:g}"
