"""What layers keep at least, held against a density or a budget: before anything is scored, measured or trained.

Scores decide which weights stay, and never how many a floor takes; so what cannot be is known without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING

import torch

from ticketry.choices import describe_name_difference
from ticketry.core.costs.curve import Curve
from ticketry.core.costs.words import Unit, told, told_above
from ticketry.core.layout import Layout, best_of_m
from ticketry.core.mask import Mask
from ticketry.core.pattern import Pattern, kept_elements
from ticketry.errors import LayerCollapseError, MaskError, UsageError

if TYPE_CHECKING:
    from ticketry.core.costs.cost_model import CostModel

_ROUNDED = 1e-4
"""Share of a budget that is left to rounding: allocation moves the edges of curves to whole weights."""


def check_least_of(
    shapes: Mapping[str, tuple[int, ...]],
    density: float,
    least: int,
    *,
    pattern: Pattern | None = None,
    layouts: Mapping[str, Layout] | None = None,
    within: Mask | None = None,
) -> None:
    """Make sure that a density can pay for what each layer is to keep, as `allocate` would with any scores.

    Of blocks it goes by whole ones; where they are of several sizes, some requests that miss by less than a block are
    left for `allocate` to tell, as scores decide between them.

    Args:
        shapes: parameter name -> shape, of all that the density is of.
        least: weights of each layer; 0 for none.
        pattern, layouts, within: as of `allocate`.

    Raises:
        LayerCollapseError: with the numbers, and the layer that makes most of them.
    """
    sizes = {name: prod(shape) for name, shape in shapes.items() if prod(shape)}
    if not least or not sizes:
        return
    pattern = pattern or Pattern.parse("unstructured")
    available = candidates(shapes, within)
    kept, known = kept_elements(density, sum(sizes.values())), layouts or {}
    if pattern.blocks_of_rows:
        heights = {name: pattern.blocks(shapes[name], known.get(name)).sizes for name in sizes}
        floors = {name: _in_whole_blocks(least, available[name], heights[name]) for name in sizes}
        # The nearest number of weights in whole blocks is less than half a block above the one that is asked for.
        if 2 * (sum(floors.values()) - kept) >= max(int(each.max()) for each in heights.values()):
            raise too_few(density, kept, floors, least, f" in whole blocks of {pattern}")
        return
    if pattern.m:
        available = {name: _best(shapes[name], pattern, known.get(name), within, name) for name in sizes}
        if pattern.is_densest(density):
            return  # all that the pattern has are kept
    check_least(available, available, least, kept, density)


def check_within(shapes: Mapping[str, tuple[int, ...]], within: Mask | None) -> None:
    """Raises `MaskError` if a mask of candidates is of other tensors."""
    if within is not None and within.shapes != dict(shapes):
        names = describe_name_difference(within, shapes)
        raise MaskError(
            "the mask to go on from is not of the tensors that have scores: "
            + (names or "a tensor has another shape in it")
        )


def candidates(shapes: Mapping[str, tuple[int, ...]], within: Mask | None) -> dict[str, int]:
    """How many weights each layer has to choose among, of layers that have any; raises what `check_within` does."""
    check_within(shapes, within)
    sizes = {name: prod(shape) for name, shape in shapes.items() if prod(shape)}
    return sizes if within is None else {name: int(within[name].sum()) for name in sizes}


def _in_whole_blocks(least: int, available: int, sizes: torch.Tensor) -> int:
    """The fewest weights, `least` or more, that whole blocks have together: of full height, and of the last rows."""
    least = min(least, available)
    full, last = int(sizes.max()), int(sizes.min())
    of_last = range(-(-least // last) + 1) if last < full else range(1)
    return min(available, min(count * last + -(-max(least - count * last, 0) // full) * full for count in of_last))


def _best(shape: tuple[int, ...], pattern: Pattern, layout: Layout | None, within: Mask | None, name: str) -> int:
    """How many weights of a layer N:M leaves."""
    among = None if within is None else within[name].cpu()
    return int(best_of_m(torch.zeros(shape), pattern.n, pattern.m, layout, among).sum())


def check_least(
    counts: Mapping[str, int], available: Mapping[str, int], least: int, kept: int, density: float
) -> dict[str, int]:
    """What each layer keeps at least, of what is available.

    Raises:
        LayerCollapseError: where that is more than are `kept` of all together, or a layer that is left empty has none.
    """
    floors = {name: min(least, available[name]) for name in counts}
    if none := [name for name, count in counts.items() if not count and not available[name]]:
        raise LayerCollapseError(
            f"density {density:g} is too low to keep a weight in each of {len(counts)} layers: {', '.join(none)} has"
            " none left (layer collapse)",
            "spare layers",
        )
    if sum(floors.values()) > kept:
        raise too_few(density, kept, floors, least)
    return floors


def too_few(density: float, kept: int, floors: Mapping[str, int], least: int, how: str = "") -> LayerCollapseError:
    """The error where a density keeps fewer weights than the layers are to keep at least.

    Args:
        kept: weights that the density is.
        floors: weights that each layer is to keep.
        how: more of what these are.
    """
    largest = max(floors, key=lambda name: floors[name])
    each, fewer = ("a weight", "") if least == 1 else (f"{least} weights", ", keep fewer in each (keep_at_least)")
    return LayerCollapseError(
        f"density {density:g} is too low to keep {each} in each of {len(floors)} layers: it is {kept:,} weights, and"
        f" those would be {sum(floors.values()):,}{how}, {floors[largest]:,} of them in {largest}",
        f"choose a higher one{fewer} or spare layers",
    )


def check_floor(
    sizes: Mapping[str, int],
    prices: Mapping[str, int],
    share: float,
    *,
    least: int = 0,
    what: str,
    available: Mapping[str, int] | None = None,
) -> int:
    """What a share of the cost of all weights is, in whole units; `LayerCollapseError` if it is below the floor.

    Args:
        sizes: weights of each layer.
        least: weights that every layer keeps; at least one in any case.
        what: is counted, for the error.
        available: weights of each layer that are candidates; None for all.
    """
    least, total = max(least, 1), total_of(sizes, prices)
    budget = in_units(share, total)
    floors = {name: prices[name] * min(least, size) for name, size in (available or sizes).items()}
    floor = sum(floors.values())
    if floor > budget:
        dearest = max(floors, key=lambda name: floors[name])
        weights = "one weight" if least == 1 else f"{least} weights"
        raise LayerCollapseError(
            f"{share:g} of the {what} are {budget:,}, and the least possible are {floor:,} (a share of"
            f" {_rounded_up(floor, total):g}): {weights} in each of {len(floors)} layers, of which {dearest} takes"
            f" {floors[dearest]:,}: ask for that or more, or spare layers"
        )
    return budget


def check_floor_of_costs(costs: CostModel, available: Mapping[str, int], amount: float, least: int) -> None:
    """The same by costs of layers: make sure that an amount pays for `least` weights in each of the layers `available`.

    Layers cost what the convex hulls of their curves say, by which weights are allocated.

    Args:
        available: weights of each layer that are candidates.
        amount: of the whole network, in the unit of the costs.
        least: weights that every layer keeps; 0 for none.

    Raises:
        UsageError: for a layer without costs.
        LayerCollapseError: with the least amount that does, and the layer that makes most of it.
    """
    if not least:
        return
    curves = costs.curves()
    check_priced(available, curves)
    floors = {
        name: curves[name].convex().at(min(least, count) / costs.layers[name].weights)
        for name, count in available.items()
    }
    floor = amount - costs.left_for(available, amount) + sum(floors.values())
    if floor > amount * (1 + _ROUNDED):
        dearest = max(floors, key=lambda name: floors[name])
        weights = "one weight" if least == 1 else f"{least} weights"
        raise LayerCollapseError(
            f"a budget of {told(amount, costs.unit)} is below the {told_above(floor, costs.unit)}"
            f" ({floor / costs.dense:.4g} of dense) that the network costs with {weights} in each of {len(floors)}"
            f" layers, of which {dearest} takes {told(floors[dearest], costs.unit)}",
            "ask for more, keep fewer in each (keep_at_least) or spare layers",
        )


def check_priced(names: Iterable[str], curves: Mapping[str, Curve]) -> None:
    """Raises `UsageError` for layers that have no curve of costs."""
    if missing := [name for name in names if name not in curves]:
        raise UsageError(f"there is no cost of {', '.join(missing)}: spare them in the scope")


def check_all_kept(sizes: Mapping[str, int], share: float, least: int, unit: Unit) -> None:
    """Make sure that something may go where costs are not known yet: a network that keeps all costs all that it did.

    Args:
        sizes: weights of each layer that are candidates.
        share: of the dense network's cost that is asked for.
        least: weights that every layer keeps.
        unit: of the costs, for the error.

    Raises:
        LayerCollapseError: where all weights are to be kept, for less than all that they cost.
    """
    largest = max(sizes, key=lambda name: sizes[name])
    if share < 1 and least >= sizes[largest]:
        raise LayerCollapseError(
            f"{share:g} of the dense network's {unit} cannot be met with {least} weights kept in each layer: the"
            f" largest, {largest}, has {sizes[largest]:,}, so that all weights of all {len(sizes)} layers would stay",
            "keep fewer in each (keep_at_least)",
        )


def total_of(sizes: Mapping[str, int], prices: Mapping[str, int]) -> int:
    """What all weights cost together."""
    return sum(prices[name] * size for name, size in sizes.items())


def in_units(share: float, total: int) -> int:
    """A share of a whole, in decimal digits, as a density is."""
    return int(Fraction(str(share)) * total)


def _rounded_up(part: int, total: int) -> float:
    """A share in four digits, not below the exact one."""
    scale = 10**4
    while 1000 * total > part * scale and scale < 10**16:
        scale *= 10
    return float(Fraction(-(-part * scale // total), scale))
