"""Packs a layer's weight for the group kernel as dense tiles of rows that share their retained columns.

    group:  32 rows, retained columns 3 7 20 ...      tile 0:  rows 0-15   [16, columns padded to 64]
                                                      tile 1:  rows 16-31  [16, columns padded to 64]

`GroupTables` lists the arrays. All tiles of a group share one list of the inputs that their columns read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ticketry_engine.errors import EngineError
from ticketry_engine.support.row_groups import Indices, row_groups_by_convolution_group

Table: TypeAlias = "np.ndarray[Any, np.dtype[np.int32]]"

UNIT = 64
"""The columns of a tile are padded to a multiple of this number, which every step size of the kernel divides."""

FARTHEST = 127
"""Maximum distance of a tap from its output's first pixel, with dilation and padding; it is stored as a signed byte."""

MOST_CHANNELS = 1 << 15
"""Number of input channels that a layer with taps must stay below: channel and tap share an int32."""


@dataclass(frozen=True)
class GroupTables:
    """The packed weight of a layer: arrays that the sparse group kernel reads."""

    weight: Tensor
    """The tiles, one after the other, each [rows of a tile, padded columns], in the layer's number format."""
    tiles: Tensor
    """int32 [tiles, 3]: first column / 64, number of columns, first weight / 64; tiles with more columns come first."""
    rows: Tensor
    """int32 [tiles, tile]: the output channel of each row of a tile; -1 for rows of padding."""
    places: Tensor
    """int32 [columns + 64]: what each column reads; negative for columns of padding.

    Without taps, a column reads an input channel. With taps, the number is channel << 16 | rows down << 8 | columns
    right. The last two are signed bytes, from which the layer's padding is already subtracted.
    """
    tile: int
    """Number of rows of a tile."""

    @property
    def bytes(self) -> int:
        """Total number of bytes of all tables."""
        return sum(held.nbytes for one in fields(self) if isinstance(held := getattr(self, one.name), Tensor))

    def to(self, device: torch.device | str) -> GroupTables:
        """Return a copy of the tables on a device."""
        names = [one.name for one in fields(self) if isinstance(getattr(self, one.name), Tensor)]
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def pack_group_tables(
    weight: Tensor,
    *,
    tile: int,
    dtype: torch.dtype,
    groups: int = 1,
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> GroupTables:
    """Pack the nonzero columns of a weight: [O, C / groups, kh, kw] of a convolution or [O, I] of a linear layer.

    Raises:
        EngineError: if `why_no_tables` gives a reason, or the weight is too large.
    """
    flat = weight.detach().cpu().reshape(len(weight), -1)
    kernel = tuple(weight.shape[2:]) or (1, 1)
    if (reason := why_no_tables(tuple(weight.shape), groups=groups, padding=padding, dilation=dilation)) is not None:
        raise EngineError(f"the GPU's tables cannot hold this layer: {reason}")
    found = sorted(row_groups_by_convolution_group(weight != 0, groups), key=lambda group: -group.width)
    weights, tiles, rows, columns = [], [], [], []
    first = start = 0
    for group in found:
        count, padded = group.width, -(-group.width // UNIT) * UNIT
        before = int(group.rows[0]) // (len(flat) // groups) * flat.shape[1]  # columns of earlier convolution groups
        columns.append(np.pad(group.columns + before, (0, padded - count), constant_values=-1))
        local = torch.from_numpy(group.columns)
        for begin in range(0, len(group.rows), tile):
            members = group.rows[begin : begin + tile]
            block = torch.zeros(tile, padded, dtype=flat.dtype)
            block[: len(members), :count] = flat[torch.from_numpy(members)][:, local]
            weights.append(block.flatten())
            tiles.append((first // UNIT, count, start // UNIT))
            rows.append(np.pad(members, (0, tile - len(members)), constant_values=-1))
            start += tile * padded
        first += padded
    columns.append(np.full(UNIT, -1))  # the kernel reads a step ahead
    places = _input_indices_of_columns(np.concatenate(columns), kernel, padding, dilation)
    if start >= UNIT << 31 or first >= 1 << 31:
        raise EngineError(f"a layer with {start} kept weights is too large for the GPU's tables")
    return GroupTables(
        # Never empty, so that the pointer is valid even for a layer of zeros.
        torch.cat([*weights, torch.zeros(UNIT)]).to(dtype),
        torch.tensor(tiles, dtype=torch.int32).reshape(-1, 3),
        torch.from_numpy(np.stack(rows).astype(np.int32)),
        torch.from_numpy(places),
        tile,
    )


def has_taps(kernel: Sequence[int], padding: Sequence[int]) -> bool:
    """Return whether `GroupTables.places` contains kernel positions; a 1 x 1 kernel without padding needs none."""
    return (*kernel, *padding) != (1, 1, 0, 0)


def why_no_tables(shape: Sequence[int], *, groups: int, padding: Sequence[int], dilation: Sequence[int]) -> str | None:
    """Return why a weight of this shape cannot be packed; None if the weight can be packed."""
    kernel = tuple(shape[2:]) or (1, 1)
    if not has_taps(kernel, padding):
        return None
    reach = max(max((size - 1) * step, pad) for size, step, pad in zip(kernel, dilation, padding, strict=True))
    if reach > FARTHEST:
        return f"its kernel reaches {reach} pixels, more than {FARTHEST}"
    if shape[1] * groups >= MOST_CHANNELS:
        return f"it has {shape[1] * groups} input channels, and {MOST_CHANNELS} are too many"
    return None


def _input_indices_of_columns(
    columns: Indices, kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Table:
    """Return, for each weight column, which input element it multiplies, as stored in `GroupTables.places`.

    `columns` are indices into [C, kh, kw], -1 for padding, which stays -1.
    """
    area = kernel[0] * kernel[1]
    channel, tap = columns // area, columns % area
    if not has_taps(kernel, padding):
        return np.where(columns < 0, -1, channel).astype(np.int32)
    down = tap // kernel[1] * dilation[0] - padding[0]
    right = tap % kernel[1] * dilation[1] - padding[1]
    place = channel << 16 | (down & 0xFF) << 8 | right & 0xFF
    return np.where(columns < 0, -1, place).astype(np.int32)


# -- The memory layouts of activations between sparse layers, as strides of ordinary tensors ---------------------------

#     inner    [N, C, H, W] stored as [C, H, W, P]; [tokens, C] stored as [C, P]        batch innermost
#     outer    [N, C, H, W] stored as channels_last; [tokens, C] contiguous             as torch's layers prefer
#
# P is N, or the number of tokens, rounded up to 8, so that every run of images starts at a multiple of 16 bytes in a
# 16-bit type. The content of the padding is arbitrary.


EIGHT = 8


def round_up(count: int) -> int:
    """Return `count` rounded up to a multiple of 8: eight 16-bit numbers fill a vector of 16 bytes."""
    return -(-count // EIGHT) * EIGHT


def batch_last_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a tensor [N, C, H, W] or [tokens, C] that is stored with the first axis innermost."""
    run = round_up(shape[0])
    if len(shape) == 2:
        return 1, run
    _, _, height, width = shape
    return 1, height * width * run, width * run, run


def empty_batch_last(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return an uninitialised tensor, stored with the batch as innermost axis, with dtype and device of `like`."""
    shape = tuple(shape)
    return like.new_empty(prod(shape[1:]) * round_up(shape[0])).as_strided(shape, batch_last_strides(shape))


def empty_batch_first(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return an uninitialised tensor, channels_last or contiguous, with the dtype and device of `like`."""
    if len(shape) == 4:
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    return like.new_empty(shape)


def is_batch_last(x: Tensor) -> bool:
    """Return whether x is stored with the batch as innermost axis, and its storage includes padding of the batch."""
    if x.dim() not in (2, 4) or x.storage_offset() % EIGHT:
        return False
    steps = zip(x.shape, x.stride(), batch_last_strides(x.shape), strict=True)
    if not all(size < 2 or step == wanted for size, step, wanted in steps):
        return False
    end = x.storage_offset() + prod(x.shape[1:]) * round_up(x.shape[0])
    return end * x.element_size() <= x.untyped_storage().nbytes()
