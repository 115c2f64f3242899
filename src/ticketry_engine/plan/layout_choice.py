"""Chooses the memory layout of a region ("planes" or "pixels"), and the number of images in a block.

The layout is the one whose convolutions and linear layers take less time, by the estimates of the kernels.

A block has as many images as fill vectors, but no more than caches hold. In the planar layout, a vector holds one pixel
of 16 images, or several pixels of fewer images. The latter wastes lanes if kernels are larger than one pixel, because
the zeros between two rows (halo) also fill lanes. If, in addition, most rows share their columns with few others, only
values that no cache holds reduce a block of 16 images, and values larger than the L2 cache reduce a smaller block.
Groups of rows with equal columns run equally fast with any number of images, also in the channels-last layout. For
them, values should stay in the L2 cache, and weights that exceed the cache should be read for several images at once.
The bounds were measured (one core, 1 MB and 32 MB of cache) on VGG-16 and ResNet-18 at 32 and 64 pixels, and on
ResNet-50 at 224 pixels.
"""

from __future__ import annotations

from math import prod

from ticketry_engine.kernels.channels_last.geometry import FLOAT
from ticketry_engine.kernels.program import BlockSpec
from ticketry_engine.kernels.target import Target
from ticketry_engine.plan.arenas import PixelsArena, PlanesArena
from ticketry_engine.plan.emission import Arena, to_convolution
from ticketry_engine.plan.sketch import Sketch
from ticketry_engine.plan.storage import UnsupportedError

_WORTH_A_LOOK = 0.5
"""If a smaller share of the weights is in groups of at least one vector of rows, "planes" is chosen without estimates.

With groups of half a vector, the planar layout took 0.42 to 0.68 of the time of channels-last in seven networks (batch
1 to 64; AVX-512 and AVX2). With bfloat16 values the times are always estimated, because multiplying all weights in
bfloat16 is faster than multiplying the retained ones in float32, unless few weights are retained."""

_FEW_REGISTERS, _FEW_REGISTERS_AND_WAITING, _LARGE = 1.1, 1.2, 4 << 20
"""Factors that correct the estimate of the planar layout on processors with sixteen registers.

The first factor is the usual one. The second applies if a value of a block has more bytes than the third number, or if
most weights are in small groups of rows. With these factors, the chosen layout takes 1.02 times the time of the faster
one (geometric mean; at most 1.3) in 157 cases: twenty networks without a mask, with 0.7 and 0.9 of single weights
pruned, and with groups of 8, 16 and 32 rows (a Zen 1)."""

_OF_ONE_PIXEL = 0.8
"""Factor that corrects the estimate of the planar layout if nearly all kernels have one pixel and weights are pruned.

ViT-tiny and a wide transformer block took 0.83 to 1.01 of the time of channels-last, while the estimates were 1.04 to
1.24 (groups of 16 and 32 rows; 10, 20 and 35 % of the weights; batch 1 and 8; AVX-512; a Zen 5)."""

_WITHOUT_MASK = 1.2
"""Factor that corrects the estimate of the planar layout if few weights are pruned.

MobileNetV3, EfficientNet-B0 and ConvNeXt-atto took 1.12 to 1.16 of the time of channels-last with 16 or more images,
while the estimates were 0.86 to 0.92 (a Zen 5)."""

_NEARLY_DENSE = 0.6
"""If this share of multiplications is retained, channels-last kernels may be faster, although they multiply zeros.

The share counts multiplications, not weights, because the last linear layer of a small network has most of the weights
but takes little time."""


def choose_layout(sketch: Sketch, target: Target, images: int, element_bytes: int = FLOAT) -> str:
    """Return the memory layout that is estimated to be faster: "planes" (planar) or "pixels" (channels-last)."""
    small = share_of_weights_in_row_groups(sketch, target.lanes) < _WORTH_A_LOOK
    masked = _retained_share(sketch) < _NEARLY_DENSE
    if element_bytes == FLOAT and small and masked:
        return "planes"
    few = target.registers < 32

    def estimate_layout_time(layout: str) -> float:
        """Return the estimated time for one image in `layout`."""
        return estimate_nanoseconds(
            sketch,
            layout,
            target,
            images_per_pass(sketch, layout, images, target, element_bytes) if few else images,
            element_bytes,
        )

    try:
        pixels = estimate_layout_time("pixels")
    except UnsupportedError:
        return "planes"
    over = 1.0
    if few:
        over = (
            _FEW_REGISTERS_AND_WAITING
            if small or images * _largest_value_bytes(sketch, element_bytes) > _LARGE
            else _FEW_REGISTERS
        )
    elif not masked:
        over = _WITHOUT_MASK
    elif element_bytes == FLOAT and pointwise_share(sketch) > _NEARLY_ALL:
        over = _OF_ONE_PIXEL
    return "pixels" if pixels < over * estimate_layout_time("planes") else "planes"


