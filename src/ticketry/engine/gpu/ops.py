"""The kernels as operations of torch, so that torch.compile, torch.export and CUDA graphs see them.

    ticketry::group_conv2d   act(conv2d(x) + bias + residual) of a weight given as `tables.Tables`
    ticketry::group_linear   act(x weight^T + bias + residual) of such a weight
    ticketry::turn           x with its channels outermost in memory, its batch innermost
    ticketry::inner_pool2d   max or average pooling of such an x

Shapes are torch's own, [N, C, H, W] and [..., C]: *inner* is a matter of strides (`inner_empty`). All take inputs of any
strides, though only inner ones are gathered by vectors. On a CPU they run where TRITON_INTERPRET=1 was set before this
module was imported: slowly, for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import triton
from torch import Tensor

from ticketry.engine.gpu import kernels
from ticketry.engine.gpu.extent import is_inner, windows
from ticketry.engine.gpu.tuning import Config, choose
from ticketry.errors import EngineError

_WIDE = 1 << 31


def inner_empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised [N, C, H, W] that lies as [C, H, W, N], or a [..., C] that lies as [C, ...]."""
    shape = tuple(shape)
    if len(shape) == 4:
        turned = like.new_empty((*shape[1:], shape[0]), dtype=dtype)
        return turned.permute(3, 0, 1, 2)
    return like.new_empty((shape[-1], *shape[:-1]), dtype=dtype).movedim(0, -1)


def _outer_empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """channels_last, or contiguous for [..., C]."""
    shape = tuple(shape)
    if len(shape) == 4:
        return like.new_empty((shape[0], shape[2], shape[3], shape[1])).permute(0, 3, 1, 2)
    return like.new_empty(shape)


# -- convolution -------------------------------------------------------------------------------------------------------


@torch.library.custom_op("ticketry::group_conv2d", mutates_args=())
def group_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    tiles: Tensor,
    rows: Tensor,
    channels: Tensor,
    taps: Tensor,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    act: str,
    slope: float,
    inner: bool,
) -> Tensor:
    """act(conv2d(x) + bias + residual).

    Args:
        x: [N, C, H, W] of float16, bfloat16 or float32 (products of TF32), as `weight`, `bias` and `residual` are.
        weight, tiles, rows, channels, taps: of `tables.Tables`, made for this padding and dilation.
        outputs: output channels.
        act: as in `engine.infer`, "" for none; "leaky_relu" has the slope `slope`.
        inner: whether the result has its batch innermost; otherwise it is channels_last.
    """
    _check(x, weight, bias, residual)
    out = _conv_out(x, outputs, kernel, stride, padding, dilation, inner)
    if residual is not None and residual.shape != out.shape:
        raise EngineError(f"the residual has the shape {list(residual.shape)}, not {list(out.shape)}")
    if not out.numel():
        return out
    whole = tuple(kernel) == (1, 1) and tuple(stride) == (1, 1) and tuple(padding) == (0, 0)
    operands = (x, out) if residual is None else (x, out, residual)
    if whole and all(is_inner(one) for one in operands):
        # One run of pixels for each channel, whatever the images.
        size = (x.shape[0] * x.shape[2] * x.shape[3], 1, 1)
        strides = [(1, size[0], 0, 0)] * 3
        _launch(x, weight, bias, residual, out, tiles, rows, channels, taps, size, size, (1, 1), strides, act, slope)
        return out
    places = [(x.shape[0], *x.shape[2:]), (out.shape[0], *out.shape[2:])]
    strides = [tuple(one.stride()) for one in (x, out, out if residual is None else residual)]
    border = max(padding) > 0
    _launch(
        x, weight, bias, residual, out, tiles, rows, channels, taps, *places, stride, strides, act, slope,
        taps_read=not whole, border=border,
    )  # fmt: skip
    return out


@group_conv2d.register_fake
def _group_conv2d_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    tiles: Tensor,
    rows: Tensor,
    channels: Tensor,
    taps: Tensor,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    act: str,
    slope: float,
    inner: bool,
) -> Tensor:
    return _conv_out(x, outputs, kernel, stride, padding, dilation, inner)


