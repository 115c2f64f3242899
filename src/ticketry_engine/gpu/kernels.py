"""Defines the Triton kernels, which only the operations in `program` call. Importing this module imports Triton.

    group_product   out[row, pixel] = act(sum of weight[row, k] * x[place[k], pixel] over columns k + bias + residual)
    layer_norm      mean and variance over the features of each token
    transpose       change of layout
    pool            max and average pooling

All kernels but `transpose` use the inner layout (see `tables`): channels outermost, the batch innermost. A retained
column (a channel at a tap) is then a contiguous run of images, so that vectors of 16 bytes are loaded when columns are
gathered. If channels were innermost, every gathered element would be a separate access. The gathered block is
multiplied on tensor cores.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def clamped(v):
    """Return v clamped to [0, 6].

    NaN stays NaN, as in torch. The GPU's minimum and maximum alone may replace NaN by a bound.
    """
    v = tl.where(v < 0, 0.0, v)
    return tl.where(v > 6, 6.0, v)


@triton.jit
def activate(v, ACT: tl.constexpr, SLOPE: tl.constexpr):
    """Apply the activation named `ACT` (such as "relu" or "gelu") to float32 numbers; "" is the identity.

    `SLOPE` is the factor of negative numbers in "leaky_relu".
    """
    if ACT == "relu":
        v = tl.where(v < 0, 0.0, v)
    elif ACT == "leaky_relu":
        v = tl.where(v > 0, v, v * SLOPE)
    elif ACT == "relu6":
        v = clamped(v)
    elif ACT == "hardsigmoid":
        v = clamped(v + 3.0) / 6.0
    elif ACT == "hardswish":
        v = v * (clamped(v + 3.0) / 6.0)
    elif ACT == "sigmoid":
        v = 1.0 / (1.0 + tl.exp(-v))
    elif ACT == "silu":
        v = v / (1.0 + tl.exp(-v))
    elif ACT == "tanh":
        v = 2.0 / (1.0 + tl.exp(-2.0 * v)) - 1.0
    elif ACT == "gelu":
        v = 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))
    elif ACT == "gelu_tanh":
        inner = 0.7978845608028654 * (v + 0.044715 * v * v * v)
        v = v / (1.0 + tl.exp(-2.0 * inner))
    else:
        tl.static_assert(ACT == "", "unknown activation")
    return v


_SIZES = ["eights", "height", "width", "out_height", "out_width", "stride_h", "stride_w", "count"]
"""Arguments for which Triton must not compile special variants, so that all layers of a network share one binary."""


@triton.jit(do_not_specialize=_SIZES)
def group_product(
    x,  # inner: [C, height, width, images]
    weight,  # per tile [TILE, columns rounded up to 64]
    bias,  # [O], of the type of x
    residual,  # as out
    out,  # inner: [O, out_height, out_width, images]
    tiles,  # [tiles, 3]: first column / 64, columns, first weight / 64
    rows,  # [tiles, TILE]: the output row; -1 after the tile's last row
    places,  # [columns]: input place of a column, see `tables.GroupTables`
    eights,  # padded images / 8, which tells the compiler that runs of images are whole vectors
    height,
    width,
    out_height,
    out_width,
    stride_h,
    stride_w,
    count,  # tiles
    TILE: tl.constexpr,  # rows of a tile
    PIXELS: tl.constexpr,  # outputs of a program
    COLUMNS: tl.constexpr,  # columns of a step
    TAPS: tl.constexpr,  # whether places include taps
    BORDER: tl.constexpr,  # whether a tap may be outside the image
    WIDE: tl.constexpr,  # 64-bit offsets
    ACT: tl.constexpr,
    SLOPE: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,  # input precision of float32 products
    WIDEN: tl.constexpr,  # multiply 16-bit numbers as float32: for Triton's interpreter
):
    """Compute ``act(x[columns] @ weight.T + bias + residual)`` for a tile of rows and `PIXELS` outputs of each row."""
    images = eights * 8
    outputs = out_height * out_width * images
    program = tl.program_id(0)
    # Tiles at the same outputs run next to each other, so that they gather the same inputs from the cache.
    tile = program % count
    m = (program // count) * PIXELS + tl.arange(0, PIXELS)
    inside = m < outputs
    n = m % images
    top = (m // images) // out_width * stride_h
    left = (m // images) % out_width * stride_w
    at = (top * width + left) * images + n
    x_c = height * width * images
    if WIDE:
        x_c = x_c.to(tl.int64)

    # Stored in units of 64, so that the compiler knows their alignment.
    first = tl.load(tiles + tile * 3) * 64
    columns = tl.load(tiles + tile * 3 + 1)
    start = tl.load(tiles + tile * 3 + 2).to(tl.int64) * 64
    padded = (columns + 63) // 64 * 64
    one = tl.arange(0, TILE)
    k = tl.arange(0, COLUMNS)
    weights = weight + start + one[:, None] * padded + k[None, :]

    total = tl.zeros((PIXELS, TILE), dtype=tl.float32)
    # Loaded one step ahead and carried by the loop, which keeps it out of Triton's pipeline of copies to shared memory:
    # versions before 3.9 would copy it once for each thread.
    place = tl.load(places + first + k)
    for step in range(tl.cdiv(columns, COLUMNS)):
        valid = (place >= 0)[:, None] & inside[None, :]
        if TAPS:
            down = (place << 16) >> 24
            right = (place << 24) >> 24
            offset = (place >> 16) * x_c + (down * width + right) * images
            if BORDER:
                y = down[:, None] + top[None, :]
                z = right[:, None] + left[None, :]
                valid = valid & (y >= 0) & (y < height) & (z >= 0) & (z < width)
        else:
            offset = place * x_c
        gathered = tl.load(x + (offset[:, None] + at[None, :]), mask=valid, other=0.0)
        block = tl.load(weights + step * COLUMNS)
        place = tl.load(places + first + (step + 1) * COLUMNS + k)
        if WIDEN:
            gathered, block = gathered.to(tl.float32), block.to(tl.float32)
        total = tl.dot(tl.trans(gathered), tl.trans(block), total, input_precision=PRECISION)

    target = tl.load(rows + tile * TILE + one)
    stored = (target >= 0)[None, :] & inside[:, None]
    if BIAS:
        total += tl.load(bias + target, mask=target >= 0, other=0.0).to(tl.float32)[None, :]
    if WIDE:
        target = target.to(tl.int64)
    where = m[:, None] + (target * outputs)[None, :]
    if RESIDUAL:
        total += tl.load(residual + where, mask=stored, other=0.0).to(tl.float32)
    total = activate(total, ACT, SLOPE)
    tl.store(out + where, total.to(out.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=["tokens"])
def layer_norm(
    x,  # outer: [tokens, width]
    weight,
    bias,
    out,  # inner: [width, eights * 8]
    eights,
    tokens,
    width,
    eps,
    AFFINE: tl.constexpr,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,  # a power of two, at least the width
    WIDE: tl.constexpr,
):
    """Normalise each token's features, then scale and shift them. Features are read once and stay in registers."""
    run = eights * 8
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    c = tl.arange(0, FEATURES)
    inside = (t < tokens)[None, :]
    # Padding is written too, so that all stores are whole vectors.
    stored = (c < width)[:, None] & (t < run)[None, :]
    if WIDE:
        t, run = t.to(tl.int64), run.to(tl.int64)
    valid = (c < width)[:, None] & inside
    v = tl.load(x + (t * width)[None, :] + c[:, None], mask=valid, other=0.0).to(tl.float32)
    v = tl.where(valid, v - (tl.sum(v, 0) / width)[None, :], 0.0)
    v *= (1.0 / tl.sqrt(tl.sum(v * v, 0) / width + eps))[None, :]
    if AFFINE:
        v *= tl.load(weight + c, mask=c < width, other=0.0).to(tl.float32)[:, None]
        v += tl.load(bias + c, mask=c < width, other=0.0).to(tl.float32)[:, None]
    tl.store(out + (c * run)[:, None] + t[None, :], v.to(out.dtype.element_ty), mask=stored)


