"""Chooses the layout of a region, and how many images go through it together.

The layout is the one whose products are estimated to take less time, by the kernels' own estimates.

Images are as many as fill vectors, no more than caches hold. Over planes a vector holds 16 images, and fewer fill it
with positions, which costs where rows share no columns and kernels are larger than a pixel, for the halo between two
rows fills vectors too; so there only values that no cache holds make blocks of 16 smaller, and those that the second
one does not hold make smaller ones smaller still. Kernels of one pixel need no halo. Rows that share theirs run as
fast with any number, over pixels too: what counts is that values stay in the second cache, and that weights which do
not are not fetched for every image. The bounds are measured (one core, 1 MB and 32 MB of cache): VGG-16 and
ResNet-18 at 32 and 64 pixels, ResNet-50 at 224.
"""

from __future__ import annotations

from math import prod

from ticketry_engine.kernels.channels_last.geometry import FLOAT
from ticketry_engine.kernels.program import BlockSpec
from ticketry_engine.kernels.target import Target
from ticketry_engine.plan.arenas import PixelsArena, PlanesArena
from ticketry_engine.plan.emission import Arena, convolution
from ticketry_engine.plan.sketch import Sketch
from ticketry_engine.plan.value_axes import UnsupportedError

_WORTH_A_LOOK = 0.5
"""Share of the weights in groups of a vector and more from which the exact cost over pixels is worth its time: of half
a vector planes took 0.42 to 0.68 of it in seven networks (batch 1 to 64; AVX-512 and AVX2).

In bf16 it always is: unless few weights are kept, all of them there are faster than those kept in float32."""

_FEW_REGISTERS, _FEW_REGISTERS_AND_WAITING, _LARGE = 1.1, 1.2, 4 << 20
"""By what the estimate of planes is too small with sixteen registers; and where values of a block have more bytes than
the last number, or most weights are in rows alone. What is chosen by them takes 1.02 of the faster layout's time on
the mean (geometric), at most 1.3: twenty networks, without a mask, with 0.7 and 0.9 of single weights, with groups of
8, 16 and 32 rows, 157 cases (a Zen 1)."""

_OF_ONE_PIXEL = 0.8
"""By what the estimate of planes is too large, beside that of pixels, where nearly all products are of single pixels
and masks take some: estimated at 1.04 to 1.24 of pixels, ViT-tiny and a wide transformer's block took 0.83 to 1.01 of
their time (groups of 16 and 32 rows, 10, 20 and 35 % of the weights, batch 1 and 8, AVX-512; a Zen 5)."""

_WITHOUT_MASK = 1.2
"""By what the estimate of planes is too small where masks take little: estimated at 0.86 to 0.92 of pixels with 16
images and more, MobileNetV3, EfficientNet-B0 and ConvNeXt-atto took 1.12 to 1.16 of their time (a Zen 5)."""

_NEARLY_DENSE = 0.6
"""Share of the multiplications kept from which all of them, zeros too, may be faster over pixels. Not of the weights: a
last linear layer has most of these in a small network, and takes hardly any time."""


def choose(sketch: Sketch, target: Target, images: int, item: int = FLOAT) -> str:
    """Return the faster layout, "planes" or "pixels", for blocks of `images` images and values of `item` bytes."""
    small, masked = share_in_groups(sketch, target.lanes) < _WORTH_A_LOOK, _retained_share(sketch) < _NEARLY_DENSE
    if item == FLOAT and small and masked:
        return "planes"
    few = target.registers < 32

    def estimate(layout: str) -> float:
        """Estimate the time of a layout, with few registers for the block size that will be used."""
        return cost(
            sketch, layout, target, images_per_block(sketch, layout, images, target, item) if few else images, item
        )

    try:
        pixels = estimate("pixels")
    except UnsupportedError:
        return "planes"
    over = 1.0
    if few:
        over = (
            _FEW_REGISTERS_AND_WAITING
            if small or images * _largest_value_bytes(sketch, item) > _LARGE
            else _FEW_REGISTERS
        )
    elif not masked:
        over = _WITHOUT_MASK
    elif item == FLOAT and pointwise_share(sketch) > _NEARLY_ALL:
        over = _OF_ONE_PIXEL
    return "pixels" if pixels < over * estimate("planes") else "planes"


def _largest_value_bytes(sketch: Sketch, item: int) -> int:
    """Return the bytes of an image's largest value."""
    return max((item * one.channels * prod(one.pixels) for one in sketch.storages.all), default=1)


def _most_positions(sketch: Sketch) -> int:
    """Return the maximum number of output pixels of a product."""
    return max((prod(task.output.pixels) for task, _ in sketch.products()), default=1)


def _retained_share(sketch: Sketch) -> float:
    """Return the share of multiplications with retained weights."""
    kept = total = 0
    for task, node in sketch.products():
        weight, positions = sketch.weight(node), prod(task.output.pixels)
        kept += positions * int(weight.count_nonzero())
        total += positions * weight.numel()
    return kept / max(1, total)


def arena_of(sketch: Sketch, layout: str, target: Target, images: int, item: int = FLOAT) -> Arena:
    """Return the storage of a region's values. Planes have halos, unless convolutions run faster by unfolding."""
    if layout == "pixels":
        return PixelsArena(sketch, images, target.lanes, item)
    return PlanesArena(sketch.storages, images, target.lanes, images >= target.lanes or not mostly_single_rows(sketch))