def _largest_value_bytes(sketch: Sketch, element_bytes: int) -> int:
    """Return the size in bytes of the largest tensor that the tasks read or write, for one image."""
    return max((element_bytes * one.channels * prod(one.pixels) for one in sketch.storages.all), default=1)


def _most_output_pixels(sketch: Sketch) -> int:
    """Return the number of output pixels of the layer (convolution or linear) with the most output pixels."""
    return max((prod(task.output.pixels) for task, _ in sketch.layer_tasks()), default=1)


def _retained_share(sketch: Sketch) -> float:
    """Return the share of all multiplications in which the weight is retained."""
    kept = total = 0
    for task, node in sketch.layer_tasks():
        weight, positions = sketch.weight(node), prod(task.output.pixels)
        kept += positions * int(weight.count_nonzero())
        total += positions * weight.numel()
    return kept / max(1, total)


def build_arena(sketch: Sketch, layout: str, target: Target, images: int, element_bytes: int = FLOAT) -> Arena:
    """Return the memory of all tensors in the layout `layout`, which is "planes" (planar) or "pixels" (channels-last).

    In the planar layout, zeros (halos) surround the channels unless convolutions run faster by copying their input.
    `element_bytes` is the number of bytes of an element.
    """
    if layout == "pixels":
        return PixelsArena(sketch, images, target.lanes, element_bytes)
    return PlanesArena(
        sketch.storages, images, target.lanes, images >= target.lanes or not has_mostly_single_rows(sketch)
    )


def estimate_nanoseconds(sketch: Sketch, layout: str, target: Target, images: int, element_bytes: int = FLOAT) -> float:
    """Return the estimated time of all convolutions and linear layers for one image, in nanoseconds.

    Raise `UnsupportedError` if one of the tasks cannot run in the layout.
    """
    arena, spec, spent = build_arena(sketch, layout, target, images, element_bytes), BlockSpec(target, images), 0.0
    for task in sketch.tasks:
        arena.check_task(task)
    for task, _ in sketch.layer_tasks():
        x, y = arena.value_memory(task.inputs[0]), arena.value_memory(task.output)
        spent += arena.layout.estimate_cost(x, y, to_convolution(sketch, task, arena), spec)
    return spent if layout == "pixels" else spent / images  # planes' costs are of a block


# -- number of images of a block ---------------------------------------------------------------------------------------

MOST_IMAGES = 16
"""Maximum number of images of a block: the number that fills a vector of the widest registers."""

_MOST_OVER_PIXELS = 8

_PLANES_BYTES = 20 << 20
"""Maximum bytes of the largest value of a planar block; no cache would hold a larger value."""

_FEW_PLANES_BYTES = 2 << 20
"""Maximum bytes of the largest value of a planar block whose images do not fill a vector.

Pixels then fill vectors for any number of images, so a block may be small enough for the L2 cache. Measured with 2 MB
of L2 cache (Granite Rapids, batch 8): blocks of one image took 0.72 of the time of blocks of eight in ConvNeXt-atto at
224 pixels, and 0.76 in ResNet-18 at 64 pixels. At 32 pixels, eight images are best in VGG-16, and as fast as two in
ResNet-18. With 512 KB (Zen 1), blocks of two took 1.18 of the time of blocks of four in VGG-11, and blocks of one 1.03
in ResNet-18 at 64 pixels.

If most layers are pointwise, the bound is the size of the L2 cache. Measured with a fifth of the weights (2 MB, AVX2):
blocks of two took 0.80 of the time of blocks of sixteen in ViT-tiny; blocks of one took 0.76 of the time of blocks of
eight in a wide transformer block, and 0.81 in ConvNeXt-atto. With 512 KB, blocks of one took 0.70 (28 x 28 pixels) and
0.84 (14 x 14 pixels) of the time of blocks that fill 2 MB."""

