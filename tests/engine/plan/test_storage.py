"""Storage of values: forms and tables are torch's views, nothing alive is overwritten, and little is copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ticketry as tk
from engine.models import Of, assert_exact, in_layout, sketch_of
from samples import sample
from ticketry_engine.plan import storage
from ticketry_engine.plan.arenas import PlanesArena
from ticketry_engine.plan.storage import Rearranged, Storages, UnsupportedError, ValueForm


def planes_of(x: Tensor) -> tuple[ValueForm, Tensor]:
    """A tensor without batch as it is loaded, and the planes [C, pixels] of its storage."""
    form = storage.region_input((None, *x.shape), 0)
    if x.dim() == 3:
        return form, x.reshape(x.shape[0], -1)
    return form, (x.T if x.dim() == 2 else x[:, None])


def read(form: ValueForm, planes: Tensor) -> Tensor:
    """The tensor that a form describes, slowly."""
    if form.labels == "f":
        return planes[form.flat[:, 1]].reshape(-1)
    channels = form.planes.shape[:-1]
    x = planes[torch.as_tensor(form.flat[:, 1].copy())].reshape(*channels, planes.shape[1])
    if form.labels.count("p") == 2:
        x = x.reshape(*channels, *form.pixels)
    elif form.labels.count("p") == 0:
        x = x.reshape(*channels)
    source = [axis for axis, label in enumerate(form.labels) if label == "c"]
    source += [axis for axis, label in enumerate(form.labels) if label == "p"]
    return x.permute([source.index(axis) for axis in range(len(source))])


@given(st.permutations([1, 2, 3]))
def test_transposing_images_is_free_unless_rows_and_columns_change_places(order):
    x = torch.randn(2, 3, 4)
    form, planes = planes_of(x)
    if order.index(2) > order.index(3):
        with pytest.raises(UnsupportedError, match="rows and columns"):
            form.transposed([0, *order])
    else:
        made, wanted = form.transposed([0, *order]), x.permute([axis - 1 for axis in order])
        assert torch.equal(read(made, planes), wanted)
        assert made.axes == wanted.shape


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6))
def test_heads_of_tokens_and_back(heads, size, tokens):
    x = torch.randn(tokens, heads * size)
    form, planes = planes_of(x)
    split = form.reshaped((None, tokens, heads, size)).transposed([0, 2, 1, 3])
    expected = x.reshape(tokens, heads, size).transpose(0, 1)
    assert torch.equal(read(split, planes), expected)
    back = split.transposed([0, 2, 1, 3]).reshaped((None, tokens, heads * size))
    assert torch.equal(read(back, planes), x)


def test_images_are_read_whole_or_as_tokens():
    x = torch.randn(5, 3, 4)
    form, planes = planes_of(x)
    assert torch.equal(read(form, planes), x)
    tokens = form.reshaped((None, 5, 12)).transposed([0, 2, 1])
    assert tokens.labels == "pc"
    assert torch.equal(read(tokens, planes), x.flatten(1).T)
    flat = form.flattened()
    assert (flat.labels, flat.axes) == ("f", (60,))
    assert torch.equal(read(flat, planes), x.flatten())
    assert planes_of(torch.arange(6.0))[0].reshaped((None, 6, 1, 1)).axes == (6, 1, 1)
    assert storage.region_input((None, 7, 1, 1), 0).flattened().labels == "c"


@settings(max_examples=30)
@given(st.data())
def test_parts_sums_and_shuffles_of_channels(data):
    a, b = torch.randn(4, 2, 3), torch.randn(6, 2, 3)
    planes = torch.cat([a, b]).reshape(10, -1)
    one, _ = planes_of(a)
    other = storage.region_input((None, 6, 2, 3), 0)
    other.planes[..., 1] += 4
    both = storage.join_channels([one, other], 1)
    assert torch.equal(read(both, planes), torch.cat([a, b]))
    start = data.draw(st.integers(0, 9))
    stop = data.draw(st.integers(start, 10))
    assert torch.equal(read(both.sliced(1, start, stop), planes), torch.cat([a, b])[start:stop])
    groups = data.draw(st.sampled_from([1, 2, 5, 10]))
    shuffled = torch.channel_shuffle(torch.cat([a, b])[None], groups)[0]
    assert torch.equal(read(both.shuffled(groups), planes), shuffled)


@pytest.mark.parametrize(
    ("shape", "new"),
    [((4, 2, 3), (8, 3)), ((4, 2, 3), (4, 3, 2)), ((6, 4), (3, 2, 4)), ((4, 2, 3), (4, 2, 2))],
    ids=["channels with rows", "other rows", "split tokens", "other size"],
)
def test_shapes_that_cannot_be_views(shape, new):
    with pytest.raises(UnsupportedError):
        storage.region_input((None, *shape), 0).reshaped((None, *new))


def loaded(x: Tensor, storages: Storages) -> tuple[Rearranged, Tensor]:
    """A tensor without batch as a table, and the elements that the table's numbers mean."""
    blank = storage.region_input((None, *x.shape), 0)
    form = storage.region_input((None, *x.shape), storages.add_storage(blank.channels, blank.pixels, 0))
    elements = x.T.reshape(-1) if x.dim() == 2 else x.reshape(-1)
    return storage.as_rearranged(form, storages), elements


