"""Masks of a pattern drawn anew: controls that keep the pattern and none of the choices."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ticketry.core.allocate import allocate, largest
from ticketry.core.layout import Layout, layouts
from ticketry.core.mask import Mask
from ticketry.core.n_of_m import best_of_m
from ticketry.core.pattern import Pattern
from ticketry.core.seeds import generator


def shuffled_blocks(model: nn.Module, mask: Mask, pattern: str | Pattern, seed: int) -> Mask:
    """As many blocks of each size in each layer as `mask` keeps, in random places: a mask of the same layer densities.

    Of N:M, as many weights of each layer, of every M inputs at most N. A pure function of its arguments: every layer
    has a generator seeded by (seed, position of the layer).

    Raises:
        MaskError: if the mask is not of the pattern.
    """
    pattern, known = Pattern.parse(pattern), layouts(model, mask)
    redrawn = _shuffled_n_of_m if pattern.m else _shuffled
    return Mask(
        {
            name: redrawn(kept, name, pattern, known[name], generator(seed, "shuffled", index)).to(kept.device)
            for index, (name, kept) in enumerate(mask.items())
        }
    )


def _shuffled(kept: Tensor, name: str, pattern: Pattern, layout: Layout, draw: torch.Generator) -> Tensor:
    blocks = pattern.blocks(tuple(kept.shape), layout)
    flags, sizes = blocks.whole(kept, name).flatten(), blocks.sizes.flatten()
    for size in sorted(set(sizes.tolist())):  # the last rows of a layer have smaller ones
        places = (sizes == size).nonzero()[:, 0]
        flags[places] = flags[places[torch.randperm(len(places), generator=draw)]]
    return blocks.spread(flags.view(blocks.shape))


def _shuffled_n_of_m(kept: Tensor, name: str, pattern: Pattern, layout: Layout, draw: torch.Generator) -> Tensor:
    keys = torch.rand(kept.shape, dtype=torch.float64, generator=draw)
    possible = best_of_m(keys, pattern.n, pattern.m, layout)
    return largest(keys.masked_fill(~possible, -1.0).flatten(), int(kept.sum())).view(kept.shape)


def random_blocks(model: nn.Module, like: Mask, pattern: str | Pattern, seed: int) -> Mask:
    """Random blocks of all layers together, as near to the density of `like` as they come; no layer is left empty."""
    pattern, known = Pattern.parse(pattern), layouts(model, like)
    scores = {}
    for index, (name, shape) in enumerate(like.shapes.items()):
        draw = generator(seed, "random_prune", index)
        blocks = None if pattern.m else pattern.blocks(shape, known[name])
        keys = torch.rand(blocks.shape if blocks else shape, dtype=torch.float64, generator=draw)
        scores[name] = blocks.spread(keys) if blocks else keys
    density = min(like.density, pattern.densest)  # of N:M, a little above it where inputs are no multiple of M
    return allocate(scores, density, pattern=pattern, layouts=known, collapse="keep")
