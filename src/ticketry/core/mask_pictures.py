"""Small pictures of masks for reports: the first layer, and layers before and after a mask is given structure."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

from ticketry.core.mask import Mask
from ticketry.core.structure.layout import row_groups

_LARGEST_DRAWN_LAYER = 200_000
"""Largest number of weights of a first layer that is drawn; the bits of such a layer add 25 kB to a record."""


def draw_first_layer(mask: Mask, shape: tuple[int, ...] | None) -> dict[str, Any] | None:
    """Return a picture of a mask's first tensor as JSON values; None if the tensor cannot be drawn.

    Args:
        shape: input shape (channels, height, width), or None if inputs are not images.

    Returns:
        A dictionary with ``name``, ``kind``, ``shape`` and ``data`` (base64). The kind is ``filters`` for a convolution
        [outputs, inputs, height, width], whose data are packed bits. The kind is ``inputs`` for a linear layer over all
        pixels of an image, whose data are bytes: the retained fraction of each pixel's weights, times 255.
    """
    name = next(iter(mask))
    bits = mask[name].numpy()
    if bits.ndim == 4 and bits.size <= _LARGEST_DRAWN_LAYER:
        return _encode_picture(name, "filters", bits.shape, np.packbits(bits))
    if bits.ndim == 2 and shape is not None and len(shape) == 3 and bits.shape[1] == math.prod(shape):
        return _encode_picture(name, "inputs", shape, np.rint(255 * bits.mean(axis=0)).astype(np.uint8))
    return None


_PICTURES = 2
_ROWS, _COLUMNS = 128, 256
"""Largest numbers of rows and columns in a picture of a restructured layer, whose bits then take 4 kB."""


def draw_structure_pictures(before: Mask, after: Mask) -> list[dict[str, Any]]:
    """Return pictures of layers before and after their mask is given structure, as JSON values.

    The two largest layers with up to 128 rows are drawn, or the smallest layer if all have more rows. Rows are sorted
    by their group in `after`, groups with the most columns first. If a layer has more than 128 rows, only every second,
    third … row is drawn. Only the first 256 columns are drawn.

    Returns:
        For each layer: its ``name``; its number of ``rows`` and ``columns``; ``every``, the step between drawn rows;
        ``shape``, the [height, width] of the picture; ``groups``, the number of drawn rows of each group from the top,
        empty rows last; ``before`` and ``after``, the packed bits in base64.
    """
    banks = sorted((name for name in before if before[name].dim() > 1), key=lambda name: before[name].numel())
    small = [name for name in banks if len(before[name]) <= _ROWS]
    chosen = small[-_PICTURES:] or banks[:1]
    return [_draw_structure_picture(name, before, after) for name in before if name in chosen]


def _draw_structure_picture(name: str, before: Mask, after: Mask) -> dict[str, Any]:
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


def _encode_picture(name: str, kind: str, shape: tuple[int, ...], data: np.typing.NDArray[np.uint8]) -> dict[str, Any]:
    return {"name": name, "kind": kind, "shape": list(shape), "data": base64.b64encode(data.tobytes()).decode("ascii")}