_FEWEST_POSITIONS = 8
"""Minimum number of vectors that the pixels of a small block fill.

With 7 x 7 pixels, blocks of one image took 1.27 of the time of blocks of eight."""

_FEWEST_OF_LARGE_KERNELS = 2
"""Number of images of a block if no cache holds its values.

In ResNet-50 at 224 pixels, blocks of two took 0.88 of the time of blocks of one, and 0.81 with AVX2."""

_GROUPS_BYTES, _GROUPS_BYTES_OF_MANY_WEIGHTS = 5 << 18, 5 << 20
"""Maximum bytes of the largest value of a block if rows are grouped or the layout is channels-last.

The second number applies if the weights have more than `_MANY_WEIGHTS` bytes."""

_MANY_WEIGHTS = 10 << 20

_FEW_ROWS = 4
"""If at least this number of rows have equal columns, vectors of pixels are as fast as vectors of images."""

_MOSTLY, _NEARLY_ALL = 0.5, 0.75


def images_per_thread(batch: int, threads: int) -> int:
    """Return the number of images per thread, rounded up to a power of two; at most `MOST_IMAGES`."""
    each = -(-batch // max(1, threads))
    return 1 << (max(1, min(each, MOST_IMAGES)) - 1).bit_length()


def images_per_pass(sketch: Sketch, layout: str, images: int, target: Target, element_bytes: int = FLOAT) -> int:
    """Return the number of images that a thread computes at a time.

    `layout` is "planes" or "pixels", `images` the number of images of the thread.
    """
    largest = _largest_value_bytes(sketch, element_bytes)
    if layout == "planes" and has_mostly_single_rows(sketch):
        single = pointwise_share(sketch) > _NEARLY_ALL
        if images * largest > _PLANES_BYTES and not single:
            return min(images, _FEWEST_OF_LARGE_KERNELS)
        if images >= target.lanes and not single:
            return images
        bound, fewest = _FEW_PLANES_BYTES, 1.0
        if single:
            bound, fewest = target.second, max(1.0, _FEWEST_POSITIONS * target.lanes / _most_output_pixels(sketch))
        while images >= 2 * fewest and images * largest > bound:
            images //= 2
        return images
    bound = (
        _GROUPS_BYTES_OF_MANY_WEIGHTS
        if _retained_weight_bytes(sketch, element_bytes) > _MANY_WEIGHTS
        else _GROUPS_BYTES
    )
    if layout == "pixels":
        images = min(images, _MOST_OVER_PIXELS)
    while images > 1 and images * largest > bound:
        images //= 2
    return images


def share_of_weights_in_row_groups(sketch: Sketch, least_rows: int) -> float:
    """Return the share of retained weights that are in groups of at least `least_rows` rows with equal columns."""
    inside = total = 0
    for _, node in sketch.layer_tasks():
        for height, width in sketch.row_group_sizes(node):
            total += height * width
            inside += height * width * (height >= least_rows)
    return inside / max(1, total)


def has_mostly_single_rows(sketch: Sketch) -> bool:
    """Return whether most retained weights are in groups of fewer than 4 rows with equal columns."""
    return share_of_weights_in_row_groups(sketch, _FEW_ROWS) < _MOSTLY


def pointwise_share(sketch: Sketch) -> float:
    """Return the share of retained multiplications in 1 x 1 convolutions and linear layers."""
    inside = total = 0
    for task, node in sketch.layer_tasks():
        weight = sketch.weight(node)
        spent = int(weight.count_nonzero()) * prod(task.output.pixels)
        total += spent
        inside += spent * (prod(weight.shape[2:]) == 1)
    return inside / max(1, total)


def _retained_weight_bytes(sketch: Sketch, element_bytes: int) -> int:
    """Return the size of all retained weights in bytes, with `element_bytes` bytes per weight."""
    return sum(element_bytes * int(sketch.weight(node).count_nonzero()) for _, node in sketch.layer_tasks())
