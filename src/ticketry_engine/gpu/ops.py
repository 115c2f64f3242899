"""Register the kernels as torch operations, so that torch.compile, torch.export and CUDA graphs can use them.

    ticketry::group_conv2d   act(conv2d(x) + bias + residual) with a weight in `tables.GroupTables`
    ticketry::group_linear   act(x weight^T + bias + residual) with a weight in `tables.GroupTables`
    ticketry::turn           a copy of x in the inner or the outer layout
    ticketry::inner_layer_norm, ticketry::inner_pool2d

Tensors have the shapes that torch's operations have; the inner layout (batch innermost) and the outer layout, which
torch's layers prefer, differ only in their strides (see `tables`). An input that is not in the inner layout is
converted first. On a CPU the operations run only if TRITON_INTERPRET=1 was set before this module was imported, for
tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ticketry_engine.errors import EngineError
from ticketry_engine.gpu import kernels
from ticketry_engine.gpu.plan import Config, choose
from ticketry_engine.gpu.tables import EIGHT, has_taps, inner_empty, is_inner, outer_empty, round_up
from ticketry_engine.ir.native_shapes import windows

_WIDE = 1 << 31
_TURN = 64
_POOL = 256
_NORMED = 1 << 14
"""Number of elements that a program of a layer norm keeps in registers: 64 in each thread."""
_WIDEST = 1 << 13

Indices = Sequence[int]


# -- convolution -------------------------------------------------------------------------------------------------------


@torch.library.custom_op("ticketry::group_conv2d", mutates_args=())
def group_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    tiles: Tensor,
    rows: Tensor,
    places: Tensor,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    act: str,
    slope: float,
) -> Tensor:
    """Return ``act(conv2d(x) + bias + residual)`` in the inner layout (batch innermost).

    Args:
        x: [N, C, H, W] in float16, bfloat16 or float32 (multiplied as TF32); all tensors have the same dtype.
        weight, tiles, rows, places: fields of `tables.GroupTables`, packed for this padding and dilation.
        outputs: number of output channels.
        act: an activation of `ir.native`, or "" for none; "leaky_relu" uses `slope`.
    """
    out = _conv_out(x, outputs, kernel, stride, padding, dilation)
    x, residual = _prepare_operands(x, weight, bias, residual, out)
    if not out.numel():
        return out
    taps = has_taps(kernel, padding)
    run = round_up(x.shape[0])
    product = _Product(x, weight, bias, residual, out, tiles, rows, places, act, slope)
    if not taps and tuple(stride) == (1, 1):  # the pixels of a channel are one contiguous run
        product.launch(_ImageShape(x.shape[2] * x.shape[3] * run))
    else:
        images = _ImageShape(run, x.shape[2:], out.shape[2:], stride)
        product.launch(images, taps=taps, border=max(padding) > 0)
    return out


def _conv_out(x: Tensor, outputs: int, kernel: Indices, stride: Indices, padding: Indices, dilation: Indices) -> Tensor:
    axes = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    return inner_empty((x.shape[0], outputs, *(windows(*axis) for axis in axes)), x)


@group_conv2d.register_fake
def _group_conv2d_fake(x: Tensor, *rest: Any) -> Tensor:
    outputs, kernel, stride, padding, dilation, _, _ = rest[6:]
    return _conv_out(x, outputs, kernel, stride, padding, dilation)


# -- linear ------------------------------------------------------------------------------------------------------------


@torch.library.custom_op("ticketry::group_linear", mutates_args=())
def group_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    tiles: Tensor,
    rows: Tensor,
    places: Tensor,
    outputs: int,
    act: str,
    slope: float,
) -> Tensor:
    """Return ``act(x weight^T + bias + residual)`` in the inner layout (batch innermost), for x [tokens, I].

    The arguments have the same meaning as in `group_conv2d`.
    """
    out = inner_empty((x.shape[0], outputs), x)
    x, residual = _prepare_operands(x, weight, bias, residual, out)
    if out.numel():
        product = _Product(x, weight, bias, residual, out, tiles, rows, places, act, slope)
        product.launch(_ImageShape(round_up(x.shape[0])))
    return out


@group_linear.register_fake
def _group_linear_fake(x: Tensor, *rest: Any) -> Tensor:
    outputs, _, _ = rest[6:]
    return inner_empty((x.shape[0], outputs), x)


# -- launching ---------------------------------------------------------------------------------------------------------


def _prepare_operands(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return x and the residual in the inner layout.

    Raises EngineError if an operand does not match x in dtype or device, or the residual does not match `out` in shape.
    """
    for name, one in {"weight": weight, "bias": bias, "residual": residual}.items():
        if one is not None and (one.dtype != x.dtype or one.device != x.device):
            raise EngineError(f"the {name} is {one.dtype} on {one.device}, but x is {x.dtype} on {x.device}")
    if residual is not None and residual.shape != out.shape:
        raise EngineError(f"the residual has the shape {list(residual.shape)}, not {list(out.shape)}")
    return _to_inner(x), None if residual is None else _to_inner(residual)