def read_table(value: Rearranged, elements: Tensor) -> Tensor:
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
            x, value = torch.cat([x, x], axis), storage.join_rearranged([value, value], axis + 1, storages)
        else:
            room = [int(one == axis) for one in range(x.dim())]
            sides = [side for one in room[::-1] for side in (one, 2 * one)]
            x = torch.nn.functional.pad(x, sides)
            value = value.padded(room, [2 * one for one in room])
        assert torch.equal(read_table(value, elements), x)


def test_what_views_put_back_is_a_list_of_planes_again() -> None:
    storages = Storages()
    value, _ = loaded(torch.randn(4, 6, 5), storages)
    there = value.reshaped([None, 4, 30]).transposed([0, 2, 1])
    form = storage.as_whole_planes(there, "pc", storages)
    assert form is not None
    assert form.pixels == (6, 5)
    assert form.flat[:, 1].tolist() == [0, 1, 2, 3]
    assert storage.as_whole_planes(there, "cp", storages) is None
    moved = storage.join_rearranged([there.sliced(1, 1, 30), there.sliced(1, 0, 1)], 1, storages)
    assert storage.as_whole_planes(moved, "pc", storages) is None


def test_concatenations_of_several_storages() -> None:
    storages = Storages()
    one, other = torch.randn(2, 3), torch.randn(4, 3)
    tables_of, elements = zip(*(loaded(x, storages) for x in (one, other)), strict=True)
    value = storage.join_rearranged(tables_of, 1, storages)
    assert torch.equal(read_table(value, torch.cat(elements)), torch.cat([one, other]))
    again = storage.join_rearranged([value, tables_of[0]], 1, storages)
    assert torch.equal(read_table(again, torch.cat(elements)), torch.cat([one, other, one]))


def new_image(storages: Storages, channels: int, pixels: tuple[int, int], born: int) -> ValueForm:
    return storage.new_value("cpp", [channels], pixels, storages.add_storage(channels, pixels, born))


_LIVES = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4), st.sampled_from([(4, 4), (2, 3)])), max_size=12)


@given(_LIVES)
def test_values_that_live_at_once_never_share_a_byte(lives):
    storages = Storages()
    made = []
    for born, (channels, life, pixels) in enumerate(lives):
        form = new_image(storages, channels, pixels, born)
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
            if geometry != other_geometry or (born <= other_dies and other_born <= dies):
                assert not offsets & others


def test_a_geometry_has_the_halo_of_its_neediest_reader_and_is_shared_by_what_is_added():
    storages = Storages()
    one, other, third = (new_image(storages, 3, (8, 8), born) for born in range(3))
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
        storages.record_read(new_image(storages, 3, (8, width), 0), 1, halo=1)
    for images, halos, wanted in ((1, True, [0, 0, 1]), (4, True, [1] * 3), (4, False, [0] * 3), (16, False, [1] * 3)):
        arena = PlanesArena(storages, images, 16, halos=halos)
        assert [geometry.halo for geometry in arena.geometries] == wanted, (images, halos)