def _conv_out(
    x: Tensor,
    outputs: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    inner: bool,
) -> Tensor:
    axes = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    shape = (x.shape[0], outputs, *(windows(*axis) for axis in axes))
    return inner_empty(shape, x) if inner else _outer_empty(shape, x)


# -- linear ------------------------------------------------------------------------------------------------------------


@torch.library.custom_op("ticketry::group_linear", mutates_args=())
def group_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    tiles: Tensor,
    rows: Tensor,
    channels: Tensor,
    taps: Tensor,
    outputs: int,
    act: str,
    slope: float,
    inner: bool,
) -> Tensor:
    """act(x weight^T + bias + residual) of x [..., I]: as `group_conv2d`."""
    _check(x, weight, bias, residual)
    shape = (*x.shape[:-1], outputs)
    out = _linear_out(x, outputs, inner)
    if residual is not None and residual.shape != out.shape:
        raise EngineError(f"the residual has the shape {list(residual.shape)}, not {list(out.shape)}")
    if not out.numel():
        return out
    tokens = prod(shape[:-1])
    x = _flat(x)
    other = None if residual is None else _flat(residual)
    made = _flat(out)
    size = (tokens, 1, 1)
    strides = [(one.stride(0), one.stride(1), 0, 0) for one in (x, made, made if other is None else other)]
    _launch(x, weight, bias, other, made, tiles, rows, channels, taps, size, size, (1, 1), strides, act, slope)
    return out


@group_linear.register_fake
def _group_linear_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    tiles: Tensor,
    rows: Tensor,
    channels: Tensor,
    taps: Tensor,
    outputs: int,
    act: str,
    slope: float,
    inner: bool,
) -> Tensor:
    return _linear_out(x, outputs, inner)


def _linear_out(x: Tensor, outputs: int, inner: bool) -> Tensor:
    shape = (*x.shape[:-1], outputs)
    # Two axes and four are told apart by is_inner: [N, C, H, W] is an image there, so tokens of rank 4 stay outer.
    return inner_empty(shape, x) if inner and len(shape) != 4 else x.new_empty(shape)


def _flat(x: Tensor) -> Tensor:
    """[..., C] as [tokens, C]; a copy only if its leading axes are not one run."""
    return x.flatten(0, -2) if x.dim() != 2 else x


# -- launching ---------------------------------------------------------------------------------------------------------


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> None:
    given = {"weight": weight, "bias": bias, "residual": residual}
    for name, one in given.items():
        if one is not None and (one.dtype != x.dtype or one.device != x.device):
            raise EngineError(f"the {name} is {one.dtype} on {one.device}, but x is {x.dtype} on {x.device}")


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    tiles: Tensor,
    rows: Tensor,
    channels: Tensor,
    taps: Tensor,
    size: Sequence[int],
    out_size: Sequence[int],
    stride: Sequence[int],
    strides: Sequence[Sequence[int]],
    act: str,
    slope: float,
    *,
    taps_read: bool = False,
    border: bool = False,
) -> None:
    """Run the group kernel; sizes are (images, height, width), strides (n, c, h, w) of x, out and residual."""
    outputs, count, tile = prod(out_size), tiles.shape[0], rows.shape[1]
    inner = strides[0][0] == 1 and strides[1][0] == 1
    # A launch's grid has at most 2^31 - 1 programs, which no tensor that fits into memory needs.
    arguments = (
        x, weight, bias if bias is not None else weight, residual if residual is not None else out, out,
        tiles, rows, channels, taps, outputs, *size, *out_size[1:], *stride,
        *(step for one in strides for step in one), count,
    )  # fmt: skip
    constants = {
        "TILE": tile,
        "INNER": inner,
        "TAPS": taps_read,
        "BORDER": border,
        "WIDE": max(_extent(one) for one in (x, out, *([] if residual is None else [residual]))) >= _WIDE,
        "ACT": act,
        "SLOPE": slope,
        "BIAS": bias is not None,
        "RESIDUAL": residual is not None,
        "PRECISION": "tf32",
    }

    def run(config: Config) -> None:
        grid = (count * triton.cdiv(outputs, config.pixels),)
        kernels.group_product[grid](
            *arguments,
            **constants,
            PIXELS=config.pixels,
            COLUMNS=config.columns,
            num_warps=config.warps,
            num_stages=config.stages,
        )

    key = (x.dtype, tile, count, weight.numel(), outputs, tuple(stride), inner, strides[1][0] == 1, taps_read, border)
    run(choose(key, tile, outputs, count, x, run))


