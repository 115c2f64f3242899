from __future__ import annotations

import struct

import numpy as np
import pytest

from ticketry.errors import DataError
from ticketry.tasks.data import published_images as mnist

VALUES = bytes(range(24))
GOOD = bytes([0, 0, 8, 3]) + struct.pack(">III", 2, 3, 4) + VALUES


def test_values_come_in_order() -> None:
    array = mnist.parse_idx(GOOD, dimensions=3, what="file")
    assert array.dtype == np.uint8
    assert array.tolist() == [[[12 * i + 4 * j + k for k in range(4)] for j in range(3)] for i in range(2)]


def test_labels_have_one_dimension() -> None:
    assert mnist.parse_idx(b"\0\0\x08\x01\0\0\0\x03\x07\x08\x09", dimensions=1, what="file").tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "does not start as an idx file"),
        (GOOD[:10], "does not start as an idx file"),
        (b"\x1f\x8b" + GOOD, "does not start as an idx file"),
        (bytes([0, 0, 13, 3]) + GOOD[4:], "does not start as an idx file"),  # floats
        (bytes([0, 0, 8, 1]) + GOOD[4:], "does not start as an idx file of 3-dimensional"),
        (GOOD[:-1], r"should hold \(2, 3, 4\) bytes after its header, but holds 23"),
        (GOOD + b"\0", "but holds 25"),
    ],
)
def test_anything_else_is_refused_by_name(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=f"^file .*{reason}"):
        mnist.parse_idx(content, dimensions=3, what="file")
