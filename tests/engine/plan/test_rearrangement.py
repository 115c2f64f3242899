"""Tables of elements against torch's views."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ticketry_engine.plan import storage as tables
from ticketry_engine.plan.storage import Rearranged, Storages


def loaded(x: torch.Tensor, storages: Storages) -> tuple[Rearranged, torch.Tensor]:
    """A tensor without batch as a table, and the elements that the table's numbers mean."""
    blank = tables.region_input((None, *x.shape), 0)
    form = tables.region_input((None, *x.shape), storages.add_storage(blank.channels, blank.pixels, 0))
    elements = x.T.reshape(-1) if x.dim() == 2 else x.reshape(-1)
    return tables.as_rearranged(form, storages), elements


def read(value: Rearranged, elements: torch.Tensor) -> torch.Tensor:
    where = torch.as_tensor(value.where.copy())
    return torch.where(where < 0, torch.zeros(()), elements[where.clamp_min(0)])


@settings(max_examples=60)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3), steps=st.lists(st.integers(0, 4), max_size=6))
def test_views_are_those_of_torch(sizes: list[int], steps: list[int]) -> None:
    storages = Storages()
    x = torch.randn(sizes)
    value, elements = loaded(x, storages)
    for step in steps:
        axis = step % x.dim()
        if step == 0:
            axes = [*range(1, x.dim()), 0]
            x, value = x.permute(axes), value.transposed([0, *(one + 1 for one in axes)])
        elif step == 1:
            x, value = x.reshape(-1, 1), value.reshaped([None, x.numel(), 1])
        elif step == 2:
            stop = max(1, x.shape[axis] - 1)
            x, value = x.narrow(axis, 0, stop), value.sliced(axis + 1, 0, stop)
        elif step == 3:
            x, value = torch.cat([x, x], axis), tables.join_rearranged([value, value], axis + 1, storages)
        else:
            room = [int(one == axis) for one in range(x.dim())]
            sides = [side for one in room[::-1] for side in (one, 2 * one)]
            x = torch.nn.functional.pad(x, sides)
            value = value.padded(room, [2 * one for one in room])
        assert torch.equal(read(value, elements), x)


def test_what_views_put_back_is_a_list_of_planes_again() -> None:
    storages = Storages()
    value, _ = loaded(torch.randn(4, 6, 5), storages)
    there = value.reshaped([None, 4, 30]).transposed([0, 2, 1])
    form = tables.as_whole_planes(there, "pc", storages)
    assert form is not None
    assert form.pixels == (6, 5)
    assert form.flat[:, 1].tolist() == [0, 1, 2, 3]
    assert tables.as_whole_planes(there, "cp", storages) is None
    moved = tables.join_rearranged([there.sliced(1, 1, 30), there.sliced(1, 0, 1)], 1, storages)
    assert tables.as_whole_planes(moved, "pc", storages) is None


def test_concatenations_of_several_storages() -> None:
    storages = Storages()
    one, other = torch.randn(2, 3), torch.randn(4, 3)
    tables_of, elements = zip(*(loaded(x, storages) for x in (one, other)), strict=True)
    value = tables.join_rearranged(tables_of, 1, storages)
    assert torch.equal(read(value, torch.cat(elements)), torch.cat([one, other]))
    again = tables.join_rearranged([value, tables_of[0]], 1, storages)
    assert torch.equal(read(again, torch.cat(elements)), torch.cat([one, other, one]))
