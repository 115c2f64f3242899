"""Small pictures of masks, for the report: of the first layer, and of layers before and after they got a structure."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

from ticketry.core.mask import Mask
from ticketry.core.structure.group_wise.matrices import row_groups

_MOST_BITS = 200_000
"""A first layer with more weights than this is not drawn: the record would grow by more than 25 kB a ticket."""


def first_layer(mask: Mask, shape: tuple[int, ...] | None) -> dict[str, Any] | None:
    """The first tensor of a mask as JSON values, or None where there is no picture of it.

    Args:
        mask: in the order of the model.
        shape: of an input, (channels, height, width), or None if it is not an image.

    Returns:
        For a convolution [out, in, height, width] ``filters``: its bits, packed, base64. For a linear layer over all
        pixels of an image ``inputs``: for each pixel the share of its weights that is kept, times 255, base64.
    """
    name = next(iter(mask))
    bits = mask[name].numpy()
    if bits.ndim == 4 and bits.size <= _MOST_BITS:
        return _picture(name, "filters", bits.shape, np.packbits(bits))
    if bits.ndim == 2 and shape is not None and len(shape) == 3 and bits.shape[1] == math.prod(shape):
        return _picture(name, "inputs", shape, np.rint(255 * bits.mean(axis=0)).astype(np.uint8))
    return None


_PICTURES = 2
_ROWS, _COLUMNS = 128, 256
"""Of a picture before and after, at most: its bits take 4 kB."""


def structure_pictures(before: Mask, after: Mask) -> list[dict[str, Any]]:
    """Layers before and after their mask got a structure, as JSON values.

    Rows are sorted by the group that they are in afterwards, those with the most columns first. The layers are the two
    largest with up to 128 rows, or the smallest if there are none; of more rows every second, third … is in the
    picture, of more columns than 256 the first.

    Args:
        before: without structure.
        after: with it; of the same tensors at least.

    Returns:
        For each layer its ``name``, ``rows`` and ``columns`` in all, ``every`` (row that is in the picture), ``shape``
        [height, width] of the picture, ``groups`` (sizes in picture rows, from the top; empty rows are the last one's),
        and the bits of both, packed, base64: ``before``, ``after``.
    """
    banks = sorted((name for name in before if before[name].dim() > 1), key=lambda name: before[name].numel())
    small = [name for name in banks if len(before[name]) <= _ROWS]
    chosen = small[-_PICTURES:] or banks[:1]
    return [_structure_picture(name, before, after) for name in before if name in chosen]


def _structure_picture(name: str, before: Mask, after: Mask) -> dict[str, Any]:
    groups = sorted(row_groups(after[name]), key=lambda group: -group.width)
    order = np.concatenate([group.rows for group in groups])
    every = -(-len(order) // _ROWS)
    number = np.repeat(np.arange(len(groups)), [len(group.rows) for group in groups])[::every]
    bits = {
        when: mask[name].cpu().flatten(1).numpy()[order[::every], :_COLUMNS]
        for when, mask in (("before", before), ("after", after))
    }
    rows, columns = after[name].flatten(1).shape
    return {
        "name": name,
        "rows": rows,
        "columns": columns,
        "every": every,
        "shape": list(bits["after"].shape),
        "groups": np.unique(number, return_counts=True)[1].tolist(),
        **{when: base64.b64encode(np.packbits(one).tobytes()).decode("ascii") for when, one in bits.items()},
    }


def _picture(name: str, kind: str, shape: tuple[int, ...], data: np.typing.NDArray[np.uint8]) -> dict[str, Any]:
    return {"name": name, "kind": kind, "shape": list(shape), "data": base64.b64encode(data.tobytes()).decode("ascii")}