def _extent(x: Tensor) -> int:
    """One more than the largest offset of an element."""
    return 1 + sum((size - 1) * abs(step) for size, step in zip(x.shape, x.stride(), strict=True))


# -- layouts -----------------------------------------------------------------------------------------------------------


@torch.library.custom_op("ticketry::turn", mutates_args=())
def turn(x: Tensor, inner: bool) -> Tensor:
    """A copy of x [N, C, H, W] or [..., C] with its batch innermost in memory (`inner`), or with its channels."""
    out = inner_empty(x.shape, x) if inner else _outer_empty(x.shape, x)
    if not out.numel():
        return out
    rest, a, b = _axes(x, out)
    grid = (rest[0] * triton.cdiv(a[0], _TURN) * triton.cdiv(b[0], _TURN),)
    wide = max(_extent(x), _extent(out)) >= _WIDE
    kernels.transpose[grid](x, out, *(step for one in (rest, a, b) for step in one), BLOCK=_TURN, WIDE=wide)
    return out


@turn.register_fake
def _turn_fake(x: Tensor, inner: bool) -> Tensor:
    return inner_empty(x.shape, x) if inner else _outer_empty(x.shape, x)


_TURN = 64


def _axes(x: Tensor, out: Tensor) -> tuple[tuple[int, int, int], ...]:
    """(size, step in x, step in out) of three axes that cover the tensor, two of which are tiled."""
    if x.dim() != 4:
        flat, made = _flat(x), _flat(out)
        (tokens, channels), near, far = flat.shape, flat.stride(), made.stride()
        return (1, 0, 0), (channels, near[1], far[1]), (tokens, near[0], far[0])
    n, c, h, w = x.shape
    (xn, xc, xh, xw), (yn, yc, yh, yw) = x.stride(), out.stride()
    if w > 1 and (xh != w * xw or yh != w * yw):  # rows that do not follow each other: as many small transposes
        x = x.contiguous(memory_format=torch.channels_last)
        xn, xc, xh, xw = x.stride()
    xp, yp = (xw, yw) if w > 1 else (xh, yh)
    if c > 1 and xc == h * w * xp and yc == h * w * yp:
        return (1, 0, 0), (c * h * w, xp, yp), (n, xn, yn)  # NCHW: channels and pixels are one run
    return (h * w, xp, yp), (c, xc, yc), (n, xn, yn)


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
    """Pooling of an inner x [N, C, H, W], as torch does it; the result is inner too.

    Args:
        mode: "max", "mean" (of the elements inside of the image) or "padded_mean" (padding counts as zeros).
    """
    x = x if is_inner(x) else turn(x, True)
    out = _pool_out(x, kernel, stride, padding, dilation, ceil)
    if not out.numel():
        return out
    images, outputs = x.shape[0], out.numel() // out.shape[1]
    block = 256
    grid = (out.shape[1] * triton.cdiv(outputs, block),)
    kernels.pool[grid](
        x, out, outputs, images, *x.shape[2:], *out.shape[2:], *stride, *padding, *dilation, *kernel,
        MODE=mode, BLOCK=block, WIDE=max(x.numel(), out.numel()) >= _WIDE,
    )  # fmt: skip
    return out


@inner_pool2d.register_fake
def _inner_pool2d_fake(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil: bool,
    mode: str,
) -> Tensor:
    return _pool_out(x, kernel, stride, padding, dilation, ceil)


def _pool_out(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil: bool,
) -> Tensor:
    axes = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    return inner_empty((*x.shape[:2], *(windows(*axis, ceil=ceil) for axis in axes)), x)

