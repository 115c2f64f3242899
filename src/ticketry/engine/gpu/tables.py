"""A layer's weight as the group kernel reads it: tiles of rows that share their kept columns, dense in those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ticketry.core.structure.groups import Indices, row_groups
from ticketry.errors import EngineError

Table: TypeAlias = "np.ndarray[Any, np.dtype[np.int32]]"

UNIT = 64
"""Columns of a tile are padded to a multiple of this, and offsets counted in it: any step of the kernel fits."""

MOST_TAPS = 1 << 15
"""A tap's distance, dilation and padding included, is a signed 16-bit number."""


@dataclass(frozen=True)
class Tables:
    """What one launch of the kernel reads. Every index is made here, from a weight: none comes from a file."""

    weight: Tensor
    """[sum over tiles of tile rows x padded columns], in the layer's number format."""
    tiles: Tensor
    """int32 [tiles, 3]: first column / 64, columns, first weight / 64. Longest tiles first."""
    rows: Tensor
    """int32 [tiles, tile]: the output channel of each row, -1 beyond the group's."""
    channels: Tensor
    """int32 [columns]: the input channel, -1 in the padding."""
    taps: Tensor
    """int32 [columns]: (rows down) << 16 | (columns right) & 0xffff, the layer's padding subtracted."""
    tile: int
    """Rows of a tile."""

    @property
    def bytes(self) -> int:
        """Bytes of all tables."""
        return sum(held.nbytes for one in fields(self) if isinstance(held := getattr(self, one.name), Tensor))

    def to(self, device: torch.device | str) -> Tables:
        """The tables on a device."""
        names = [one.name for one in fields(self) if isinstance(getattr(self, one.name), Tensor)]
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True, eq=False)
class Group:
    """Rows that keep the same columns, counted over all input channels."""

    rows: Indices
    columns: Indices


def layer_groups(weight: Tensor, groups: int = 1) -> list[Group]:
    """Rows with equal support of a weight [O, C / groups, ...].

    Rows of different groups of a convolution read different channels and are never together.
    """
    rows, width = len(weight) // groups, weight[0].numel()
    return [
        Group(found.rows + number * rows, found.columns + number * width)
        for number, part in enumerate(torch.split(weight, rows))
        for found in row_groups(part != 0)
    ]


def pack(
    weight: Tensor,
    *,
    tile: int,
    dtype: torch.dtype,
    groups: int = 1,
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tables:
    """The tables of a convolution's weight [O, C / groups, kh, kw] or a linear layer's [O, I], zeros being removed.

    Raises:
        EngineError: for a kernel, dilation or padding beyond 32,767 pixels.
    """
    flat = weight.detach().cpu().reshape(len(weight), -1)
    kernel = tuple(weight.shape[2:]) or (1, 1)
    reach = [(size - 1) * step + pad for size, step, pad in zip(kernel, dilation, padding, strict=True)]
    if max(reach) >= MOST_TAPS:
        raise EngineError(f"a kernel that reaches {max(reach)} pixels is too wide for the GPU's tables")
    found = sorted(layer_groups(weight, groups), key=lambda group: -len(group.columns))
    weights, tiles, rows, columns = [], [], [], []
    first = start = 0
    for group in found:
        count, padded = len(group.columns), -(-len(group.columns) // UNIT) * UNIT
        columns.append(np.pad(group.columns, (0, padded - count), constant_values=-1))
        local = torch.from_numpy(group.columns % max(1, flat.shape[1]))
        for begin in range(0, len(group.rows), tile):
            members = group.rows[begin : begin + tile]
            block = torch.zeros(tile, padded, dtype=flat.dtype)
            block[: len(members), :count] = flat[torch.from_numpy(members)][:, local]
            weights.append(block.flatten())
            tiles.append((first // UNIT, count, start // UNIT))
            rows.append(np.pad(members, (0, tile - len(members)), constant_values=-1))
            start += tile * padded
        first += padded
    flat_columns = np.concatenate(columns)
    channels, taps = _located(flat_columns, kernel, padding, dilation)
    if start >= UNIT << 31 or first >= 1 << 31:
        raise EngineError(f"a layer with {start} kept weights is too large for the GPU's tables")
    return Tables(
        # Never empty: a kernel's pointer has to point to something, though a layer of zeros reads nothing of it.
        torch.cat([*weights, torch.zeros(UNIT)]).to(dtype),
        torch.tensor(tiles, dtype=torch.int32).reshape(-1, 3),
        torch.from_numpy(np.stack(rows).astype(np.int32)),
        torch.from_numpy(_never_empty(channels)),
        torch.from_numpy(_never_empty(taps)),
        tile,
    )


def _located(
    columns: Indices, kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[Table, Table]:
    """Channel and tap of each column, flattened as (channel, kh, kw)."""
    area = kernel[0] * kernel[1]
    channels = np.where(columns < 0, -1, columns // area)
    place = np.where(columns < 0, 0, columns % area)
    down = place // kernel[1] * dilation[0] - padding[0]
    right = place % kernel[1] * dilation[1] - padding[1]
    return channels.astype(np.int32), ((down << 16) | (right & 0xFFFF)).astype(np.int32)


def _never_empty(table: Table) -> Table:
    return table if len(table) else np.full(UNIT, -1, dtype=np.int32)
