"""The idx format of MNIST: two zero bytes, a type, the number of dimensions, their sizes, the values."""

from __future__ import annotations

import math
import struct

import numpy as np
from numpy.typing import NDArray

from ticketry.errors import DataError

_UINT8 = 0x08


def parse(content: bytes, *, dimensions: int, what: str) -> NDArray[np.uint8]:
    """The array of bytes that `content` holds; a read-only view of it.

    Raises:
        DataError: if it is not idx, holds something other than bytes, has another number of dimensions than wanted,
            or fewer or more values than its header says; `what` names it.
    """
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, _UINT8, dimensions))
    if content[:4] != magic or len(content) < header:
        raise DataError(f"{what} does not start as an idx file of {dimensions}-dimensional bytes: {content[:4]!r}")
    sizes = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(sizes):
        raise DataError(f"{what} should hold {sizes} bytes after its header, but holds {len(content) - header}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)
