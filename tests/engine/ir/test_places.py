"""Places of kept values as numbers: by another, slow decoder, by size, and damaged."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest

from ticketry_engine.ir.model_file import (
    bitmap_bytes,
    elias_fano_bytes,
    pack_bits,
    pack_positions,
    unpack_bits,
    unpack_positions,
)


def drawn(total: int, density: float) -> np.ndarray:
    return np.random.default_rng(total).random(total) < density


def read_slowly(data: bytes, count: int, total: int, low: int) -> list[int]:
    """The places, bit by bit as the page of the code says."""
    bits = [byte >> bit & 1 for byte in data for bit in range(8)]
    lower = [sum(bits[low * index + bit] << bit for bit in range(low)) for index in range(count)]
    higher, zeros = [], 0
    for bit in bits[(count * low + 7) // 8 * 8 :]:
        if bit:
            higher.append(zeros)
        else:
            zeros += 1
    return [(high << low) + rest for high, rest in zip(higher, lower, strict=True)]


@pytest.mark.parametrize(("density", "low"), [(0.4, 1), (0.1, 3), (0.01, 4)])
def test_a_slow_decoder_reads_the_same_places(density: float, low: int) -> None:
    flags = drawn(5_000, density)
    count = int(flags.sum())
    assert read_slowly(pack_positions(flags).tobytes(), count, len(flags), low) == np.flatnonzero(flags).tolist()


@pytest.mark.parametrize("density", [0.0, 0.003, 0.03, 0.3, 1.0])
def test_unpacking_inverts_packing(density: float) -> None:
    for total in (0, 1, 7, 8, 127, 128, 129, 4099, 10_007):
        edges = [np.isin(np.arange(total), places) for places in ([0], [total - 1], [0, total - 1])]
        for flags in (drawn(total, density), drawn(total, density)[::-1], *edges):
            data, count = pack_positions(flags), int(flags.sum())
            assert len(data) == elias_fano_bytes(count, total)
            assert np.array_equal(unpack_positions(data, count, total), flags)
            assert len(pack_bits(flags)) == bitmap_bytes(total)
            assert np.array_equal(unpack_bits(pack_bits(flags), total), flags)
    for count in (0, 1, 100):  # few bytes cannot claim many elements
        assert elias_fano_bytes(count, 1 << 40) >= (1 << 40) // 128


@pytest.mark.parametrize(("density", "most"), [(0.2, 1.18), (0.1, 1.12), (0.05, 1.1)])
def test_the_size_is_near_the_least_that_any_code_takes(density: float, most: float) -> None:
    total = 1_000_000
    least = total * -(density * log2(density) + (1 - density) * log2(1 - density)) / 8
    assert least < elias_fano_bytes(int(density * total), total) < most * least


def test_damage_is_told() -> None:
    flags = drawn(1000, 0.1)
    data, count = pack_positions(flags), int(flags.sum())
    with pytest.raises(ValueError, match="number of bytes"):
        unpack_positions(data[:-1], count, 1000)
    for wrong in (count + 80, -1, 1001):
        with pytest.raises(ValueError, match="number of bytes"):
            unpack_positions(data, wrong, 1000)
    with pytest.raises(ValueError, match="number of positions"):
        unpack_positions(np.concatenate([data[:-4], np.zeros(4, dtype=np.uint8)]), count, 1000)
    backwards = data.copy()
    backwards[: (3 * count + 7) // 8] = np.packbits(np.tile([1, 1, 1, 0, 0, 0], count)[: 3 * count], bitorder="little")
    with pytest.raises(ValueError, match="do not increase"):
        unpack_positions(backwards, count, 1000)
    for byte in range(len(data)):  # whatever a byte is changed to, the answer is so many places, or an error
        for value in (0, 255, int(data[byte]) ^ 1):
            changed = data.copy()
            changed[byte] = value
            try:
                found = unpack_positions(changed, count, 1000)
            except ValueError:
                continue
            assert int(found.sum()) == count


def test_a_quarter_is_where_bits_are_as_short() -> None:
    total = 1 << 20
    assert elias_fano_bytes(total // 4 - 1000, total) < bitmap_bytes(total) <= elias_fano_bytes(total // 4 + 8, total)
