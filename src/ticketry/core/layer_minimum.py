"""Weights that each layer retains at least, checked against a density before anything is scored or trained.

Scores decide which weights stay, but not how many a minimum takes, so impossible requests are known without scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch

from ticketry.choices import describe_name_difference
from ticketry.core.mask import Mask
from ticketry.core.structure.layout import Layout, best_of_m
from ticketry.core.structure.pattern import Pattern, kept_elements
from ticketry.errors import LayerCollapseError, MaskError


def check_least_of(
    shapes: Mapping[str, tuple[int, ...]],
    density: float,
    least: int,
    *,
    pattern: Pattern | None = None,
    layouts: Mapping[str, Layout] | None = None,
    within: Mask | None = None,
) -> None:
    """Raise `LayerCollapseError` if a density cannot retain `least` weights in each layer, whatever the scores.

    Blocks are counted whole. If they have several sizes, requests that miss by less than a block are left to
    `allocate`, because scores decide between blocks.

    Args:
        shapes: parameter name -> shape, of everything that the density is of.
        density: of all of them together.
        least: weights of each layer; 0 for none.
        pattern, layouts, within: as of `allocate`.
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
        # Whole blocks retain at most half a block more than requested.
        if 2 * (sum(floors.values()) - kept) >= max(int(each.max()) for each in heights.values()):
            raise too_few(density, kept, floors, least, f" in whole blocks of {pattern}")
        return
    if pattern.m:
        available = {name: _retained_by_n_of_m(shapes[name], pattern, known.get(name), within, name) for name in sizes}
        if pattern.is_densest(density):
            return  # every candidate of the pattern is retained
    check_least(available, available, least, kept, density)


def check_within(shapes: Mapping[str, tuple[int, ...]], within: Mask | None) -> None:
    """Raise `MaskError` if a mask of candidates has other tensors."""
    if within is not None and within.shapes != dict(shapes):
        names = describe_name_difference(within, shapes)
        raise MaskError(
            "the mask to go on from is not of the tensors that have scores: "
            + (names or "a tensor has another shape in it")
        )


def candidates(shapes: Mapping[str, tuple[int, ...]], within: Mask | None) -> dict[str, int]:
    """Return the number of candidates in each non-empty layer. Raises what `check_within` does."""
    check_within(shapes, within)
    sizes = {name: prod(shape) for name, shape in shapes.items() if prod(shape)}
    return sizes if within is None else {name: int(within[name].sum()) for name in sizes}


def _in_whole_blocks(least: int, available: int, sizes: torch.Tensor) -> int:
    """Return the fewest weights, at least `least`, in whole blocks: of full height, and of the last rows."""
    least = min(least, available)
    full, last = int(sizes.max()), int(sizes.min())
    last_blocks = range(-(-least // last) + 1) if last < full else range(1)
    return min(available, min(count * last + -(-max(least - count * last, 0) // full) * full for count in last_blocks))


def _retained_by_n_of_m(
    shape: tuple[int, ...], pattern: Pattern, layout: Layout | None, within: Mask | None, name: str
) -> int:
    among = None if within is None else within[name].cpu()
    return int(best_of_m(torch.zeros(shape), pattern.n, pattern.m, layout, among).sum())


def check_least(
    counts: Mapping[str, int], available: Mapping[str, int], least: int, kept: int, density: float
) -> dict[str, int]:
    """Return the weights that each layer retains at least, of those available.

    Raises:
        LayerCollapseError: if these are more than `kept`, or a layer that would be empty has no candidate.
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
    """Return the error for a density that retains fewer weights than the layers need.

    Args:
        density: as requested.
        kept: weights that it retains.
        floors: weights that each layer needs.
        least: requested minimum of each layer.
        how: further description of the floors.
    """
    largest = max(floors, key=lambda name: floors[name])
    each, fewer = ("a weight", "") if least == 1 else (f"{least} weights", ", keep fewer in each (keep_at_least)")
    return LayerCollapseError(
        f"density {density:g} is too low to keep {each} in each of {len(floors)} layers: it is {kept:,} weights, and"
        f" those would be {sum(floors.values()):,}{how}, {floors[largest]:,} of them in {largest}",
        f"choose a higher one{fewer} or spare layers",
    )
