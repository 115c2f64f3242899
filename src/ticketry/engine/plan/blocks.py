"""How many images go through a region together: as many as fill vectors, no more than caches hold.

Over planes a vector holds 16 images, and fewer fill it with positions, which costs where rows share no columns; so
there only values that no cache holds make blocks smaller. Rows that share theirs run as fast with any number, over
pixels too: what counts is that values stay in the second cache, and that weights which do not are not fetched for every
image. The bounds are measured (one core, 1 MB and 32 MB of cache): VGG-16 and ResNet-18 at 32 and 64 pixels, ResNet-50
at 224.
"""

from __future__ import annotations

from math import prod

from ticketry.engine.plan.sketch import Sketch

MOST_IMAGES = 16
"""Images of a block over planes: as many as fill a vector of the widest registers."""

_MOST_OVER_PIXELS = 8

_FLOAT = 4

_PLANES_BYTES = 20 << 20
"""Of the largest value: a larger one is fetched from memory by every reader."""

_GROUPS_BYTES, _GROUPS_BYTES_OF_MANY_WEIGHTS = 5 << 18, 5 << 20
"""The same of rows in groups, over pixels too; and where the weights alone are more than `_MANY_WEIGHTS`."""

_MANY_WEIGHTS = 10 << 20

_FEW_ROWS = 4
"""Together, from which on vectors of positions run like those of images."""

_MOSTLY = 0.5


def share(batch: int, threads: int) -> int:
    """The smallest power of two that holds a thread's share of a batch, at most `MOST_IMAGES`."""
    each = -(-batch // max(1, threads))
    images = 1
    while images < min(each, MOST_IMAGES):
        images *= 2
    return images


def block(sketch: Sketch, layout: str, images: int, item: int = _FLOAT) -> int:
    """The images of a block, where ``images`` are at hand for each thread, of values of ``item`` bytes."""
    largest = max((item * one.channels * prod(one.pixels) for one in sketch.storages.all), default=1)
    if layout == "planes" and alone(sketch):
        return images if images * largest <= _PLANES_BYTES else 1
    bound = _GROUPS_BYTES_OF_MANY_WEIGHTS if _weight_bytes(sketch, item) > _MANY_WEIGHTS else _GROUPS_BYTES
    if layout == "pixels":
        images = min(images, _MOST_OVER_PIXELS)
    while images > 1 and images * largest > bound:
        images //= 2
    return images


def grouped(sketch: Sketch, rows: int) -> float:
    """The share of the kept weights in groups of at least so many rows."""
    inside = total = 0
    for _, node in sketch.products():
        for height, width in sketch.groups(node):
            total += height * width
            inside += height * width * (height >= rows)
    return inside / max(1, total)


def alone(sketch: Sketch) -> bool:
    """Whether most of the kept weights are in rows that share their columns with too few others."""
    return grouped(sketch, _FEW_ROWS) < _MOSTLY


def _weight_bytes(sketch: Sketch, item: int) -> int:
    """Of the weights that are kept."""
    return sum(item * int(sketch.weight(node).count_nonzero()) for _, node in sketch.products())