def _to_inner(x: Tensor) -> Tensor:
    return x if is_inner(x) else _change_layout(x, True)


@dataclass(frozen=True)
class _ImageShape:
    """The number of images, padded to a multiple of 8, and (height, width) before and after the layer."""

    run: int
    size: Indices = (1, 1)
    out_size: Indices = (1, 1)
    stride: Indices = (1, 1)


@dataclass(frozen=True, eq=False)
class _Product:
    """The operands and the output of one call of the group kernel."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None
    out: Tensor
    tiles: Tensor
    rows: Tensor
    places: Tensor
    act: str
    slope: float

    def launch(self, images: _ImageShape, *, taps: bool = False, border: bool = False) -> None:
        """Run the group kernel; `taps` and `border` are arguments of `kernels.group_product`."""
        x, out, (count, tile) = self.x, self.out, (self.tiles.shape[0], self.rows.shape[1])
        outputs = images.run * images.out_size[0] * images.out_size[1]
        bias, residual = (x if one is None else one for one in (self.bias, self.residual))
        arguments = (
            x, self.weight, bias, residual, out, self.tiles, self.rows, self.places, images.run // EIGHT,
            *images.size, *images.out_size, *images.stride, count,
        )  # fmt: skip
        constants = {
            "TILE": tile,
            "TAPS": taps,
            "BORDER": border,
            "WIDE": max(_storage_extent(x), _storage_extent(out)) >= _WIDE,
            "ACT": self.act,
            "SLOPE": self.slope,
            "BIAS": self.bias is not None,
            "RESIDUAL": self.residual is not None,
            "PRECISION": "tf32",
            # Triton's interpreter multiplies the bits of bfloat16 as integers.
            "WIDEN": x.dtype == torch.bfloat16 and x.device.type == "cpu",
        }

        def launch(config: Config) -> None:
            kernels.group_product[(count * triton.cdiv(outputs, config.pixels),)](
                *arguments,
                **constants,
                PIXELS=config.pixels,
                COLUMNS=config.columns,
                num_warps=config.warps,
                num_stages=config.stages,
            )

        key = (x.dtype, tile, count, self.weight.numel(), images.run, *images.size, *images.stride, taps, border)
        launch(choose(key, tile, outputs, count, x, launch))


def _storage_extent(x: Tensor) -> int:
    """Return how many elements the tensor spans in its storage: the largest element offset plus one."""
    return 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))


# -- layouts -----------------------------------------------------------------------------------------------------------


@torch.library.custom_op("ticketry::turn", mutates_args=())
def turn(x: Tensor, inner: bool) -> Tensor:
    """Return a copy of x [N, C, H, W] or [tokens, C] in the inner layout if `inner`, else in the outer layout."""
    return _change_layout(x, inner)


def _change_layout(x: Tensor, inner: bool) -> Tensor:
    out = _empty_in_layout(x, inner)
    if not out.numel():
        return out
    if x.dim() == 4 and x.shape[2] > 1 and x.stride(2) != x.shape[3] * x.stride(3):
        x = x.contiguous(memory_format=torch.channels_last)  # rows are not contiguous
    axes = _three_axes(x, out)
    programs = axes[0][0] * triton.cdiv(axes[1][0], _TURN) * triton.cdiv(axes[2][0], _TURN)
    wide = max(_storage_extent(x), _storage_extent(out)) >= _WIDE
    kernels.transpose[(programs,)](x, out, *(step for axis in axes for step in axis), BLOCK=_TURN, WIDE=wide)
    return out


def _empty_in_layout(x: Tensor, inner: bool) -> Tensor:
    return inner_empty(x.shape, x) if inner else outer_empty(x.shape, x)


turn.register_fake(_empty_in_layout)


def _three_axes(x: Tensor, out: Tensor) -> tuple[tuple[int, int, int], ...]:
    """Return (size, stride in x, stride in out) of three axes that cover the tensor; `transpose` tiles the last two."""
    if x.dim() == 2:
        return (1, 0, 0), (x.shape[1], x.stride(1), out.stride(1)), (x.shape[0], x.stride(0), out.stride(0))
    n, c, h, w = x.shape
    (x_n, x_c, _, x_p), (y_n, y_c, _, y_p) = x.stride(), out.stride()
    if (x_c, y_c) == (h * w * x_p, h * w * y_p):
        return (1, 0, 0), (c * h * w, x_p, y_p), (n, x_n, y_n)  # channels and pixels form one axis: NCHW
    return (h * w, x_p, y_p), (c, x_c, y_c), (n, x_n, y_n)


# -- norm --------------------------------------------------------------------------------------------------------------


@torch.library.custom_op("ticketry::inner_layer_norm", mutates_args=())
def inner_layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return the layer norm of x [tokens, C] in the inner layout, in which the group kernel's linear layers read it."""
    out = inner_empty(x.shape, x)
    if not out.numel():
        return out
    if x.shape[1] > _WIDEST:  # does not fit in registers
        normed: Tensor = turn(torch.layer_norm(x, x.shape[1:], weight, bias, eps), True)
        return normed
    x = x.contiguous()
    scale, shift = (x, x) if weight is None or bias is None else (weight, bias)
    wide = max(_storage_extent(x), _storage_extent(out)) >= _WIDE
    features = triton.next_power_of_2(x.shape[1])
    tokens = max(EIGHT, min(32, _NORMED // features))
    kernels.layer_norm[(triton.cdiv(x.shape[0], tokens),)](
        x, scale, shift, out, round_up(x.shape[0]) // EIGHT, *x.shape, eps,
        AFFINE=weight is not None, TOKENS=tokens, FEATURES=features, WIDE=wide,
        num_warps=max(1, min(16, tokens * features // 2048)),
    )  # fmt: skip
    return out


@inner_layer_norm.register_fake
def _inner_layer_norm_fake(x: Tensor, *rest: Any) -> Tensor:
    return inner_empty(x.shape, x)


# -- pooling -----------------------------------------------------------------------------------------------------------


@torch.library.custom_op("ticketry::inner_pool2d", mutates_args=())
def inner_pool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil: bool,
    mode: str,
) -> Tensor:
    """Return max or average pooling of x [N, C, H, W] in the inner layout, with torch's semantics.

    Args:
        mode: "max", "mean" (over elements inside the image) or "padded_mean" (padding counts as zeros).
    """
    out = _pool_out(x, kernel, stride, padding, dilation, ceil)
    if not out.numel():
        return out
    x = _to_inner(x)
    run = round_up(x.shape[0])
    grid = (out.shape[1] * triton.cdiv(out.shape[2] * out.shape[3] * run, _POOL),)
    kernels.pool[grid](
        x, out, run // EIGHT, *x.shape[2:], *out.shape[2:], *stride, *padding, *dilation, *kernel,
        MODE=mode, BLOCK=_POOL, WIDE=max(_storage_extent(x), _storage_extent(out)) >= _WIDE,
    )  # fmt: skip
    return out


@inner_pool2d.register_fake
def _inner_pool2d_fake(x: Tensor, *rest: Any) -> Tensor:
    return _pool_out(x, *rest[:-1])


def _pool_out(x: Tensor, kernel: Indices, stride: Indices, padding: Indices, dilation: Indices, ceil: bool) -> Tensor:
    axes = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    return inner_empty((*x.shape[:2], *(windows(*axis, ceil=ceil) for axis in axes)), x)
