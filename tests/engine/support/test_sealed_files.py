"""A digest of all of a file: no flipped bit, no missing or added byte goes unseen."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from ticketry_engine.support.files import append_digest, verify_and_strip_digest

PLAIN = save({"a": torch.arange(5.0), "b": torch.ones(2, 2, dtype=torch.int8)}, metadata={"kind": "x" * 9})


def test_what_was_sealed_comes_back_and_opens_in_any_loader() -> None:
    assert verify_and_strip_digest(append_digest(PLAIN)) == PLAIN
    assert {name: tensor.tolist() for name, tensor in load(append_digest(PLAIN)).items()} == {
        name: tensor.tolist() for name, tensor in load(PLAIN).items()
    }
    assert len(append_digest(PLAIN)) % 8 == len(PLAIN) % 8, "tensors stay aligned"


@pytest.mark.parametrize("required", [True, False])
def test_every_flipped_bit_is_seen(required: bool) -> None:
    data = append_digest(PLAIN)
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            with pytest.raises((ValueError, AttributeError)):
                verify_and_strip_digest(bytes(flipped), required=required)


def test_what_is_cut_or_longer_is_seen() -> None:
    data = append_digest(PLAIN)
    for changed in (b"", *(data[:length] for length in range(1, len(data), 7)), data + b"\0", b"\0" + data):
        with pytest.raises((ValueError, AttributeError)):
            verify_and_strip_digest(changed)


def test_without_a_digest() -> None:
    assert verify_and_strip_digest(PLAIN, required=False) == PLAIN
    with pytest.raises(ValueError, match="no digest"):
        verify_and_strip_digest(PLAIN)
    with pytest.raises(ValueError, match="metadata"):
        append_digest(save({"a": torch.ones(1)}))
