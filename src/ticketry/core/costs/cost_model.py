"""What a network costs under any mask: curves of its layers, and what no mask makes smaller. A value, and a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ticketry.choices import did_you_mean
from ticketry.core.costs.bases import ENGINE
from ticketry.core.costs.curve import Curve
from ticketry.core.costs.granularity import FINEST
from ticketry.core.costs.layer_cost import LayerCost
from ticketry.core.costs.mask_granularity import of_mask
from ticketry.core.costs.words import Unit, in_columns, parsed, told, told_above
from ticketry.core.mask import Mask, require_mask
from ticketry.errors import CostError, UsageError
from ticketry.files import content_of, parse_json, write_atomically

KIND = "ticketry.cost"
_MOST_BYTES = 1 << 26
_NAMED = 5
"""Layers in torch that are named."""
_SHOWN = (1.0, 0.5, 0.2, 0.1, 0.05)
"""Densities in the table."""


class Estimate(Struct, frozen=True):
    """A cost, and between which values it lies in 95 of 100 cases.

    Examples:
        >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        >>> costs = tk.cost.model(model, torch.randn(8, 16), unit="multiplications")
        >>> costs.dense
        4096.0
        >>> costs.estimate(tk.prune(model, 0.25)).value
        1024.0
    """

    value: float
    low: float
    high: float
    unit: Unit = "seconds"

    def __str__(self) -> str:
        return f"{told(self.value, self.unit)} [{told(self.low, self.unit)}, {told(self.high, self.unit)}]"


class CostModel(Struct, frozen=True):
    """Costs of a network's layers by density and granularity. Made by `ticketry.cost`; kept in a file with a digest.

    Examples:
        >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        >>> costs = tk.cost.model(model, torch.randn(8, 16), unit="multiplications")
        >>> costs.dense
        4096.0
        >>> costs.estimate(tk.prune(model, 0.25)).value
        1024.0
        >>> costs.base_seconds("engine") == costs.dense
        True
        >>> costs.budget("25%"), costs.floor, costs.left_for(costs.layers, 1024.0)
        (1024.0, 0.0, 1024.0)
        >>> costs.in_torch, costs.in_torch_in_words()
        (0, '')
        >>> costs.curves()["0.weight"].at(0.5)
        1024.0
        >>> costs.check_granularity("weights")
        >>> costs.granularity("0.weight", tk.prune(model, 0.25, pattern="4x1"))
        'weights'
        >>> costs.floor_in_words().startswith("0 (0.0 % of dense)")
        True
    """

    unit: Unit
    layers: dict[str, LayerCost]
    """Parameter name -> its costs."""
    fixed: float
    """What no mask makes smaller: layers without prunable weights, loading, storing."""
    spread: float = 0.0
    """Half of the 95 % interval of an estimate, as a share of it: from what the calibration left unexplained."""
    about: dict[str, Any] = {}
    """Target, processor, threads, precision, batch, versions, and how it was measured; JSON values."""
    fixed_parts: dict[str, float] = {}
    """Operation -> its share of `fixed`, in the unit."""

    @property
    def dense(self) -> float:
        """What the network costs without a mask."""
        return self.fixed + sum(layer.dense for layer in self.layers.values())

    @property
    def floor(self) -> float:
        """What is left when every layer keeps next to nothing."""
        return self.fixed + sum(layer.floor for layer in self.layers.values())

    def estimate(self, mask: Mask) -> Estimate:
        """What the network costs under a mask, with a 95 % interval. Rows that keep the same columns are noticed.

        Raises:
            UsageError: if it is no mask.
            CostError: if the mask is of another model.
        """
        require_mask(mask)
        shapes = {name: tensor.numel() for name, tensor in mask.items()}
        for name, size in shapes.items():
            if name not in self.layers or self.layers[name].weights != size:
                question = did_you_mean(name, self.layers).strip()
                more = f"; {question}" if name not in self.layers and question else ""
                raise CostError(f"the costs are not of the mask's model: {name!r} has none, or has another size{more}")
        kinds = {name: (float(kept.float().mean()), self.granularity(name, mask)) for name, kept in mask.items()}
        dense = (1.0, FINEST)
        total = self.fixed + min(
            sum(layer.at(*kinds.get(name, dense)) for name, layer in self.layers.items()),
            sum(layer.at_in_rows(*kinds.get(name, dense)) for name, layer in self.layers.items()),
        )
        return Estimate(total, total * (1 - self.spread), total * (1 + self.spread), self.unit)

    def granularity(self, name: str, mask: Mask) -> str:
        """In which a layer's mask is charged: single weights, where nothing coarser has costs of its own.

        Args:
            name: of the layer's weight.
            mask: of the network.
        """
        layer = self.layers[name]
        if list(layer.curves) == [FINEST]:
            return FINEST
        return of_mask(mask[name])

    def budget(self, asked: float | str) -> float:
        """A budget in the model's unit: a share of the dense cost (0.3, "30%"), or an amount ("5 ms", "2MB", "50M").

        Args:
            asked: the share or the amount.

        Raises:
            UsageError: if it is none, or below the floor: it says what makes the floor.
        """
        amount = parsed(asked, self.unit, self.dense)
        if amount < self.floor:
            raise UsageError(
                f"a budget of {told(amount, self.unit)} is below the floor: {self.floor_in_words()}; ask for more"
            )
        return amount

    def base_seconds(self, base: str) -> float:
        """Return the latency of a budget's base; `CostError` if it was not measured with these costs.

        Args:
            base: one of `bases.BASES`; "engine" is the network of these costs without a mask.
        """
        if base == ENGINE:
            return self.dense
        known = self.about.get("bases", {})
        if base not in known:
            raise CostError(
                f"these costs do not have the latency of {base}, of which the budget is a share: measure them with it"
                f" (ticketry cost --base {base}, or tk.cost.model(..., bases=({base!r},))), give an amount (5ms), or"
                f" a share of the compiled network without pruning (base {ENGINE})"
            )
        return float(known[base])

    def left_for(self, names: Iterable[str], amount: float) -> float:
        """What of an `amount` is left for the layers `names`: not for what is fixed, nor for layers that stay dense."""
        pruned = set(names)
        return amount - self.fixed - sum(layer.at(1.0) for name, layer in self.layers.items() if name not in pruned)

    def floor_in_words(self) -> str:
        """The floor, and what makes it."""
        parts = dict(self.fixed_parts) or {"what is not pruned": self.fixed}
        for name, layer in self.layers.items():
            parts[f"{name.removesuffix('.weight')}, {'empty' if layer.curves else 'in torch'}"] = layer.floor
        largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
        share = f"{100 * self.floor / self.dense:.1f} %" if self.dense else "0 %"
        most = ", ".join(f"{name} {told(cost, self.unit)}" for name, cost in largest if cost > 0)
        in_torch = self.in_torch_in_words()
        lower = what_lowers(name for name, cost in largest if cost > 0) if self.unit == "seconds" else ""
        return (
            f"{told(self.floor, self.unit)} ({share} of dense) are left with empty layers; most of it: {most}"
            f"{in_torch and f'; {in_torch}'}{lower and f'; what lowers it: {lower}'}"
        )

    @property
    def in_torch(self) -> float:
        """What the layers cost that the engine runs in torch, which no mask makes faster."""
        return sum(layer.dense for layer in self.layers.values() if not layer.curves)

    def in_torch_in_words(self) -> str:
        """Which layers those are, the dearest first, and what they cost; empty if there are none."""
        found = {name: layer.dense for name, layer in self.layers.items() if not layer.curves}
        if not found:
            return ""
        names = sorted(found, key=lambda name: -found[name])
        most = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        share = f" ({100 * self.in_torch / self.dense:.0f} % of dense)" if self.dense else ""
        return f"in torch, which no mask makes faster: {most}: {told(self.in_torch, self.unit)}{share}"

    def curves(self, granularity: str = FINEST) -> dict[str, Curve]:
        """Parameter name -> its curve of a `granularity`, as `core.costs.allocation.allocate_cost` takes them."""
        return {
            name: layer.curve(granularity) if granularity in layer.curves else _flat(layer.dense)
            for name, layer in self.layers.items()
        }

    def check_granularity(self, granularity: str) -> None:
        """Raises `UsageError` where a layer that masks make cheaper has no costs in it; empty stands for any."""
        if granularity:
            for layer in self.layers.values():
                if layer.curves:
                    layer.curve(granularity)

    def scaled(self, factor: float, **about: Any) -> CostModel:
        """The same costs times `factor`, with more told in `about`."""
        layers = {
            name: LayerCost(
                layer.weights,
                factor * layer.dense,
                {each: curve.times(factor) for each, curve in layer.curves.items()},
                {each: curve.times(factor) for each, curve in layer.all_rows.items()},
            )
            for name, layer in self.layers.items()
        }
        parts = {name: factor * cost for name, cost in self.fixed_parts.items()}
        told = {**self.about, **about}
        if bases := self.about.get("bases"):
            told["bases"] = {name: factor * seconds for name, seconds in bases.items()} | about.get("bases", {})
        return CostModel(self.unit, layers, factor * self.fixed, self.spread, told, parts)

    # -- a file --------------------------------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that it says: equal models have equal digests."""
        return hashlib.sha256(_canonical(msgspec.to_builtins(self))).hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, by a temporary name and a rename; returns the path. Raises `CostError` if it cannot be."""
        document = {"kind": KIND, "format": 1, "digest": self.digest, "model": msgspec.to_builtins(self)}
        try:
            write_atomically(Path(path), json.dumps(document, indent=1, allow_nan=False).encode())
        except (OSError, ValueError) as error:
            raise CostError(f"the costs cannot be written to {path}: {error}") from None
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> CostModel:
        """The costs in the file `path`. Raises `CostError` if there is none, or it is damaged or of another kind."""
        try:
            document = parse_json(content_of(Path(path), most=_MOST_BYTES))
            if not isinstance(document, dict) or document.get("kind") != KIND or document.get("format") != 1:
                raise CostError(f"{path} is no file of costs of this version: tk.cost.model(...).save(path) writes one")
            found = msgspec.convert(document.get("model"), cls)
        except (OSError, ValueError, RecursionError) as error:
            raise CostError(f"{path} cannot be read as costs: {error}") from None
        if found.digest != document.get("digest"):
            raise CostError(f"{path} is damaged: its contents do not match its digest; make it anew")
        return found

    # -- for people ----------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        about = ", ".join(f"{key} {value}" for key, value in self.about.items() if isinstance(value, str | int | float))
        lines = [
            f"Costs in {self.unit}: {about}" if about else f"Costs in {self.unit}",
            in_columns(
                [("layer", "weights", "granularity", *(f"{100 * density:g} %" for density in _SHOWN))]
                + [row for name, layer in self.layers.items() for row in self._rows(name, layer)]
            ),
            f"not pruned: {told(self.fixed, self.unit)}; dense: {told(self.dense, self.unit)}",
            f"floor: {self.floor_in_words()}",
        ]
        return "\n".join([*lines, f"an estimate is within {100 * self.spread:.1f} % in 95 of 100 cases"])

    def _rows(self, name: str, layer: LayerCost) -> list[tuple[str, ...]]:
        found = []
        for index, each in enumerate(layer.curves or ("torch",)):
            first = (name.removesuffix(".weight"), f"{layer.weights:,}") if not index else ("", "")
            costs = (layer.at(density, each) if layer.curves else layer.dense for density in _SHOWN)
            found.append((*first, each, *(told(cost, self.unit) for cost in costs)))
        return found


_LOWERS = (
    (("attention", "softmax", "matmul", "bmm"), "fewer heads (structure='channels') or shorter sequences"),
    (
        ("norm", "add", "mul", "lu", "sigmoid", "tanh", "swish", "cat"),
        "fewer channels or hidden units (structure='channels')",
    ),
    (("pool", "resize", "interpolate", "unfold"), "smaller inputs"),
    (("embedding", "gather"), "shorter sequences"),
    ((", empty",), "fewer layers"),
)
"""Words in the names of a floor's parts -> what makes these parts cheaper."""