def cost(sketch: Sketch, layout: str, target: Target, images: int, item: int = FLOAT) -> float:
    """Return the estimated nanoseconds of a region's products for one image.

    Raises:
        UnsupportedError: if the layout cannot run the region.
    """
    arena, spec, spent = arena_of(sketch, layout, target, images, item), BlockSpec(target, images), 0.0
    for task in sketch.tasks:
        arena.check(task)
    for task, _ in sketch.products():
        x, y = arena.value(task.inputs[0]), arena.value(task.output)
        spent += arena.layout.cost(x, y, convolution(sketch, task, arena), spec)
    return spent if layout == "pixels" else spent / images  # planes' costs are of a block


# -- how many images go through a region together ----------------------------------------------------------------------

MOST_IMAGES = 16
"""Images of a block over planes: as many as fill a vector of the widest registers."""

_MOST_OVER_PIXELS = 8

_PLANES_BYTES = 20 << 20
"""Maximum bytes of the largest value of a block: every reader fetches a larger one from memory."""

_FEW_PLANES_BYTES = 2 << 20
"""`_PLANES_BYTES` for images that do not fill a vector: positions fill it equally well, so values may stay in L2.

Measured (Granite Rapids, 2 MB, batch 8): one image at a time took 0.72 of the time of eight in ConvNeXt-atto at 224
pixels, and 0.76 in ResNet-18 at 64. At 32 pixels eight are best in VGG-16, and similar to two in ResNet-18. With 512 KB
(Zen 1) two took 1.18 of the time of four in VGG-11, and one 1.03 in ResNet-18 at 64.

If most products are pointwise, the bound is the L2 cache itself. Measured with a fifth of the weights (2 MB, AVX2): two
images took 0.80 of the time of sixteen in ViT-tiny; one took 0.76 and 0.81 of eight in a wide transformer block and in
ConvNeXt-atto. With 512 KB one took 0.70 and 0.84 of the time of what 2 MB hold, at 28 x 28 and 14 x 14 pixels."""

_FEWEST_POSITIONS = 8
"""Vectors of positions that these keep: of 7 x 7 pixels each one image took 1.27 of eight's time."""

_FEWEST_OF_LARGE_KERNELS = 2
"""Images of values that no cache holds: in ResNet-50 at 224 pixels two took 0.88 of one's time, 0.81 with AVX2."""

_GROUPS_BYTES, _GROUPS_BYTES_OF_MANY_WEIGHTS = 5 << 18, 5 << 20
"""Maximum bytes of the largest value with grouped rows, also channels-last; the second if weights exceed
`_MANY_WEIGHTS`."""

_MANY_WEIGHTS = 10 << 20

_FEW_ROWS = 4
"""Together, from which on vectors of positions run like those of images."""

_MOSTLY, _NEARLY_ALL = 0.5, 0.75


def images_per_thread(batch: int, threads: int) -> int:
    """Return the smallest power of two that holds a thread's share of a batch, at most `MOST_IMAGES`."""
    each = -(-batch // max(1, threads))
    return 1 << (max(1, min(each, MOST_IMAGES)) - 1).bit_length()


def images_per_block(sketch: Sketch, layout: str, images: int, target: Target, item: int = FLOAT) -> int:
    """Return the images per block if each thread has `images`, for values of `item` bytes."""
    largest = _largest_value_bytes(sketch, item)
    if layout == "planes" and mostly_single_rows(sketch):
        single = pointwise_share(sketch) > _NEARLY_ALL
        if images * largest > _PLANES_BYTES and not single:
            return min(images, _FEWEST_OF_LARGE_KERNELS)
        if images >= target.lanes and not single:
            return images
        bound, fewest = _FEW_PLANES_BYTES, 1.0
        if single:
            bound, fewest = target.second, max(1.0, _FEWEST_POSITIONS * target.lanes / _most_positions(sketch))
        while images >= 2 * fewest and images * largest > bound:
            images //= 2
        return images
    bound = _GROUPS_BYTES_OF_MANY_WEIGHTS if _weight_bytes(sketch, item) > _MANY_WEIGHTS else _GROUPS_BYTES
    if layout == "pixels":
        images = min(images, _MOST_OVER_PIXELS)
    while images > 1 and images * largest > bound:
        images //= 2
    return images


def share_in_groups(sketch: Sketch, rows: int) -> float:
    """Return the share of retained weights in groups of at least `rows` rows."""
    inside = total = 0
    for _, node in sketch.products():
        for height, width in sketch.groups(node):
            total += height * width
            inside += height * width * (height >= rows)
    return inside / max(1, total)


def mostly_single_rows(sketch: Sketch) -> bool:
    """Return whether most retained weights are in rows that share their columns with few other rows."""
    return share_in_groups(sketch, _FEW_ROWS) < _MOSTLY


def pointwise_share(sketch: Sketch) -> float:
    """Return the share of multiplications in 1 x 1 kernels; linear layers count as such."""
    inside = total = 0
    for task, node in sketch.products():
        weight = sketch.weight(node)
        spent = int(weight.count_nonzero()) * prod(task.output.pixels)
        total += spent
        inside += spent * (prod(weight.shape[2:]) == 1)
    return inside / max(1, total)


def _weight_bytes(sketch: Sketch, item: int) -> int:
    """Return the bytes of the retained weights."""
    return sum(item * int(sketch.weight(node).count_nonzero()) for _, node in sketch.products())
