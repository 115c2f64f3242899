"""The picture of a first layer, read back and compared with the mask."""

from __future__ import annotations

import base64

import numpy as np
import torch

from ticketry.core.mask import Mask
from ticketry.core.picture import first_layer


def random_mask(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.4


def test_filters_are_bits() -> None:
    bits = random_mask(5, 3, 3, 3)
    made = first_layer(Mask({"conv.weight": bits, "fc.weight": random_mask(2, 4)}), (3, 32, 32))
    assert made is not None
    assert (made["name"], made["kind"], made["shape"]) == ("conv.weight", "filters", [5, 3, 3, 3])
    data = np.frombuffer(base64.b64decode(made["data"]), np.uint8)
    assert np.array_equal(np.unpackbits(data, count=135).reshape(5, 3, 3, 3), bits.numpy())


def test_inputs_are_shares() -> None:
    bits = random_mask(300, 784)
    made = first_layer(Mask({"fc1.weight": bits}), (1, 28, 28))
    assert made is not None
    assert (made["kind"], made["shape"]) == ("inputs", [1, 28, 28])
    data = np.frombuffer(base64.b64decode(made["data"]), np.uint8)
    assert np.abs(data / 255 - bits.float().mean(0).numpy()).max() <= 0.5 / 255 + 1e-6


def test_what_is_no_picture() -> None:
    assert first_layer(Mask({"fc.weight": random_mask(3, 7)}), None) is None
    assert first_layer(Mask({"fc.weight": random_mask(3, 7)}), (1, 2, 3)) is None
    assert first_layer(Mask({"conv.weight": random_mask(128, 256, 3, 3)}), (3, 32, 32)) is None  # too large
