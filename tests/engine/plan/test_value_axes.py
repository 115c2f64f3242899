"""Forms against torch: the planes a form names, read back as its axes say, are the tensor that torch makes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ticketry_engine.plan import storage
from ticketry_engine.plan.storage import UnsupportedError, ValueForm


def planes_of(x: torch.Tensor) -> tuple[ValueForm, torch.Tensor]:
    """A tensor without batch as it is loaded, and the planes [C, pixels] of its storage."""
    form = storage.region_input((None, *x.shape), 0)
    if x.dim() == 3:
        return form, x.reshape(x.shape[0], -1)
    return form, (x.T if x.dim() == 2 else x[:, None])


def read(form: ValueForm, planes: torch.Tensor) -> torch.Tensor:
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


@given(st.permutations([1, 2, 3]), st.integers(0, 1))
def test_transposing_images_is_free_unless_rows_and_columns_change_places(order, seed):
    x = torch.randn(2, 3, 4)
    form, planes = planes_of(x)
    if order.index(2) > order.index(3):
        with pytest.raises(UnsupportedError, match="rows and columns"):
            form.transposed([0, *order])
    else:
        made = form.transposed([0, *order])
        assert torch.equal(read(made, planes), x.permute([axis - 1 for axis in order]))
        assert made.axes == read(made, planes).shape


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
    gate = planes_of(torch.arange(6.0))[0].reshaped((None, 6, 1, 1))
    assert gate.axes == (6, 1, 1)
    x = torch.randn(3, 2, 2)
    form, planes = planes_of(x)
    flat = form.flattened()
    assert flat.labels == "f"
    assert flat.axes == (12,)
    assert torch.equal(read(flat, planes), x.flatten())
    pixel = storage.region_input((None, 7, 1, 1), 0).flattened()
    assert pixel.labels == "c"


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