@pytest.mark.parametrize(("images", "row"), [(4, 28), (16, 1), (32, 1)])
def test_single_pixels_behind_a_flattened_picture_lie_close_together(images: int, row: int) -> None:
    """A row of the picture apart, planes of one pixel would fill a few sets of the nearest cache, and no others."""
    storages = Storages()
    sizes = (1, (28, 28)), (300, (1, 1)), (100, (1, 1))
    storages.rows.join([storages.add_storage(channels, pixels, 0) for channels, pixels in sizes])
    geometries = PlanesArena(storages, images, 16).geometries
    assert [geometry.row for geometry in geometries] == [28, row, row]


def model_of(case: str) -> nn.Module:
    """A convolution, what a case makes of its output, and another convolution."""
    torch.manual_seed(0)
    layers = {"first": nn.Conv2d(3, 32, 3, 1, 1), "middle": nn.Conv2d(32, 32, 3, 1, 1), "last": nn.Conv2d(32, 8, 1)}
    return Of(lambda m, x: m.last(CASES[case](m, m.first(x).relu())), **layers).eval()


def gate(y: Tensor) -> Tensor:
    return y.mean((2, 3), keepdim=True).sigmoid()


CASES: dict[str, Callable[[Of, Tensor], Tensor]] = {
    "a gate": lambda m, y: y * gate(y),
    "a gated value that is read again": lambda m, y: m.middle(y * gate(y)) + y,
    "a gate, and a residual": lambda m, y: m.middle(m.middle(y * gate(y)).relu()) + y * 2,
    "a residual that is convolved": lambda m, y: m.middle(y) + y,
    "a sum with its own channels in another order": lambda m, y: y + torch.channel_shuffle(y, 4),
    "a sum with its own halves exchanged": lambda m, y: y + torch.cat([y[:, 16:], y[:, :16]], 1),
    "a value with itself": lambda m, y: (y + y) * y,
}


@pytest.mark.parametrize("layout", sample(["planes", "pixels"], 1))
@pytest.mark.parametrize("name", CASES)
def test_equals_torch(name: str, layout: str) -> None:
    model, x = model_of(name), torch.randn(16, 3, 9, 11)
    mask = tk.prune(model, 0.4, distribution="uniform")
    mask.apply_(model)
    fast = in_layout(tk.compile(model, mask, x, threads=1), layout)
    if layout == "pixels" and "its" in name.split():
        with pytest.raises(UnsupportedError, match="side by side"):
            fast(x)
        return
    with torch.no_grad():
        wanted = model.double()(x.double())
    for batch in (16, 3, 3):
        assert float((fast(x[:batch]) - wanted[:batch]).abs().max()) < 1e-5 * float(wanted.abs().max())


def test_a_gated_value_needs_no_memory_of_its_own() -> None:
    def arena(case: str) -> int:
        model, x = model_of(case), torch.randn(1, 3, 32, 32)
        fast = tk.compile(model, tk.prune(model, 0.4, distribution="uniform"), x, threads=1)
        (native,) = in_layout(fast, "planes")._natives
        fast(x)
        return max(program.arena for program in native.programs.values())

    plane = 32 * 32 * 32 * 4
    assert arena("a gated value that is read again") - arena("a gate") >= plane


def joined(m: Of, x: Tensor) -> Tensor:
    """An image of twice the size beside one that is there already, as on the way up in a U-Net."""
    return torch.cat([m.wide(x), m.up(m.small(x))], 1)


@pytest.mark.parametrize(
    ("function", "channels"),
    [(lambda m, x: m.last(joined(m, x)), [6]), (lambda m, x: m.last(joined(m, x).roll(1, 2)), [14])],
    ids=["computed with", "moved"],
)
def test_what_is_joined_to_planes_is_copied_alone(function: Any, channels: list[int]) -> None:
    layers = {"wide": nn.Conv2d(3, 8, 3, padding=1), "small": nn.Conv2d(3, 12, 3, stride=2, padding=1)}
    layers |= {"up": nn.ConvTranspose2d(12, 6, 2, stride=2), "last": nn.Conv2d(14, 5, 3, padding=1)}
    model, x = Of(function, **layers).eval(), torch.randn(2, 3, 8, 10)
    tasks = sketch_of(model, x).tasks
    assert [task.output.channels for task in tasks if task.kind == "gather"] == channels
    assert_exact(tk.compile(model, None, x), model, x, torch.randn(5, 3, 8, 10))
