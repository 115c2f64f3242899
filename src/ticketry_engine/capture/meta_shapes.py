"""Computes the output shapes of common operations on the meta device.

Torch's own shape rules load torch's compiler, which takes a second. A rule of this module returns None for arguments
that it does not support; the recorder then uses torch's rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ticketry_engine.ir.native_shapes import window_count

_aten = torch.ops.aten


def _pointwise_output(x: Tensor, *_: Any) -> Tensor | None:
    """Return the output of an operation on `x` that keeps shape and dtype; None if `x` is not floating-point."""
    return _empty_without_gaps(x) if x.is_floating_point() else None


def _empty_without_gaps(x: Tensor) -> Tensor:
    """Return a new tensor with the shape of `x` and the same order of axes in memory, but without gaps."""
    strides = [0] * x.dim()
    step = 1
    for axis in sorted(range(x.dim()), key=lambda axis: (x.stride(axis), -axis)):
        strides[axis] = step
        step *= max(x.shape[axis], 1)
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device)


def _in_place_unary_output(x: Tensor, *_: Any) -> Tensor | None:
    """Return `x`, which an in-place operation on `x` returns; None if `x` is not floating-point."""
    return x if x.is_floating_point() else None


def _binary_output(x: Any, y: Any) -> Tensor | None:
    """Return the output of an operation on two tensors of the same dtype, or on a tensor and a number."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return None
    if not isinstance(y, (int, float, Tensor)):
        return None
    if isinstance(y, (int, float)) or (y.dim() == 0 and y.is_floating_point() and x.dim()):
        return _empty_without_gaps(x)
    if x.dtype != y.dtype:
        return None
    if x.shape == y.shape:
        return _empty_without_gaps(x)
    shape = _broadcast_shape(x.shape, y.shape)
    return None if shape is None else x.new_empty(shape)


def _broadcast_shape(one: Sequence[int], other: Sequence[int]) -> list[int] | None:
    longer, shorter = sorted((tuple(one), tuple(other)), key=len, reverse=True)
    shorter = (1,) * (len(longer) - len(shorter)) + shorter
    if any(a != b and 1 not in (a, b) for a, b in zip(longer, shorter, strict=True)):
        return None
    return [b if a == 1 else a for a, b in zip(longer, shorter, strict=True)]


def _in_place_binary_output(x: Any, y: Any) -> Tensor | None:
    made = _binary_output(x, y)
    return x if made is not None and made.shape == x.shape else None


