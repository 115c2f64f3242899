"""The blocks of one weight: scores of weights become scores of blocks, decisions on blocks become masks of weights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ticketry.core.layout import Layout
from ticketry.errors import MaskError

if TYPE_CHECKING:
    from ticketry.core.pattern import Pattern


class Blocks:
    """The blocks of a weight under a pattern. Made by `Pattern.blocks`.

    A tensor with one entry a block has the shape [blocks of rows, inputs, taps …] of the weight's own rows and columns
    (whatever its layout), or of whole rows [rows]. If the rows of a weight, or of each group of a convolution, are no
    multiple of those of a block, the last block of each column is smaller: **compare blocks by `mean`**, the worth of
    each of their weights, and count them by `sizes`.
    """

    def __init__(self, pattern: Pattern, shape: tuple[int, ...], layout: Layout) -> None:
        self.pattern, self.weight_shape, self.layout = pattern, tuple(shape), layout
        like = layout.rows(torch.empty(shape, device="meta"))
        self._groups, self._rows = like.shape[:2]
        self._columns = tuple(like.shape[2:])
        self._high = -(-self._rows // pattern.rows)  # blocks of rows in a group
        self._whole = self._rows // pattern.rows  # those of full height
        self.shape: tuple[int, ...] = (self._groups * self._high, *(() if pattern.whole_rows else self._columns))
        """Of a tensor with one entry a block."""

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return prod(self.shape)

    @cached_property
    def sizes(self) -> Tensor:
        """int64, of `shape`: the weights of each block."""
        heights = torch.full((self._groups, self._high), self.pattern.rows)
        if self._high > self._whole:
            heights[:, -1] = self._rows - self._whole * self.pattern.rows
        if self.pattern.whole_rows:
            return (heights * prod(self._columns)).flatten()
        return heights.flatten()[(...,) + (None,) * len(self._columns)].expand(self.shape)

    def views(self, weight: Tensor) -> list[Tensor]:
        """The weight's elements by block: [groups, blocks of rows, rows of a block, inputs, taps …], each a view.

        Those of full height, then those of the last rows, if there are any.
        """
        height, whole = self.pattern.rows, self._whole
        if self._high == whole and not self.layout.inputs_first and weight.dim():  # the usual case, in one step
            return [weight.view(self._groups, whole, height, *self._columns)]
        rows = self.layout.rows(weight)
        full = torch.unflatten(rows[:, : whole * height], 1, (whole, height))
        return [full, rows[:, whole * height :].unsqueeze(1)] if self._high > whole else [full]

    def own_views(self, blocks: Tensor) -> list[Tensor]:
        """A tensor with one entry a block, as views that broadcast against `views`."""
        columns = (1,) * len(self._columns) if self.pattern.whole_rows else self._columns
        parted = blocks.view(self._groups, self._high, 1, *columns)
        return [parted[:, : self._whole], parted[:, self._whole :]] if self._high > self._whole else [parted]

    def pool(self, weights: Tensor) -> Tensor:
        """Sums over blocks: `shape`, from the weight's. Differentiable."""
        over = list(range(2, 3 + len(self._columns))) if self.pattern.whole_rows else [2]
        sums = [view.sum(over) for view in self.views(weights)]
        return (torch.cat(sums, 1) if len(sums) > 1 else sums[0]).flatten(0, 1)

    def mean(self, scores: Tensor) -> Tensor:
        """The mean score of each block's weights, in float64."""
        return self.pool(scores.double()) / self.sizes.to(scores.device)

    def spread(self, blocks: Tensor) -> Tensor:
        """Every weight gets the entry of its block: the weight's shape, from `shape`. Differentiable."""
        parts = [
            own.expand(self._groups, own.shape[1], height, *self._columns).flatten(1, 2)
            for own, height in zip(self.own_views(blocks), self._heights(), strict=True)
        ]
        return self.layout.weight(torch.cat(parts, 1) if len(parts) > 1 else parts[0], self.weight_shape)

    def whole(self, mask: Tensor, name: str) -> Tensor:
        """Boolean, of `shape`: the blocks that a mask keeps.

        Raises:
            MaskError: naming the parameter, if it keeps a part of one.
        """
        kept, sizes = self.pool(mask.cpu() != 0), self.sizes
        if bool(((kept != 0) & (kept != sizes)).any()):
            raise MaskError(
                f"the mask keeps parts of blocks of {name!r}: it is not of pattern {self.pattern}. Go on from a mask"
                " that was made with this pattern"
            )
        return (kept == sizes) & (sizes > 0)

    def _heights(self) -> Iterator[int]:
        yield self.pattern.rows
        if self._high > self._whole:
            yield self._rows - self._whole * self.pattern.rows
