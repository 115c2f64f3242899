"""The picture of a first layer, read back and compared with the mask."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch

from ticketry.core.mask import Mask
from ticketry.core.mask_pictures import draw_first_layer, draw_structure_pictures


def random_mask(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.4


def test_filters_are_bits() -> None:
    bits = random_mask(5, 3, 3, 3)
    made = draw_first_layer(Mask({"conv.weight": bits, "fc.weight": random_mask(2, 4)}), (3, 32, 32))
    assert (made["name"], made["kind"], made["shape"]) == ("conv.weight", "filters", [5, 3, 3, 3])
    data = np.frombuffer(base64.b64decode(made["data"]), np.uint8)
    assert np.array_equal(np.unpackbits(data, count=135).reshape(5, 3, 3, 3), bits.numpy())


def test_inputs_are_shares() -> None:
    bits = random_mask(300, 784)
    made = draw_first_layer(Mask({"fc1.weight": bits}), (1, 28, 28))
    assert (made["kind"], made["shape"]) == ("inputs", [1, 28, 28])
    data = np.frombuffer(base64.b64decode(made["data"]), np.uint8)
    assert np.abs(data / 255 - bits.float().mean(0).numpy()).max() <= 0.5 / 255 + 1e-6


def test_what_is_no_picture() -> None:
    assert draw_first_layer(Mask({"fc.weight": random_mask(3, 7)}), None) is None
    assert draw_first_layer(Mask({"fc.weight": random_mask(3, 7)}), (1, 2, 3)) is None
    assert draw_first_layer(Mask({"conv.weight": random_mask(128, 256, 3, 3)}), (3, 32, 32)) is None  # too large


def bits_of(made: dict[str, Any], when: str) -> np.ndarray[Any, Any]:
    height, width = made["shape"]
    data = np.frombuffer(base64.b64decode(made[when]), np.uint8)
    return np.unpackbits(data, count=height * width).reshape(height, width)


def grouped(rows: int, columns: int, size: int) -> torch.Tensor:
    """Groups of rows that are not neighbours: row r is in group r mod (rows / size), the g-th has g + 1 columns."""
    count = rows // size
    kept = torch.zeros(rows, columns, dtype=torch.bool)
    for row in range(rows):
        kept[row, : row % count + 1] = True
    return kept


def test_rows_are_sorted_by_group() -> None:
    after, before = grouped(12, 20, 3), random_mask(12, 20)
    (made,) = draw_structure_pictures(Mask({"fc.weight": before, "fc.bias": before[:, 0]}), Mask({"fc.weight": after}))
    assert (made["name"], made["rows"], made["columns"], made["every"]) == ("fc.weight", 12, 20, 1)
    assert made["groups"] == [3, 3, 3, 3]
    assert bits_of(made, "after").sum(1).tolist() == [4, 4, 4, 3, 3, 3, 2, 2, 2, 1, 1, 1]
    order = [3, 7, 11, 2, 6, 10, 1, 5, 9, 0, 4, 8]
    assert np.array_equal(bits_of(made, "before"), before.numpy()[order])


def test_large_layers_are_thinned_out_and_cut() -> None:
    after = grouped(320, 400, 32)
    (made,) = draw_structure_pictures(Mask({"w": random_mask(320, 400)}), Mask({"w": after}))
    assert (made["every"], made["shape"]) == (3, [107, 256])
    assert sum(made["groups"]) == 107
    assert set(made["groups"]) == {10, 11}


def test_the_two_largest_of_the_small_layers_are_drawn() -> None:
    shapes = {"a": (8, 4), "b": (600, 90), "c": (128, 3, 3, 3), "d": (16, 9)}
    mask = Mask({name: random_mask(*shape) for name, shape in shapes.items()})
    assert [made["name"] for made in draw_structure_pictures(mask, mask)] == ["c", "d"]
