"""GroupTables hold exactly the weight they were made of; strides of inner tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from group_wise import grouped
from ticketry.errors import EngineError
from ticketry_engine.gpu.tables import (
    UNIT,
    GroupTables,
    empty_batch_first,
    empty_batch_last,
    has_taps,
    is_batch_last,
    pack_group_tables,
    why_no_tables,
)
from ticketry_engine.ir.native_shapes import window_count
from ticketry_engine.support.row_groups import row_groups_by_convolution_group


def signed(byte: int) -> int:
    return (byte & 0xFF) - (256 if byte & 0x80 else 0)


def unpacked(
    tables: GroupTables, outputs: int, channels: int, *, taps: bool = True
) -> dict[tuple[int, int], torch.Tensor]:
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
                place = int(tables.places[first * UNIT + column])
                if target < 0 or place < 0:
                    assert value == 0
                    assert place < 0 or column < count
                    continue
                channel, down, right = (place >> 16, signed(place >> 8), signed(place)) if taps else (place, 0, 0)
                weight = found.setdefault((down, right), torch.zeros(outputs, channels))
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
    tables = pack_group_tables(
        weight, tile=tile, dtype=torch.float32, padding=(padding, padding), dilation=(dilation, dilation)
    )
    found = unpacked(tables, outputs, channels, taps=has_taps(kernel, (padding, padding)))
    for down in range(kernel[0]):
        for right in range(kernel[1]):
            place = (down * dilation - padding, right * dilation - padding)
            read = found.pop(place, torch.zeros(outputs, channels))
            assert torch.equal(read, weight[:, :, down, right])
    assert not found


def test_groups_of_a_convolution_read_their_own_channels():
    weight = grouped(12, 4 * 9, 3, 0.5).reshape(12, 4, 3, 3)
    found = unpacked(pack_group_tables(weight, tile=16, dtype=torch.float32, groups=3), 12, 12)
    for (down, right), read in found.items():
        for group in range(3):
            own = slice(4 * group, 4 * group + 4)
            assert torch.equal(read[own, own], weight[own, :, down, right])
            read[own, own] = 0
        assert not read.any()
    groups = row_groups_by_convolution_group(torch.ones(8, 2, 1, 1), 2)  # rows of two groups are never together
    assert [group.rows.tolist() for group in groups] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_long_tiles_come_first_and_a_layer_of_zeros_has_tables():
    weight = torch.zeros(40, 300)
    weight[:20, :70] = 1
    weight[20:30, :] = 1
    tables = pack_group_tables(weight, tile=16, dtype=torch.bfloat16)
    assert tables.tiles[:, 1].tolist() == [300, 70, 70, 0]
    assert tables.weight.dtype == torch.bfloat16
    assert len(tables.places) == 320 + 128 + UNIT  # the two tiles of a group share its columns
    assert tables.bytes == 2 * (16 * 320 + 2 * 16 * 128 + UNIT) + 4 * (3 * 4 + 16 * 4 + len(tables.places))
    tables = pack_group_tables(torch.zeros(5, 7), tile=16, dtype=torch.float32)
    assert tables.tiles[:, 1].tolist() == [0]
    assert tables.rows[0].tolist() == [0, 1, 2, 3, 4, *[-1] * 11]
    assert len(tables.places) == UNIT
    assert not tables.weight.any()


def test_layers_that_tables_cannot_hold():
    with pytest.raises(EngineError, match="reaches 140 pixels"):
        pack_group_tables(torch.ones(1, 1, 3, 3), tile=16, dtype=torch.float32, dilation=(1, 70))
    plain = {"groups": 1, "padding": (0, 0), "dilation": (1, 1)}
    assert "channels" in why_no_tables((4, 1 << 15, 3, 3), **plain)
    assert why_no_tables((4, 1 << 15, 1, 1), **plain) is None
    assert why_no_tables((4, 1 << 14, 3, 3), **plain) is None
    assert "channels" in why_no_tables((4, 1 << 14, 3, 3), **{**plain, "groups": 2})
    assert "reaches 128" in why_no_tables((4, 1, 1, 1), **{**plain, "padding": (0, 128)})
    assert why_no_tables((4, 70_000), **plain) is None


def test_far_taps_and_many_channels():
    weight = torch.zeros(2, 32_767, 2, 2)
    weight[0, 32_766, 1, 1] = 3
    weight[0, 5, 0, 0] = 2
    tables = pack_group_tables(weight, tile=16, dtype=torch.float32, padding=(127, 0), dilation=(1, 127))
    assert tables.tiles[:, 1].tolist() == [2, 0]
    near, far = tables.places[:2].tolist()
    assert (near >> 16, signed(near >> 8), signed(near)) == (5, -127, 0)
    assert (far >> 16, signed(far >> 8), signed(far)) == (32_766, -126, 127)
    assert tables.weight[:2].tolist() == [2, 3]


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (8, 3, 4, 5), (11, 2, 1, 1), (5, 7), (16, 1)])
def test_inner_tensors_are_known_as_such(shape):
    made = empty_batch_last(shape, torch.empty(0))
    assert made.shape == shape
    assert made.stride(0) == 1
    assert made.stride(1) % 8 == 0
    assert is_batch_last(made)


def test_others_are_not_unless_whole_vectors_lie_without_gaps():
    assert is_batch_last(torch.empty(2, 3, 4, 8).permute(3, 0, 1, 2))
    for other in (
        torch.empty(8, 3, 4, 5),
        torch.empty(8, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.empty(3, 4, 5, 9).permute(3, 0, 1, 2),  # 9 images without padding
        torch.empty(1, 1, 1, 1),  # strides would do, but there is no padding to read
        torch.empty(3, 4, 5, 16).permute(3, 0, 1, 2)[:8],
        torch.empty(3, 4, 5, 16).permute(3, 0, 1, 2)[1:],
        torch.empty(6, 4),
        torch.empty(2, 3, 8).permute(2, 0, 1),
    ):
        assert not is_batch_last(other)


def test_outer_tensors_are_what_torch_likes():
    assert empty_batch_first((2, 3, 4, 5), torch.empty(0)).is_contiguous(memory_format=torch.channels_last)
    assert empty_batch_first((4, 5), torch.empty(0)).is_contiguous()


@given(st.integers(5, 10), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2), st.integers(1, 2), st.booleans())
def test_windows_are_torch_s(size, kernel, stride, padding, dilation, ceil):
    assume(2 * padding <= kernel and dilation * (kernel - 1) < size + 2 * padding)
    wanted = torch.max_pool2d(torch.zeros(1, 1, size, size), kernel, stride, padding, dilation, ceil).shape[2]
    assert window_count(size, kernel, stride, padding, dilation, ceil=ceil) == wanted
