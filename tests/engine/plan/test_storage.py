"""Layout of memory: nothing alive is overwritten, geometries meet what their readers need."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ticketry_engine.plan import storage
from ticketry_engine.plan.arenas import PlanesArena
from ticketry_engine.plan.storage import Storages

_LIVES = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4), st.sampled_from([(4, 4), (2, 3)])), max_size=12)


@given(_LIVES)
def test_values_that_live_at_once_never_share_a_byte(lives):
    storages = Storages()
    made = []
    for born, (channels, life, pixels) in enumerate(lives):
        number = storages.add_storage(channels, pixels, born)
        form = storage.new_value("cpp", [channels], pixels, number)
        storages.record_read(form, born + life)
        made.append((born, born + life, form))
    arena = PlanesArena(storages, 4, 16)
    spans = []
    for born, dies, form in made:
        planes = arena.value_memory(form)
        assert planes.offsets.min() >= 0
        assert planes.offsets.max() + planes.geometry.bytes <= arena.bytes
        spans.append((born, dies, {int(offset) for offset in planes.offsets}, planes.geometry))
    for index, (born, dies, offsets, geometry) in enumerate(spans):
        for other_born, other_dies, others, other_geometry in spans[:index]:
            if born <= other_dies and other_born <= dies:
                assert not offsets & others
            if geometry != other_geometry:
                assert not offsets & others


def test_a_geometry_has_the_halo_of_its_neediest_reader_and_is_shared_by_what_is_added():
    storages = Storages()
    one, other, third = (
        storage.new_value("cpp", [3], (8, 8), storages.add_storage(3, (8, 8), born)) for born in range(3)
    )
    storages.record_read(one, 1, halo=1)
    storages.record_read(other, 2, halo=3)
    storages.require_equal_geometry([one, other])
    storages.require_equal_row_distances(other, third)
    first, second, last = PlanesArena(storages, 16, 16).geometries
    assert first == second
    assert (first.halo, first.row) == (3, 11)
    assert (last.halo, last.row) == (0, 11)


def test_rows_that_do_not_fill_a_vector_have_no_halo():
    storages = Storages()
    for width in (4, 8, 16):
        storages.record_read(
            storage.new_value("cpp", [3], (8, width), storages.add_storage(3, (8, width), 0)), 1, halo=1
        )
    assert [g.halo for g in PlanesArena(storages, 1, 16).geometries] == [0, 0, 1]
    assert [g.halo for g in PlanesArena(storages, 4, 16).geometries] == [1, 1, 1]
    assert [g.halo for g in PlanesArena(storages, 4, 16, halos=False).geometries] == [0, 0, 0]
    assert [g.halo for g in PlanesArena(storages, 16, 16, halos=False).geometries] == [1, 1, 1]


@pytest.mark.parametrize(("images", "row"), [(4, 28), (16, 1), (32, 1)])
def test_single_pixels_behind_a_flattened_picture_lie_close_together(images: int, row: int) -> None:
    """A row of the picture apart, planes of one pixel would fill a few sets of the nearest cache, and no others."""
    storages = Storages()
    picture, *layers = (
        storages.add_storage(1, (28, 28), 0),
        storages.add_storage(300, (1, 1), 0),
        storages.add_storage(100, (1, 1), 0),
    )
    storages.rows.join([picture, *layers])
    geometries = PlanesArena(storages, images, 16).geometries
    assert [geometry.row for geometry in geometries] == [28, row, row]
