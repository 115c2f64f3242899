"""Rules for shapes give what torch gives: with numbers, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ticketry_engine.capture.meta_shapes import SHAPES

aten = torch.ops.aten
sizes = st.integers(1, 4)
shapes = st.lists(sizes, min_size=1, max_size=4)


def check(op: Any, *args: Any) -> None:
    """A rule agrees with the operation itself, where it says anything."""
    made = SHAPES[op](*tree_map_only(Tensor, lambda x: x.to("meta"), args))
    try:
        wanted = op(*tree_map_only(Tensor, torch.clone, args))
    except (RuntimeError, IndexError):
        assert made is None, f"{op} fails, but its rule gives {made}"
        return
    if made is None:
        return
    assert (made.shape, made.dtype, made.device.type) == (wanted.shape, wanted.dtype, "meta")


def tensor(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(tuple(shape), dtype=dtype)


def having(*rules: str) -> list[Any]:
    return [op for op, rule in SHAPES.items() if rule.__name__ in rules]


ONE = having("_pointwise_output", "_in_place_unary_output")
EACH, TWO = [op for op in ONE if "norm" not in str(op)], having("_binary_output", "_in_place_binary_output")
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool]


@given(st.sampled_from(EACH), shapes, st.sampled_from(TYPES[:4]), st.booleans())
def test_operations_on_each_number(op, shape, dtype, swapped):
    x = tensor(shape, dtype)
    check(op, x.transpose(0, -1) if swapped else x)


@given(st.sampled_from(TWO), shapes, st.sampled_from(TYPES[:4]), st.data())
def test_operations_on_two_tensors(op, shape, dtype, data):
    other = data.draw(
        st.one_of(
            st.just(2), st.just(0.5), st.just(1j), shapes.map(tensor),
            st.sampled_from(TYPES).map(lambda each: tensor(shape, each)), st.just(torch.tensor(2.0)),
            st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)).map(
                lambda ones: tensor([1 if one else size for one, size in zip(ones, shape, strict=True)])
            ),
        )
    )  # fmt: skip
    check(op, tensor(shape, dtype), other)


@given(shapes, sizes, sizes, st.sampled_from([None, "right", "wrong"]))
def test_linear(shape, inputs, outputs, bias):
    bias = None if bias is None else tensor([outputs if bias == "right" else outputs + 1])
    check(aten.linear.default, tensor([*shape, inputs]), tensor([outputs, inputs]), bias)
    check(aten.linear.default, tensor([*shape, inputs + 1]), tensor([outputs, inputs]), bias)


@given(
    *(sizes, st.integers(1, 2), sizes, sizes, st.integers(3, 9), st.integers(1, 3)),
    *(st.integers(1, 3), st.integers(0, 2), st.integers(1, 3), st.booleans(), st.booleans()),
)
def test_convolutions(batch, groups, inputs, outputs, side, kernel, stride, padding, dilation, bias, both):
    x = tensor([batch, groups * inputs, side, side + 1])
    weight = tensor([groups * outputs, inputs, kernel, kernel])
    each = [[step, step] if both else [step] for step in (stride, padding, dilation)]
    check(aten.conv2d.default, x, weight, tensor([groups * outputs]) if bias else None, *each, groups)
    check(aten.conv2d.default, x, tensor([outputs, inputs + 1, kernel, kernel]), None, *each, groups)
    check(aten.conv2d.default, x, weight)


@given(shapes, st.data(), st.booleans(), st.sampled_from(TYPES))
def test_sums_and_means(shape, data, keep, dtype):
    dims = data.draw(st.lists(st.integers(-len(shape), len(shape)), max_size=3))
    check(aten.mean.dim, tensor(shape, dtype), dims, keep)
    check(aten.sum.dim_IntList, tensor(shape, dtype), dims, keep)


@given(shapes, st.lists(sizes, min_size=1, max_size=3), st.data())
def test_joining(shape, parts, data):
    dim = data.draw(st.integers(-len(shape), len(shape)))
    other = data.draw(st.integers(0, len(shape) - 1))
    tensors = [tensor([part if axis == other else size for axis, size in enumerate(shape)]) for part in parts]
    check(aten.cat.default, tensors, dim)
    check(aten.cat.default, [*tensors, tensor([0])], dim)
    check(aten.stack.default, [tensors[0]] * len(parts), dim)
    check(aten.stack.default, [tensors[0], tensor([*shape, 1])], dim)


@given(
    *(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3)),
    *(st.booleans(), st.booleans(), st.booleans()),
)
def test_pooling(side, kernel, stride, padding, dilation, ceil, both, default):
    x = tensor([2, 3, side, side + 2])
    steps = [] if default else [stride, stride + 1] if both else [stride]
    check(aten.max_pool2d.default, x, [kernel], steps, [padding], [dilation], ceil)
    check(aten.avg_pool2d.default, x, [kernel, kernel], steps, [padding], ceil, True, None)
    check(aten.max_pool2d.default, x, [kernel])
    check(aten.avg_pool2d.default, x, [kernel], [stride])
    check(aten.adaptive_avg_pool2d.default, x, [kernel, stride])
    check(aten.adaptive_avg_pool2d.default, x[0], [kernel, stride])


@given(shapes, shapes, sizes, sizes, sizes, st.booleans())
def test_products(one, other, rows, inner, columns, alike):
    check(aten.matmul.default, tensor([*one, rows, inner]), tensor([*(one if alike else other), inner, columns]))
    check(aten.matmul.default, tensor([*one, rows, inner]), tensor([inner, columns]))
    check(aten.matmul.default, tensor([rows, inner]), tensor([inner + 1, columns]))
    check(aten.matmul.default, tensor([rows, inner]), tensor([inner]))


@given(sizes, sizes, sizes, sizes, sizes, sizes, st.booleans())
def test_attention(batch, heads, queries, keys, width, values, alone):
    shape = [batch, heads]
    given_keys = tensor([*([1, heads] if alone else shape), keys, width])
    check(
        aten.scaled_dot_product_attention.default,
        tensor([*shape, queries, width]), given_keys, tensor([*shape, keys, values]),
    )  # fmt: skip


@given(st.lists(sizes, min_size=3, max_size=4))
def test_norms(shape):
    x, channels = tensor(shape), tensor(shape[1:2])
    check(aten.batch_norm.default, x, channels, channels, channels, channels, False, 0.1, 1e-5, False)
    check(aten.layer_norm.default, x, shape[-1:], tensor(shape[-1:]), None, 1e-5, False)
    check(aten.group_norm.default, x, 1, channels, channels, 1e-5, False)
    check(aten.rms_norm.default, x, shape[-1:], tensor(shape[-1:]))


@pytest.mark.parametrize("op", [*ONE, *TWO], ids=str)
def test_integers_are_left_to_torch(op):
    x = torch.empty(2, 3, 4, 4, dtype=torch.int64, device="meta")
    assert SHAPES[op](*[x] * (2 if op in TWO else 1)) is None
