"""Operations on values of both layouts against numpy and torch in float64, on the same numbers."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch.nn import functional as F

from arenas import guarded, outside
from engine.kernels.layouts import ACTS, KERNELS, Array, Block, Setting, as_stored, assert_close, settings_of
from ticketry.errors import EngineError
from ticketry_engine.kernels.bfloat import round_to_bfloat16
from ticketry_engine.kernels.channels_last import ChannelsLastGeometry, ChannelsLastValue
from ticketry_engine.kernels.copies import plan_copies
from ticketry_engine.kernels.planar import Geometry, Planes
from ticketry_engine.kernels.program import Bias, BlockSpec
from ticketry_engine.kernels.target import target
from ticketry_engine.kernels.window import Window

LAYOUTS = pytest.mark.parametrize("layout", KERNELS)
SHAPES = st.tuples(
    st.one_of(st.integers(1, 9), st.integers(1, 90)),
    st.integers(1, 5),
    st.one_of(st.integers(1, 9), st.integers(10, 70)),
)


def numbers(setting: Setting, shape: tuple[int, ...]) -> Array:
    return setting.rng.standard_normal((setting.images, *shape)).astype(np.float32)


@LAYOUTS
@given(data=st.data(), operation=st.sampled_from(["add", "mul", "affine", "apply_activation", "copy"]), shape=SHAPES)
def test_each_number(layout: str, data: st.DataObject, operation: str, shape: tuple[int, ...]) -> None:
    setting = data.draw(settings_of(layout))
    act = data.draw(st.sampled_from(list(ACTS))) if operation != "copy" else None
    inputs = [numbers(setting, shape)]
    if operation in ("add", "mul"):
        ones = data.draw(
            st.sampled_from([(0, 0, 0), (0, 1, 1)]) if layout == "planar" else st.tuples(*[st.booleans()] * 3)
        )
        inputs.append(numbers(setting, tuple(1 if one else size for one, size in zip(ones, shape, strict=True))))
    scale, shift = setting.rng.standard_normal((2, shape[0])).astype(np.float32)
    build, truth = {
        "add": (lambda b, x, z, y: b.kernels.elementwise("add", x, z, y, act), lambda x, z: x + z),
        "mul": (lambda b, x, z, y: b.kernels.elementwise("mul", x, z, y, act), lambda x, z: x * z),
        "affine": (
            lambda b, x, y: b.kernels.affine(x, y, scale, shift, act),
            lambda x: x * torch.from_numpy(scale)[:, None, None] + torch.from_numpy(shift)[:, None, None],
        ),
        "apply_activation": (lambda b, x, y: b.kernels.apply_activation(act, x, y), lambda x: x),
        "copy": (lambda b, x, y: b.kernels.copy(x, y), lambda x: x),
    }[operation]
    exact = 0 if operation == "copy" else 1e-5
    setting.check(inputs, build, lambda *x: ACTS[act](truth(*x)), tolerance=exact, in_place=operation != "copy")


def test_infinite_values_do_not_reach_a_planes_halo() -> None:
    """A halo that took one over would spoil every later run."""
    block = Block("planar", images=1)
    x, scale = np.random.default_rng(0).standard_normal((1, 2, 3, 3)), np.full((1, 2, 1, 1), np.inf)
    a, b = block.place((2, 3, 3), 1, data=x), block.place((2, 1, 1), 1, data=scale)
    assert np.array_equal(block.run(block.kernels.elementwise("mul", a, b, a), a), x * np.inf)


@LAYOUTS
@given(
    data=st.data(),
    operation=st.sampled_from(["layer_norm", "rms_norm", "softmax"]),
    shape=st.tuples(st.integers(1, 200), st.integers(1, 3), st.one_of(st.integers(1, 9), st.integers(1, 80))),
    scale=st.sampled_from([0.1, 10.0]),
    weighted=st.booleans(),
)
def test_over_channels(layout, data, operation, shape, scale, weighted) -> None:
    setting = data.draw(settings_of(layout))
    x = (scale * numbers(setting, shape) + 3).astype(np.float32)
    weight, bias = setting.rng.standard_normal((2, shape[0])).astype(np.float32) if weighted else (None, None)
    factor, shift = (torch.from_numpy(one).double() if weighted else None for one in (weight, bias))
    build, truth = {
        "softmax": (lambda b, x, y: b.kernels.softmax(x, y), lambda x: x.softmax(-1)),
        "rms_norm": (
            lambda b, x, y: b.kernels.rms_norm(x, y, weight, 1e-3),
            lambda x: torch.rms_norm(x, shape[:1], factor, 1e-3),
        ),
        "layer_norm": (
            lambda b, x, y: b.kernels.layer_norm(x, y, weight, bias, 1e-3),
            lambda x: F.layer_norm(x, shape[:1], factor, shift, 1e-3),
        ),
    }[operation]
    tolerance = 1e-4 if operation == "layer_norm" and scale < 1 else 1e-5
    if operation == "softmax" and max(setting.items) != min(setting.items):
        tolerance = 2**-8  # exponentials are stored, and rounded, before they are divided
    setting.check([x], build, lambda x: truth(x.movedim(1, -1)).movedim(-1, 1), tolerance=tolerance, in_place=True)


@pytest.mark.parametrize("images", [1, 16])
def test_a_mean_far_from_zero_costs_layer_norm_of_planes_no_digits(images: int) -> None:
    x = np.random.default_rng(0).standard_normal((images, 40, 3, 9)).astype(np.float32) + 3000
    block = Block("planar", images=images)
    a, y = block.place((40, 3, 9), 1, data=x), block.place((40, 3, 9))
    expected = F.layer_norm(torch.from_numpy(x).double().movedim(1, -1), (40,), eps=1e-5).movedim(-1, 1)
    assert_close(block.run(block.kernels.layer_norm(a, y, None, None, 1e-5), y), expected)


@LAYOUTS
def test_a_softmax_of_what_is_minus_infinity_is_zero(layout: str) -> None:
    x, block = np.array([0.0, -np.inf, 1.0], np.float32).reshape(1, 3, 1, 1), Block(layout)
    a, y = block.place((3, 1, 1), data=x), block.place((3, 1, 1))
    np.testing.assert_allclose(
        block.run(block.kernels.softmax(a, y), y), torch.from_numpy(x).softmax(1), rtol=1e-6, atol=1e-30
    )


# -- pools -------------------------------------------------------------------------------------------------------------

PAIR = st.tuples(st.integers(1, 5), st.integers(1, 5))


@LAYOUTS
@given(
    data=st.data(),
    kind=st.sampled_from(["max", "mean", "mean without padding"]),
    shape=st.tuples(st.integers(1, 30), st.integers(1, 14), st.integers(1, 14)),
    kernel=PAIR,
    stride=PAIR,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    ceil=st.booleans(),
)
def test_windows_of_pools(layout, data, kind, shape, kernel, stride, padding, dilation, ceil) -> None:
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
    dilation = dilation if kind == "max" else (1, 1)
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    assume(shape[1] >= reach[0] and shape[2] >= reach[1])
    setting, window = data.draw(settings_of(layout)), Window(kernel, stride, padding, dilation)
    if kind == "max":
        build = lambda b, x, y: b.kernels.max_pool(x, y, window)  # noqa: E731
        truth = lambda x: F.max_pool2d(x, kernel, stride, padding, dilation, ceil)  # noqa: E731
    else:
        counted = kind == "mean"
        build = lambda b, x, y: b.kernels.avg_pool(x, y, window, counted)  # noqa: E731
        truth = lambda x: F.avg_pool2d(x, kernel, stride, padding, ceil, counted)  # noqa: E731
    setting.check([numbers(setting, shape)], build, truth, tolerance=0 if kind == "max" else 1e-5)


@LAYOUTS
@given(data=st.data(), shape=SHAPES)
def test_the_mean_of_all_pixels(layout: str, data: st.DataObject, shape: tuple[int, ...]) -> None:
    setting = data.draw(settings_of(layout))
    setting.check(
        [numbers(setting, shape) + 3],
        lambda b, x, y: b.kernels.global_mean(x, y),
        lambda x: x.mean((2, 3), keepdim=True),
        tolerance=1e-6,
    )


@LAYOUTS
def test_the_largest_of_numbers_with_nan_is_nan(layout: str) -> None:
    data, block = torch.zeros(1, 1, 2, 4), Block(layout)
    data[0, 0, 0, 1], data[0, 0, 1, 2] = torch.nan, -torch.inf
    x, y = block.place((1, 2, 4), data=data.numpy()), block.place((1, 1, 2))
    result = block.run(block.kernels.max_pool(x, y, Window((2, 2), (2, 2))), y)
    assert np.array_equal(result, F.max_pool2d(data, 2).numpy(), equal_nan=True)


# -- attention ---------------------------------------------------------------------------------------------------------

TOKENS = st.one_of(st.integers(1, 15), st.integers(16, 40))


@LAYOUTS
@given(
    data=st.data(),
    heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 3]),
    biases=st.sampled_from([0, 1, 2]),
    size=st.one_of(st.integers(1, 9), st.integers(1, 40)),
    queries=TOKENS,
    keys=TOKENS,
    causal=st.booleans(),
    scale=st.sampled_from([0.3, 30.0]),
)
def test_attention(layout, data, heads, group, biases, size, queries, keys, causal, scale) -> None:
    setting = data.draw(settings_of(layout))
    queries, rows, rng = keys if causal else queries, group * heads, setting.rng
    scale = scale if layout == "planar" else size**-0.5
    inputs = [numbers(setting, (count * size, 1, n)) for count, n in ((rows, queries), (heads, keys), (heads, keys))]
    values, mask = None, torch.zeros(1, queries, keys).double()
    if biases:  # none, one for all heads, one for each
        values = rng.standard_normal((1 if biases == 1 else rows, queries, keys)).astype(np.float32)
        values[:, :, 4::5] = -np.inf  # every fifth key is hidden
        mask = torch.from_numpy(values).double()
    if causal:
        mask = mask.masked_fill(torch.ones(queries, keys).triu(1).bool(), float("-inf"))
    bias = None if values is None else Bias.from_array("bias", values)

    def truth(*parts: torch.Tensor) -> torch.Tensor:
        q, k, v = (one.squeeze(2).unflatten(1, (-1, size)).transpose(2, 3) for one in parts)
        made = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
        return made.transpose(2, 3).flatten(1, 2).unsqueeze(2)

    setting.check(
        inputs,
        lambda b, q, k, v, y: b.kernels.attention(q, k, v, y, rows, scale, causal, b.spec, bias),
        truth,
        tolerance=2e-6 * scale + 1e-5,
        one_format=True,
        halos=layout == "planar",
    )


@LAYOUTS
@given(
    data=st.data(),
    windows=st.integers(1, 4),
    heads=st.integers(1, 3),
    biases=st.sampled_from([None, (1, 1), (1, 3), (4, 1), (4, 3)]),
    size=st.integers(1, 20),
    queries=st.integers(1, 20),
    keys=st.integers(1, 50),
)
def test_attention_in_windows(layout, data, windows, heads, biases, size, queries, keys) -> None:
    setting, bias = data.draw(settings_of(layout)), None
    if biases is not None:
        shape = (min(biases[0], windows), min(biases[1], heads), queries, keys)
        bias = setting.rng.standard_normal(shape).astype(np.float32)
    held = None if bias is None else Bias.from_array("bias", bias)

    def truth(*parts: torch.Tensor) -> torch.Tensor:
        parts = tuple(one.unflatten(1, (heads, -1)).permute(0, 3, 1, 4, 2) for one in parts)
        mask = None if bias is None else torch.from_numpy(bias).double()
        made = F.scaled_dot_product_attention(*parts, attn_mask=mask, scale=0.3)
        return made.permute(0, 2, 4, 1, 3).flatten(1, 2)

    setting.check(
        [numbers(setting, (heads * size, windows, n)) for n in (queries, keys, keys)],
        lambda b, q, k, v, y: b.kernels.attention(q, k, v, y, heads, 0.3, False, b.spec, held, True),
        truth,
        one_format=True,
    )


@LAYOUTS
@given(
    data=st.data(),
    heads=st.integers(1, 4),
    size=st.integers(2, 70),
    tokens=st.integers(1, 20),
    part=st.floats(0.01, 1.0),
)
def test_rotary(layout, data, heads, size, tokens, part) -> None:
    setting, half = data.draw(settings_of(layout)), max(1, int(part * size) // 2)
    angle = numbers(setting, (size, 1, tokens))[:1].repeat(setting.images, axis=0)

    def truth(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        head = x.unflatten(1, (-1, size))
        partner = torch.cat([head[:, :, half : 2 * half], head[:, :, :half], head[:, :, 2 * half :]], 2)
        return (head * cos[:, None] + partner * sin[:, None]).flatten(1, 2)

    setting.check(
        [numbers(setting, (heads * size, 1, tokens)), angle, 1 - angle],
        lambda b, x, cos, sin, y: b.kernels.rotary(x, cos, sin, y, half),
        truth,
        one_format=True,
        halos=False,
    )


# -- moves -------------------------------------------------------------------------------------------------------------


@LAYOUTS
@given(data=st.data(), shape=SHAPES)
def test_a_constant(layout: str, data: st.DataObject, shape: tuple[int, ...]) -> None:
    setting = data.draw(settings_of(layout))
    constant, block = (
        setting.rng.standard_normal(shape).astype(np.float32),
        Block(layout, setting.where, setting.images),
    )
    y = block.place(shape, setting.halos[0], setting.gaps[0], setting.beside, setting.items[0])
    result = block.run(block.kernels.store_constant(constant, y), y)
    assert np.array_equal(result, np.broadcast_to(as_stored(constant, setting.items[0]), result.shape))


KINDS = ("rows", "exchanged", "anyhow", "padded", "of two")


def sources_of(kind: str, channels: int, positions: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Of each element of [channels, positions] its source (-1: zero) and its element there, of two such values."""
    element = np.arange(channels * positions).reshape(channels, positions)
    source = np.zeros_like(element)
    if kind == "rows":
        element = np.roll(element, int(rng.integers(positions)), axis=1)
    elif kind == "exchanged":
        element = element.reshape(positions, channels).T
    elif kind == "anyhow":
        element = rng.permutation(channels * positions).reshape(channels, positions)
    elif kind == "padded":
        source[:, : positions // 2] = -1
        source[0, -1] = -1
    else:
        source = np.broadcast_to(rng.integers(-1, 2, positions), source.shape).copy()
    return source, element


@LAYOUTS
@given(
    data=st.data(),
    kind=st.sampled_from(KINDS),
    shape=st.tuples(st.integers(1, 37), st.integers(1, 4), st.integers(1, 7)),
)
def test_gather(layout: str, data: st.DataObject, kind: str, shape: tuple[int, ...]) -> None:
    setting = data.draw(settings_of(layout))
    source, element = sources_of(kind, shape[0], shape[1] * shape[2], setting.rng)

    def truth(*values: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(setting.images, *source.shape).double()
        for number, value in enumerate(values):
            found[:, source == number] = value.flatten(1)[:, element[source == number]]
        return found.reshape(setting.images, *shape)

    inputs = [numbers(setting, shape), numbers(setting, shape) + 1]
    build = lambda b, x, z, y: b.kernels.gather_elements([x, z], y, (source, element))  # noqa: E731
    setting.check(inputs, build, truth, tolerance=0, one_format=True)


def test_whole_rows_are_runs_and_exchanged_axes_single_elements() -> None:
    source, element = sources_of("rows", 48, 6, np.random.default_rng(1))
    goals = np.arange(48) * 4 + np.arange(6)[:, None] * 256
    [(_, starts, runs, length)] = plan_copies(
        goals, goals.reshape(-1)[(element % 6 * 48 + element // 6).T], source.T, 4
    )
    assert (len(starts), len(runs), length) == (6, 1, 48)
    [(_, starts, runs, length)] = plan_copies(goals, np.arange(6)[:, None] * 4 + np.arange(48) * 64, source.T, 4)
    assert (len(starts), len(runs), length) == (6, 48, 1)


ORDERS = list(permutations(range(4)))
SIZES = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 33]))


@LAYOUTS
@given(
    data=st.data(),
    shape=st.tuples(SIZES, st.integers(1, 5), SIZES),
    batch=st.integers(1, 40),
    orders=st.tuples(st.sampled_from(ORDERS), st.sampled_from(ORDERS)),
    spread=st.lists(st.sampled_from([1, 1, 1, 2, 3]), min_size=4, max_size=4),
    late=st.booleans(),
)
def test_tensors_of_any_strides_go_in_and_come_out(layout, data, shape, batch, orders, spread, late) -> None:
    """Their memory lies between pages that fault when they are touched."""
    setting = data.draw(settings_of(layout))
    values = torch.randn(batch, *shape)
    source = guarded(values, orders[0], spread, late)
    wanted = guarded(torch.zeros_like(values), orders[1], spread[::-1], not late)
    block = Block(layout, setting.where, setting.images)
    value = block.place(shape, setting.halos[0], setting.gaps[0], setting.beside, setting.items[0])
    ops = [
        *block.kernels.load_tensor(0, source.stride(), value),
        *block.kernels.store_tensor(1, wanted.stride(), value),
    ]
    held = block.run(ops, value, threads=setting.threads, external=[source, wanted], images=batch)
    last = batch - (batch - 1) // setting.images * setting.images
    stored = as_stored(values.numpy(), setting.items[0])
    assert np.array_equal(held[:last], stored[batch - last :])
    assert np.array_equal(wanted.numpy(), stored)
    assert torch.equal(source, values)
    assert outside(wanted).isnan().all()


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), SIZES), halo=st.integers(0, 2), order=st.sampled_from(ORDERS)
)
@example(shape=(3, 2, 21), halo=0, order=(0, 2, 3, 1))
def test_images_of_few_channels_go_into_channels_that_lie_apart(shape, halo, order) -> None:
    block, values = Block("channels_last", images=2), torch.randn(2, *shape)
    geometry = ChannelsLastGeometry.build_channel_planes(shape[1], shape[2], shape[0], halo)
    value, source = ChannelsLastValue(geometry, block.size), guarded(values, order, [1] * 4, True)
    block.size += geometry.bytes(2) + 64
    found = block.run(block.kernels.load_tensor(0, source.stride(), value), value, external=[source])
    assert np.array_equal(found, values.numpy())
    with pytest.raises(EngineError, match="only be read by convolutions"):
        block.kernels.store_tensor(1, source.stride(), value)