def what_lowers(parts: Iterable[str]) -> str:
    """Return what makes a floor lower, the dearest part first; empty if it is not known.

    Args:
        parts: names of operations and of empty layers, the dearest first.

    Examples:
        >>> from ticketry.core.costs.cost_model import what_lowers
        >>> what_lowers(["attention", "encoder.0, empty"])
        "fewer heads (structure='channels') or shorter sequences, fewer layers"
    """
    found = []
    for part in parts:
        empty = part.endswith(", empty")
        for words, said in _LOWERS:
            if any(word in part for word in words) and (not empty or said == "fewer layers") and said not in found:
                found.append(said)
    return ", ".join(found)


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _flat(cost: float) -> Curve:
    return Curve((0.0, 1.0), (cost, cost))


def spread_of(residuals: Iterable[float]) -> float:
    """Half of a 95 % interval, of relative residuals: the 95 % quantile of their sizes, of a few the largest."""
    sizes = sorted(abs(each) for each in residuals)
    return sizes[min(len(sizes) - 1, int(0.95 * len(sizes)))] if sizes else 0.0


def least_in_words(costs: CostModel, mask: Mask) -> str:
    """What a budget has to be for a mask: its cost, rounded up, and its share of the dense network's."""
    cost = 1.0005 * costs.estimate(mask).value
    return f"{told_above(cost, costs.unit)} ({100 * cost / costs.dense:.3g} % of the dense network's)"
