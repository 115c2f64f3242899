"""Tables hold exactly the weight they were made of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from group_masks import grouped
from ticketry.engine.gpu.tables import UNIT, Tables, layer_groups, pack
from ticketry.errors import EngineError


def unpacked(tables: Tables, outputs: int, channels: int) -> dict[tuple[int, int], torch.Tensor]:
    """(rows down, columns right) -> weight [O, C], read as the kernel reads: column by column, row by row."""
    found: dict[tuple[int, int], torch.Tensor] = {}
    seen = torch.zeros(outputs, dtype=torch.int64)
    for number, (first, count, start) in enumerate(tables.tiles.tolist()):
        padded = -(-count // UNIT) * UNIT
        for row in range(tables.tile):
            target = int(tables.rows[number, row])
            if target >= 0:
                seen[target] += 1
            for column in range(padded):
                value = float(tables.weight[start * UNIT + row * padded + column])
                channel = int(tables.channels[first * UNIT + column])
                if target < 0 or channel < 0:
                    assert value == 0
                    assert channel < 0 or column < count
                    continue
                tap = int(tables.taps[first * UNIT + column])
                right = (tap & 0xFFFF) - (1 << 16 if tap & 0x8000 else 0)
                weight = found.setdefault((tap >> 16, right), torch.zeros(outputs, channels))
                assert weight[target, channel] == 0
                weight[target, channel] = value
    assert seen.tolist() == [1] * outputs  # each row is written once
    return found


@given(
    st.integers(1, 20), st.integers(1, 5), st.sampled_from([(1, 1), (3, 3), (2, 3)]), st.integers(1, 9),
    st.floats(0, 1), st.sampled_from([16, 32]), st.integers(0, 3), st.integers(1, 3),
)  # fmt: skip
def test_a_convolution_can_be_read_back(outputs, channels, kernel, rows, density, tile, padding, dilation):
    flat = grouped(outputs, channels * kernel[0] * kernel[1], rows, density)
    weight = flat.reshape(outputs, channels, *kernel)
    tables = pack(weight, tile=tile, dtype=torch.float32, padding=(padding, padding), dilation=(dilation, dilation))
    found = unpacked(tables, outputs, channels)
    for down in range(kernel[0]):
        for right in range(kernel[1]):
            place = (down * dilation - padding, right * dilation - padding)
            read = found.pop(place, torch.zeros(outputs, channels))
            assert torch.equal(read, weight[:, :, down, right])
    assert not found


def test_groups_of_a_convolution_read_their_own_channels():
    weight = grouped(12, 4 * 9, 3, 0.5).reshape(12, 4, 3, 3)
    found = unpacked(pack(weight, tile=16, dtype=torch.float32, groups=3), 12, 12)
    for (down, right), read in found.items():
        for group in range(3):
            own = slice(4 * group, 4 * group + 4)
            assert torch.equal(read[own, own], weight[own, :, down, right])
            read[own, own] = 0
        assert not read.any()


def test_rows_of_two_groups_of_a_convolution_are_never_together():
    weight = torch.ones(8, 2, 1, 1)
    assert [group.rows.tolist() for group in layer_groups(weight, 2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [group.columns.tolist() for group in layer_groups(weight, 2)] == [[0, 1], [2, 3]]


def test_long_tiles_come_first():
    weight = torch.zeros(40, 300)
    weight[:20, :70] = 1
    weight[20:30, :] = 1
    tables = pack(weight, tile=16, dtype=torch.bfloat16)
    assert tables.tiles[:, 1].tolist() == [300, 70, 70, 0]
    assert tables.weight.dtype == torch.bfloat16
    assert tables.bytes < 2 * (16 * 320 + 2 * 16 * 128) + 4 * (3 * 4 + 4 * 16 + 2 * 448) + 2 * UNIT + 1


def test_a_layer_of_zeros_has_tables():
    tables = pack(torch.zeros(5, 7), tile=16, dtype=torch.float32)
    assert tables.tiles[:, 1].tolist() == [0]
    assert tables.rows[0].tolist() == [0, 1, 2, 3, 4, *[-1] * 11]
    assert len(tables.channels) > 0
    assert not tables.weight.any()


def test_a_kernel_that_reaches_too_far():
    with pytest.raises(EngineError, match="too wide"):
        pack(torch.ones(1, 1, 3, 3), tile=16, dtype=torch.float32, dilation=(1, 20_000))