def test_numbers_are_rounded_to_the_nearest_even() -> None:
    one, step = np.float32(1), np.float32(2**-7)
    given_ = np.array([one, one + step, one + step / 2, one + 1.5 * step, -one - 0.51 * step, 0, np.inf], np.float32)
    expected = np.array([1, 1 + step, 1, 1 + 2 * step, -1 - step, 0, np.inf], np.float32)
    assert np.array_equal((round_to_bfloat16(given_).astype(np.uint32) << 16).view(np.float32), expected)
    assert np.isnan((round_to_bfloat16(np.array([np.nan], np.float32)).astype(np.uint32) << 16).view(np.float32)).all()


# -- errors ------------------------------------------------------------------------------------------------------------


def _pixels(*shape: int, halo: int = 0) -> ChannelsLastValue:
    return ChannelsLastValue(ChannelsLastGeometry.build(*shape, halo), 0)


def _planes(height: int, width: int, channels: int, halo: int = 0) -> Planes:
    return Planes.from_offset(Geometry.build(height, width, halo, 1), channels, 0)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("same shape", lambda k, s: k.copy(_pixels(4, 4, 8), _pixels(4, 4, 3))),
        (
            "cannot be broadcast",
            lambda k, s: k.elementwise("add", _pixels(4, 4, 8), _pixels(4, 4, 3), _pixels(4, 4, 8)),
        ),
        ("3 values for 8", lambda k, s: k.affine(_pixels(4, 4, 8), _pixels(4, 4, 8), np.ones(3), np.ones(8))),
        ("shape", lambda k, s: k.softmax(_pixels(1, 1, 3), _pixels(1, 2, 3))),
        ("2 values for 3", lambda k, s: k.layer_norm(_pixels(1, 1, 3), _pixels(1, 1, 3), np.ones(2))),
        ("last of 4", lambda k, s: k.max_pool(_pixels(4, 4, 8), _pixels(3, 2, 8), Window((2, 2), (2, 2)))),
        ("heads of 5", lambda k, s: k.rotary(_pixels(1, 4, 12), *[_pixels(1, 4, 5)] * 2, _pixels(1, 4, 12), 2)),
        ("5 heads", lambda k, s: k.attention(*[_pixels(1, 4, 12)] * 4, 5, 1.0, False, s)),
        ("not match", lambda k, s: k.attention(*[_pixels(1, 4, 12), _pixels(1, 5, 12)] * 2, 4, 1.0, False, s)),
        ("halo", lambda k, s: k.attention(*[_pixels(1, 4, 12, halo=1)] * 4, 4, 1.0, False, s)),
        ("at most 4096", lambda k, s: k.attention(*[_pixels(1, 4097, 4)] * 4, 4, 1.0, False, s)),
        ("add, mul", lambda k, s: KERNELS["planar"].elementwise("pow", *[_planes(1, 1, 1)] * 3)),
        ("4 heads", lambda k, s: KERNELS["planar"].attention(*[_planes(1, 4, 6)] * 4, 4, 1.0, False, s)),
        ("rows of 4", lambda k, s: KERNELS["planar"].attention(*[_planes(2, 4, 6, 1)] * 4, 2, 1.0, False, s)),
    ],
)
def test_values_that_do_not_fit_are_refused(message: str, call: Any) -> None:
    with pytest.raises(EngineError, match=message):
        call(KERNELS["channels_last"], BlockSpec(target()))