def _linear_output(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if x.dim() == 0 or weight.dim() != 2 or x.dtype != weight.dtype or x.shape[-1] != weight.shape[1]:
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _conv_output(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Tensor | None:
    if x.dim() != 4 or x.dtype != weight.dtype or x.shape[1] != groups * weight.shape[1] or weight.shape[0] % groups:
        return None
    if bias is not None and (bias.dtype != x.dtype or bias.shape != weight.shape[:1]):
        return None
    each = zip(x.shape[2:], weight.shape[2:], _as_pair(stride), _as_pair(padding), _as_pair(dilation), strict=True)
    sizes = [window_count(*one) for one in each]
    if min(sizes) < 1:
        return None
    kind = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return torch.empty((x.shape[0], weight.shape[0], *sizes), dtype=x.dtype, device=x.device, memory_format=kind)


def _as_pair(given: Sequence[int]) -> Sequence[int]:
    return list(given) * 2 if len(given) == 1 else given


def _adaptive_pool_output(x: Tensor, size: list[int]) -> Tensor | None:
    return x.new_empty((*x.shape[:-2], *size)) if x.dim() == 4 and x.is_contiguous() else None


def _pool_output(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil: bool = False,
) -> Tensor | None:
    if x.dim() != 4 or not x.is_floating_point() or not x.is_contiguous():
        return None
    each = list(zip(x.shape[2:], *map(_as_pair, (kernel, stride or kernel, padding, dilation)), strict=True))
    if any(2 * pad > width for _, width, _, pad, _ in each):
        return None
    sizes = [window_count(*one, ceil=ceil) for one in each]
    return x.new_empty((*x.shape[:2], *sizes)) if min(sizes) >= 1 else None


def _reduction_output(x: Tensor, dims: list[int] | None, keep: bool = False) -> Tensor | None:
    if not x.is_floating_point() or not dims:
        return None
    gone = {dim % x.dim() for dim in dims if -x.dim() <= dim < x.dim()}
    if len(gone) < len(dims):
        return None
    shape = [(1 if index in gone else size) for index, size in enumerate(x.shape) if keep or index not in gone]
    return x.new_empty(shape)


def _cat_output(tensors: list[Tensor], dim: int = 0) -> Tensor | None:
    first, *rest = tensors
    if not -first.dim() <= dim < first.dim():
        return None
    dim = dim % first.dim()
    for other in rest:
        if other.dtype != first.dtype or other.dim() != first.dim():
            return None
        if any(a != b for index, (a, b) in enumerate(zip(first.shape, other.shape, strict=True)) if index != dim):
            return None
    if any(each.dim() == 4 and not each.is_contiguous() for each in tensors):
        return None  # whose channels may come last
    return first.new_empty([*first.shape[:dim], sum(each.shape[dim] for each in tensors), *first.shape[dim + 1 :]])


def _stack_output(tensors: list[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    if any(each.shape != first.shape or each.dtype != first.dtype for each in tensors):
        return None
    if not -first.dim() - 1 <= dim <= first.dim():
        return None
    dim = dim % (first.dim() + 1)
    return first.new_empty([*first.shape[:dim], len(tensors), *first.shape[dim:]])


def _matmul_output(x: Tensor, y: Tensor) -> Tensor | None:
    if x.dim() < 2 or y.dim() < 2 or x.dtype != y.dtype or x.shape[-1] != y.shape[-2]:
        return None
    shape = _broadcast_shape(x.shape[:-2], y.shape[:-2])
    return None if shape is None else x.new_empty([*shape, x.shape[-2], y.shape[-1]])


def _recurrent_output(x: Tensor, states: Any, *settings: Any) -> tuple[Tensor, ...] | None:
    """Return empty tensors with the shapes of a recurrent layer's outputs, without running its time steps.

    `states` and `settings` are the other arguments of torch's operation. Return None to let torch compute the outputs.
    """
    several = list(states) if isinstance(states, (list, tuple)) else [states]
    bidirectional, batch_first = settings[-2:]
    if x.dim() != 3 or any(each.dim() != 3 or each.dtype != x.dtype for each in several) or len(settings) != 7:
        return None
    width = several[0].shape[-1] * (2 if bidirectional else 1)
    examples = x.shape[0] if batch_first else x.shape[1]
    layers = settings[2] * (2 if bidirectional else 1)
    if any(each.shape[:2] != (layers, examples) for each in several):
        return None
    time_first = (x.shape[1], x.shape[0]) if batch_first else tuple(x.shape[:2])
    made = x.new_empty((*time_first, width))
    return (made.transpose(0, 1) if batch_first else made, *(x.new_empty(each.shape) for each in several))


def _attention_output(queries: Tensor, keys: Tensor, values: Tensor, *_: Any) -> Tensor | None:
    if len({each.dtype for each in (queries, keys, values)}) > 1 or queries.dim() != 4:
        return None
    if queries.shape[:2] != keys.shape[:2] or keys.shape[:-1] != values.shape[:-1]:
        return None
    return queries.new_empty((*queries.shape[:-1], values.shape[-1]))


SHAPES: Mapping[torch._ops.OpOverload, Callable[..., Tensor | tuple[Tensor, ...] | None]] = {
    **dict.fromkeys(
        (
            *(_aten.batch_norm.default, _aten.layer_norm.default, _aten.group_norm.default, _aten.rms_norm.default),
            *(_aten.relu.default, _aten.relu6.default, _aten.gelu.default, _aten.silu.default, _aten.elu.default),
            *(_aten.hardswish.default, _aten.hardsigmoid.default, _aten.hardtanh.default, _aten.leaky_relu.default),
            *(_aten.sigmoid.default, _aten.tanh.default, _aten.exp.default, _aten.rsqrt.default, _aten.neg.default),
            *(_aten.sin.default, _aten.cos.default),
        ),
        _pointwise_output,
    ),
    **dict.fromkeys(
        (
            *(_aten.relu_.default, _aten.relu6_.default, _aten.silu_.default, _aten.elu_.default),
            *(_aten.hardswish_.default, _aten.hardsigmoid_.default, _aten.hardtanh_.default),
            *(_aten.leaky_relu_.default, _aten.sigmoid_.default, _aten.tanh_.default),
        ),
        _in_place_unary_output,
    ),
    **dict.fromkeys((_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor), _binary_output),
    **dict.fromkeys(
        (_aten.add_.Tensor, _aten.sub_.Tensor, _aten.mul_.Tensor, _aten.div_.Tensor), _in_place_binary_output
    ),
    _aten.conv2d.default: _conv_output,
    _aten.linear.default: _linear_output,
    _aten.adaptive_avg_pool2d.default: _adaptive_pool_output,
    **dict.fromkeys((_aten.mean.dim, _aten.sum.dim_IntList), _reduction_output),
    _aten.max_pool2d.default: _pool_output,
    _aten.avg_pool2d.default: lambda x, kernel, stride=(), padding=(0,), ceil=False, *_: _pool_output(
        x, kernel, stride, padding, (1,), ceil
    ),
    _aten.cat.default: _cat_output,
    _aten.stack.default: _stack_output,
    _aten.matmul.default: _matmul_output,
    _aten.scaled_dot_product_attention.default: _attention_output,
    **dict.fromkeys((_aten.gru.input, _aten.lstm.input, _aten.rnn_tanh.input, _aten.rnn_relu.input), _recurrent_output),
}
"""Operation -> function from its positional arguments to its output on the meta device, or to None."""
