"""A small picture of a mask's first layer, for the report: which weights of each filter, which inputs, are kept."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

from ticketry.core.mask import Mask

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


def _picture(name: str, kind: str, shape: tuple[int, ...], data: np.typing.NDArray[np.uint8]) -> dict[str, Any]:
    return {"name": name, "kind": kind, "shape": list(shape), "data": base64.b64encode(data.tobytes()).decode("ascii")}
