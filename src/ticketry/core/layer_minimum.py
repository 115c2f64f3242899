"""Check minimum numbers of weights per layer against a density, before anything is scored or trained.

Scores determine which weights a minimum retains, but not how many. So impossible requests are detected without scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch

from ticketry.choices import describe_name_difference
from ticketry.core.mask import Mask
from ticketry.core.structure.layout import Layout, mark_best_n_of_m
from ticketry.core.structure.pattern import Pattern, count_retained
from ticketry.errors import LayerCollapseError, MaskError


def check_layer_minimum(
    shapes: Mapping[str, tuple[int, ...]],
    density: float,
    least: int,
    *,
    pattern: Pattern | None = None,
    layouts: Mapping[str, Layout] | None = None,
    within: Mask | None = None,
) -> None:
    """Raise `LayerCollapseError` if a density cannot retain `least` weights in each layer, whatever the scores.

    For patterns of blocks, whole blocks are counted. If blocks differ in size, a request that exceeds the density by
    less than a block passes here, and `allocate`, which knows the scores, decides.

    Args:
        shapes: parameter name -> shape, for all tensors that are pruned.
        density: density of all these tensors together.
        least: smallest number of weights of each layer; 0 for no minimum.
        pattern, layouts, within: see `allocate`.
    """
    sizes = {name: prod(shape) for name, shape in shapes.items() if prod(shape)}
    if not least or not sizes:
        return
    pattern = pattern or Pattern.parse("unstructured")
    available = count_candidates(shapes, within)
    kept, known = count_retained(density, sum(sizes.values())), layouts or {}
    if pattern.blocks_of_rows:
        heights = {name: pattern.blocks(shapes[name], known.get(name)).sizes for name in sizes}
        floors = {name: _round_up_to_blocks(least, available[name], heights[name]) for name in sizes}
        # Whole blocks retain at most half a block more than requested.
        if 2 * (sum(floors.values()) - kept) >= max(int(each.max()) for each in heights.values()):
            raise too_few_weights_error(density, kept, floors, least, f" in whole blocks of {pattern}")
        return
    if pattern.m:
        available = {
            name: _count_n_of_m_weights(shapes[name], pattern, known.get(name), within, name) for name in sizes
        }
        if pattern.is_densest(density):
            return  # every candidate of the pattern is retained
    compute_layer_minimums(available, available, least, kept, density)


def check_mask_covers_tensors(shapes: Mapping[str, tuple[int, ...]], within: Mask | None) -> None:
    """Raise `MaskError` if the names and shapes of the tensors in `within` are not exactly those in `shapes`."""
    if within is not None and within.shapes != dict(shapes):
        names = describe_name_difference(within, shapes)
        raise MaskError(
            "the mask to go on from is not of the tensors that have scores: "
            + (names or "a tensor has another shape in it")
        )


def count_candidates(shapes: Mapping[str, tuple[int, ...]], within: Mask | None) -> dict[str, int]:
    """Return, for each layer that is not empty, the number of weights that can be retained.

    These are all weights of the layer, or the weights that the mask `within` retains.

    Raises:
        MaskError: see `check_mask_covers_tensors`.
    """
    check_mask_covers_tensors(shapes, within)
    sizes = {name: prod(shape) for name, shape in shapes.items() if prod(shape)}
    return sizes if within is None else {name: int(within[name].sum()) for name in sizes}


def _round_up_to_blocks(least: int, available: int, sizes: torch.Tensor) -> int:
    """Return the smallest number of weights that whole blocks of these `sizes` can have, at least `least`.

    The result is at most `available`, the number of candidates.
    """
    least = min(least, available)
    full, last = int(sizes.max()), int(sizes.min())
    last_blocks = range(-(-least // last) + 1) if last < full else range(1)
    return min(available, min(count * last + -(-max(least - count * last, 0) // full) * full for count in last_blocks))


def _count_n_of_m_weights(
    shape: tuple[int, ...], pattern: Pattern, layout: Layout | None, within: Mask | None, name: str
) -> int:
    among = None if within is None else within[name].cpu()
    return int(mark_best_n_of_m(torch.zeros(shape), pattern.n, pattern.m, layout, among).sum())


def compute_layer_minimums(
    counts: Mapping[str, int], available: Mapping[str, int], least: int, kept: int, density: float
) -> dict[str, int]:
    """Return the smallest number of weights that each layer retains: `least`, or all its candidates if it has fewer.

    Raises:
        LayerCollapseError: if the minimums add up to more than `kept`, or if a layer without weights has no candidates.
    """
    floors = {name: min(least, available[name]) for name in counts}
    if none := [name for name, count in counts.items() if not count and not available[name]]:
        raise LayerCollapseError(
            f"density {density:g} is too low to keep a weight in each of {len(counts)} layers: {', '.join(none)} has"
            " none left (layer collapse)",
            "spare layers",
        )
    if sum(floors.values()) > kept:
        raise too_few_weights_error(density, kept, floors, least)
    return floors


def too_few_weights_error(
    density: float, kept: int, floors: Mapping[str, int], least: int, how: str = ""
) -> LayerCollapseError:
    """Return the error for a density that retains fewer weights than the layers need.

    Args:
        density: the requested density.
        kept: number of weights that this density retains.
        floors: number of weights that each layer needs.
        least: requested smallest number of weights of each layer.
        how: how the weights are counted, such as " in whole blocks of 4x1".
    """
    largest = max(floors, key=lambda name: floors[name])
    each, fewer = ("a weight", "") if least == 1 else (f"{least} weights", ", keep fewer in each (keep_at_least)")
    return LayerCollapseError(
        f"density {density:g} is too low to keep {each} in each of {len(floors)} layers: it is {kept:,} weights, and"
        f" those would be {sum(floors.values()):,}{how}, {floors[largest]:,} of them in {largest}",
        f"choose a higher one{fewer} or spare layers",
    )
