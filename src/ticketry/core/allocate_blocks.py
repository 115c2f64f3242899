"""Scores to a mask of whole blocks at a density. Called by `allocate`."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ticketry.core.layout import Blocks, Layout
from ticketry.core.mask import Mask
from ticketry.core.pattern import Pattern
from ticketry.errors import LayerCollapseError, MaskError

Targets = Callable[[Mapping[str, int]], dict[str, int]]
"""Weights that each layer has left -> weights that it is to keep; of those that one ranking decides on, none."""


@dataclass(frozen=True)
class _Layer:
    """The blocks of one weight that can be kept, the best first."""

    blocks: Blocks
    worth: Tensor
    """float64 [candidates]: mean score of their weights, falling; ties by position."""
    places: Tensor
    """int64 [candidates]: where they are among all blocks."""
    weights: Tensor
    """int64 [candidates + 1]: what the first 0, 1, … of them have together."""

    @property
    def available(self) -> int:
        return int(self.weights[-1])

    def mask(self, count: int) -> Tensor:
        """Keeps the best `count` blocks."""
        kept = torch.zeros(self.blocks.count, dtype=torch.bool)
        kept[self.places[:count]] = True
        return self.blocks.spread(kept.view(self.blocks.shape))


def allocate_blocks(
    scores: Mapping[str, Tensor],
    wanted: int,
    pattern: Pattern,
    layouts: Mapping[str, Layout],
    within: Mask | None,
    *,
    targets: Targets,
    least: int,
) -> Mask:
    """The mask of whole blocks that comes nearest to keeping `wanted` weights, the best blocks by mean score.

    Where one ranking decides, blocks are taken from its top as long as that brings the number of weights nearer. Where
    layers have targets, each takes as many of its best as fit in, and then one more in the order of how much of it
    would fit, as long as that brings the sum over layers nearer.

    Args:
        targets: how the distribution shares the weights out.
        least: weights that each layer keeps at least, rounded up to whole blocks; 0 makes an empty one an error.

    Raises:
        MaskError: if `within` keeps parts of blocks, or fewer weights than wanted.
        LayerCollapseError: if a layer would be left empty, or the least of all layers is more than wanted.
    """
    layers = {name: _layer(name, score, pattern, layouts.get(name), within) for name, score in scores.items()}
    aims = targets({name: layer.available for name, layer in layers.items()})
    counts = _rounded({name: layers[name] for name in aims}, aims)
    ranked = {name: layer for name, layer in layers.items() if name not in aims}
    counts |= _ranked(ranked, wanted - _weights(layers, counts))
    with_weights = {name: layers[name] for name, score in scores.items() if score.numel()}
    counts |= _with_at_least(with_weights, counts, wanted, least)
    return Mask({name: layer.mask(counts[name]) for name, layer in layers.items()}, copy=False)


def all_within_a_block(wanted: int, within: Mask, pattern: Pattern, layouts: Mapping[str, Layout]) -> int:
    """The weights to keep of a mask: all that it has, where less than a block is missing from those that are wanted.

    A mask of whole blocks can have fewer weights than its density asked for. Where a schedule's densities then hardly
    fall, the next one asks for more than it has; the mask that comes nearest is the mask itself. For `wanted` above
    what it has.
    """
    largest = max(
        (
            int(pattern.blocks(shape, layouts.get(name)).sizes.max())
            for name, shape in within.shapes.items()
            if within[name].numel()
        ),
        default=0,
    )
    return within.kept if wanted < within.kept + largest else wanted


def _layer(name: str, score: Tensor, pattern: Pattern, layout: Layout | None, within: Mask | None) -> _Layer:
    blocks = pattern.blocks(tuple(score.shape), layout)
    worth = blocks.mean(score.detach().cpu()).flatten()
    places = (torch.ones_like(worth) if within is None else blocks.whole(within[name], name).flatten()).nonzero()[:, 0]
    worth = worth[places]
    if bool(torch.isnan(worth).any()):
        raise MaskError(f"the scores of {name!r} are not all numbers (NaN), or infinite of both signs in one block")
    worth, order = worth.sort(descending=True, stable=True)
    places = places[order]
    weights = torch.cat([torch.zeros(1, dtype=torch.int64), blocks.sizes.flatten()[places].cumsum(0)])
    return _Layer(blocks, worth, places, weights)


def _weights(layers: Mapping[str, _Layer], counts: Mapping[str, int]) -> int:
    return sum(int(layers[name].weights[count]) for name, count in counts.items())


def _ranked(layers: Mapping[str, _Layer], wanted: int) -> dict[str, int]:
    """Blocks that each layer keeps by one ranking: as many as come nearest to `wanted` weights, of two the fewer."""
    if not layers:
        return {}
    worth = torch.cat([layer.worth for layer in layers.values()])
    sizes = torch.cat([layer.weights.diff() for layer in layers.values()])
    of = torch.arange(len(layers)).repeat_interleave(torch.tensor([len(layer.worth) for layer in layers.values()]))
    order = worth.argsort(descending=True, stable=True)
    weights = torch.cat([torch.zeros(1, dtype=torch.int64), sizes[order].cumsum(0)])
    best = int((weights - wanted).abs().argmin())  # the first of equals
    counts = of[order[:best]].bincount(minlength=len(layers)).tolist()
    return dict(zip(layers, counts, strict=True))


def _rounded(layers: Mapping[str, _Layer], aims: Mapping[str, int]) -> dict[str, int]:
    """Blocks that layers with targets of their own keep."""
    counts = {
        name: int(torch.searchsorted(layer.weights, torch.tensor(aims[name]), right=True)) - 1
        for name, layer in layers.items()
    }
    missing = {name: aims[name] - int(layers[name].weights[count]) for name, count in counts.items()}
    next_ones = {
        name: int(layers[name].weights[counts[name] + 1]) - int(layers[name].weights[counts[name]])
        for name in counts
        if missing[name]
    }
    left = sum(missing.values())
    for name in sorted(next_ones, key=lambda name: -missing[name] / next_ones[name]):
        if 2 * left > next_ones[name]:
            counts[name] += 1
            left -= next_ones[name]
    return counts


def _with_at_least(layers: Mapping[str, _Layer], counts: Mapping[str, int], wanted: int, least: int) -> dict[str, int]:
    """The counts with at least `least` weights in each layer, taken back block by block from the largest layers."""
    empty = [name for name in layers if counts[name] == 0]
    if empty and not least:
        raise LayerCollapseError(
            f"{wanted} weights in whole blocks of pattern {next(iter(layers.values())).blocks.pattern} would leave none"
            f" in {', '.join(empty)} (layer collapse)",
            "choose a higher density, another distribution (layerwise, erk), smaller blocks, spare the layer",
            keep="keep a block in each",
        )
    floors = {
        name: int(torch.searchsorted(layer.weights, torch.tensor(min(least, layer.available))))
        for name, layer in layers.items()
    }
    had = _weights(layers, {name: counts[name] for name in layers})
    if any(not layers[name].available for name in empty) or _weights(layers, floors) > max(had, wanted):
        largest = max(floors, key=lambda name: int(layers[name].weights[floors[name]]))
        raise LayerCollapseError(
            f"{wanted} weights are too few to keep at least {max(least, 1)} in each of {len(layers)} layers, in whole"
            f" blocks of pattern {next(iter(layers.values())).blocks.pattern}: those would be"
            f" {_weights(layers, floors):,}, {int(layers[largest].weights[floors[largest]]):,} of them in {largest}",
            "choose a higher density, keep fewer in each (keep_at_least), smaller blocks, or spare layers",
        )
    raised = {name: max(counts[name], floors[name]) for name in layers}
    if any(raised[name] > counts[name] for name in layers):
        _take_back(layers, raised, floors, _weights(layers, raised) - max(had, wanted))
    return raised


def _take_back(layers: Mapping[str, _Layer], counts: dict[str, int], floors: Mapping[str, int], excess: int) -> None:
    """Lower the counts by about `excess` weights: the worst block of the layer that keeps most, again and again."""
    # Of the largest the first in order gives. A layer whose worst block is more than what is to go is passed over.
    heap = [(-int(layer.weights[counts[name]]), index, name) for index, (name, layer) in enumerate(layers.items())]
    heapq.heapify(heap)
    while heap and excess > 0:
        _, index, name = heapq.heappop(heap)
        weights, count = layers[name].weights, counts[name]
        size = int(weights[count] - weights[count - 1])
        if count > floors[name] and size < 2 * excess:
            counts[name], excess = count - 1, excess - size
            heapq.heappush(heap, (-int(weights[count - 1]), index, name))