@triton.jit
def transpose(
    x, out, rest, rest_x, rest_y, a, a_x, a_y, b, b_x, b_y, BLOCK: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Copy `x` to `out`, which may have other strides.

    Each Triton program copies a square block of the last two axes.
    """
    blocks = tl.cdiv(b, BLOCK)
    program = tl.program_id(0)
    j = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    program = program // blocks
    rows = tl.cdiv(a, BLOCK)
    i = (program % rows) * BLOCK + tl.arange(0, BLOCK)
    r = program // rows
    inside = (i < a)[:, None] & (j < b)[None, :]
    if WIDE:
        i, j, r = i.to(tl.int64), j.to(tl.int64), r.to(tl.int64)
    v = tl.load(x + r * rest_x + (i * a_x)[:, None] + (j * b_x)[None, :], mask=inside, other=0.0)
    tl.store(out + r * rest_y + (i * a_y)[:, None] + (j * b_y)[None, :], v, mask=inside)


@triton.jit(do_not_specialize=[*_SIZES[:-1], "pad_h", "pad_w", "dilation_h", "dilation_w", "kernel_h", "kernel_w"])
def pool(
    x,  # inner
    out,  # inner
    eights,  # images / 8, padded
    height,
    width,
    out_height,
    out_width,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    kernel_h,
    kernel_w,
    MODE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Pool images stored as [C, H, W, N]; each Triton program computes `BLOCK` outputs of one channel."""
    images = eights * 8
    outputs = out_height * out_width * images
    blocks = tl.cdiv(outputs, BLOCK)
    channel = tl.program_id(0) // blocks
    m = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = m < outputs
    n = m % images
    column = (m // images) % out_width
    row = (m // images) // out_width
    top, left = row * stride_h - pad_h, column * stride_w - pad_w
    if WIDE:
        n, channel = n.to(tl.int64), channel.to(tl.int64)
    if MODE == "max":
        total = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    else:
        total = tl.zeros([BLOCK], dtype=tl.float32)
    for down in range(kernel_h):
        for right in range(kernel_w):
            y, z = top + down * dilation_h, left + right * dilation_w
            valid = inside & (y >= 0) & (y < height) & (z >= 0) & (z < width)
            at = ((channel * height + y) * width + z) * images + n
            if MODE == "max":
                v = tl.load(x + at, mask=valid, other=float("-inf")).to(tl.float32)
                total = tl.where((v > total) | (v != v), v, total)  # NaN stays NaN, as in torch
            else:
                total += tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
    if MODE != "max":
        # torch clips the window at the padded image, and for "mean" then at the image.
        bottom = tl.minimum(top + kernel_h, height + pad_h)
        end = tl.minimum(left + kernel_w, width + pad_w)
        if MODE == "mean":
            down = tl.minimum(bottom, height) - tl.maximum(top, 0)
            right = tl.minimum(end, width) - tl.maximum(left, 0)
        else:
            down, right = bottom - top, end - left
        total = total / (down * right).to(tl.float32)
    tl.store(out + channel * outputs + m, total.to(out.dtype.element_ty), mask=inside)
