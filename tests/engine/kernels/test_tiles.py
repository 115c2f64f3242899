"""How pixels are cut into tiles, which taps those skip, and how rows are cut into blocks: against slow counting."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ticketry_engine.kernels.channels_last.conv import flatten_by_tap, group_rows, join_groups, split_into_blocks
from ticketry_engine.kernels.channels_last.group_conv import ConvAxes, Tile, Tiling
from ticketry_engine.kernels.window import Axis


@st.composite
def planes(draw: st.DrawFn) -> ConvAxes:
    def window() -> Axis:
        size, dilation, padding = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(0, 3))
        least = max(1, dilation * (size - 1) + 1 - 2 * padding)
        return Axis(draw(st.integers(least, least + 12)), size, draw(st.integers(1, 3)), padding, dilation)

    return ConvAxes(window(), window())


@given(planes(), st.integers(1, 6), st.integers(1, 6))
def test_every_pixel_is_in_a_tile_which_does_every_tap_that_sees_something(
    plane: ConvAxes, rows: int, columns: int
) -> None:
    shape = (plane.rows.outputs, plane.columns.outputs)
    tile = Tile(1, min(rows, shape[0]), min(columns, shape[1]))
    tiling = Tiling.from_axes(plane, tile)
    seen = np.zeros(shape, dtype=bool)
    for top, left, kind in zip(tiling.row, tiling.column, tiling.kind, strict=True):
        inside = np.s_[top : top + tile.rows, left : left + tile.columns]
        assert seen[inside].shape == (tile.rows, tile.columns)
        seen[inside] = True
        taps = {tap for first, last in tiling.spans[kind] for tap in range(first, last)}
        assert taps == _useful(plane, top, left, tile)
    assert seen.all()
    assert plane.tiles_per_image(tile) == len(tiling.row)
    assert plane.count_taps(tile) == sum(
        len(_useful(plane, t, c, tile)) for t, c in zip(tiling.row, tiling.column, strict=True)
    )


def _useful(plane: ConvAxes, top: int, left: int, tile: Tile) -> set[int]:
    """Taps that lie on the image for some pixel of the tile."""
    found = set()
    for tap in range(plane.taps):
        ky, kx = divmod(tap, plane.columns.size)
        ys = [(top + y) * plane.rows.stride - plane.rows.padding + ky * plane.rows.dilation for y in range(tile.rows)]
        xs = [
            (left + x) * plane.columns.stride - plane.columns.padding + kx * plane.columns.dilation
            for x in range(tile.columns)
        ]
        if any(0 <= y < plane.rows.extent for y in ys) and any(0 <= x < plane.columns.extent for x in xs):
            found.add(tap)
    return found


@given(planes(), st.integers(1, 30), st.sampled_from([1, 2, 6, 8]))
def test_tiles_to_choose_from_fit(plane: ConvAxes, pixels: int, images: int) -> None:
    tiles = plane.candidate_tiles(pixels, images)
    assert tiles
    for tile in tiles:
        assert tile.pixels <= pixels
        assert images % tile.images == 0
        assert 1 <= tile.rows <= plane.rows.outputs
        assert 1 <= tile.columns <= plane.columns.outputs


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20)), min_size=1, max_size=6),
    lanes=st.sampled_from([4, 8, 16]),
    seed=st.integers(0, 99),
)
def test_groups_hold_each_row_once_and_blocks_every_weight(rows: list[tuple[int, int]], lanes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    supports = rng.random((4, 30)) < np.array([[0.0], [0.2], [0.5], [1.0]])
    kept = np.concatenate([np.repeat(supports[kind : kind + 1], count, axis=0) for kind, count in rows])
    weights = (kept * rng.uniform(1, 2, kept.shape)).astype(np.float32)
    groups = group_rows(weights != 0, lanes)
    assert np.array_equal(np.concatenate(groups), np.arange(len(weights)))
    found = np.zeros_like(weights)
    for block in split_into_blocks(weights != 0, groups, lanes, {1: 1.0, 2: 1.8, 3: 2.5}):
        assert 0 < len(block.rows) <= block.vectors * lanes
        assert (np.diff(block.columns) > 0).all()
        found[block.rows[:, None], block.columns] = weights[block.rows[:, None], block.columns]
    assert np.array_equal(found, weights)


def test_groups_are_joined_only_where_that_saves_work() -> None:
    weights = np.zeros((32, 40), np.float32)
    weights[:8, :10] = weights[8:16, 5:15] = weights[16:, 20:] = 1
    assert [len(group) for group in group_rows(weights != 0, 16)] == [16, 16]
    assert [len(group) for group in group_rows(weights != 0, 8)] == [8, 8, 16]


def test_a_grouped_convolution_as_a_plain_one() -> None:
    weight = np.arange(1, 13, dtype=np.float32).reshape(4, 3, 1, 1)
    expected = np.zeros((4, 6), np.float32)
    expected[:2, :3], expected[2:, 3:] = weight[:2, :, 0, 0], weight[2:, :, 0, 0]
    assert np.array_equal(flatten_by_tap(weight, 2), expected)


PRICES = {1: 1.0, 2: 1.4, 3: 1.8}
"""Of a column, by the vectors of a block: those of more are cheaper a vector."""


def test_single_weights_that_keep_nearly_all_columns_are_done_as_the_dense_layer_is() -> None:
    blocks = []
    for kept in (np.random.default_rng(0).random((48, 300)) < 0.9, np.ones((48, 300), dtype=bool)):
        (whole,) = join_groups(kept, group_rows(kept, 8), 8, PRICES)
        assert whole.tolist() == list(range(48))
        made = split_into_blocks(kept, [whole], 8, PRICES)
        blocks.append([(block.rows.tolist(), len(block.columns), block.vectors) for block in made])
    assert blocks[0] == blocks[1]


@given(seed=st.integers(0, 999))
def test_joining_never_costs_more_and_keeps_all_rows_in_order(seed: int) -> None:
    generator = np.random.default_rng(seed)
    kept = generator.random((int(generator.integers(1, 70)), 60)) < generator.random()
    if seed % 2:
        kept = kept.repeat(int(generator.integers(2, 9)), axis=0)

    def price(groups: list) -> float:
        return sum(PRICES[block.vectors] * len(block.columns) for block in split_into_blocks(kept, groups, 8, PRICES))

    groups = group_rows(kept, 8)
    found = join_groups(kept, groups, 8, PRICES)
    assert np.concatenate(found).tolist() == list(range(len(kept)))
    assert price(found) <= price(groups) + 1e-9
