"""Interpolation of images to whole multiples of their sizes, written as a convolution of each channel by itself.

By a whole scale f, each of f places beside a pixel has weights of its own for the pixels around, the same all over the
image; beyond the edge is the edge again. So a convolution of the image with its edges repeated makes f x f channels of
each channel, which lie interleaved afterwards, as those of a transposed convolution do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from ticketry_engine.capture.editor import Editor, base, need, rewrite
from ticketry_engine.ir import Graph, Json, Node, aten, node
from ticketry_engine.ir.native import MOST_MOVED
from ticketry_engine.support.seeds import generator

_REACH = {"upsample_bilinear2d": 1, "upsample_bicubic2d": 2}
"""Pixels on each side of the nearest one that have a part."""


def lower_resizes(graph: Graph) -> Graph:
    """The graph without interpolations by whole scales."""
    return rewrite(graph, _lower)


def _lower(editor: Editor, one: Node) -> list[Node]:
    reach = 0 if one.native else _REACH.get(base(one), 0)
    need(reach and len(one.inputs) == 1)
    (x,) = editor.floats(one, {"value": one.inputs[0]}, axes=4)
    shape, made = (editor.shape(name) or () for name in (x, one.output))
    need(shape[:2] == made[:2] and all(shape[1:]))
    channels, *sizes = (int(size or 0) for size in shape[1:])
    places = [int(size or 0) for size in made[2:]]
    need(all(0 < size <= more and not more % size for size, more in zip(sizes, places, strict=True)))
    need(channels * prod(places) <= MOST_MOVED)
    resize, dtype = aten.prepare(one, editor.tensors, "cpu"), getattr(torch, editor.values[x].dtype)
    taps = [_taps(resize, sizes, axis, places[axis] // sizes[axis], reach, dtype) for axis in range(2)]
    kernel = torch.einsum("ra,sb->rsab", *taps)
    nodes = _with_edges(editor, x, one.output, sizes, reach)

    def then(op: str, weights: dict[str, str] | None = None, **attrs: Json) -> None:
        nodes.append(editor.make(op, (nodes[-1].output,), one.output, weights, **attrs))

    weight = editor.constant(f"{one.output}.taps", kernel.flatten(0, 1).repeat(channels, 1, 1).unsqueeze(1))
    then("conv2d", {"weight": weight}, stride=[1, 1], padding=[0, 0], dilation=[1, 1], groups=channels)
    then("reshape", shape=[shape[0], channels, *kernel.shape[:2], *sizes])
    then("transpose", axes=[0, 1, 4, 2, 5, 3])
    return [*nodes, node("reshape", (nodes[-1].output,), one.output, shape=list(made))]


def _taps(
    resize: Callable[[Tensor], Tensor], sizes: Sequence[int], axis: int, scale: int, reach: int, dtype: torch.dtype
) -> Tensor:
    """[scale, 2 reach + 1]: weights of the pixels around for each place beside a pixel, asked of the operation itself.

    Raises:
        NoMatchError: they are not the same all over the image (`align_corners`, a scale that was given and is another),
            or it is so small that its edges hide them.
    """
    size = sizes[axis]
    need(size > 2 * reach)
    single = torch.zeros(1, size, dtype=dtype)
    single[0, size // 2] = 1.0
    signals = torch.cat([single, torch.rand(4, size, generator=generator(0, "resize")).to(dtype)])
    images = signals[:, None, :, None] if axis == 0 else signals[:, None, None, :]
    found = resize(images.expand(-1, 1, *sizes).contiguous()).select(3 - axis, 0).reshape(-1, size, scale)
    # What pixel i + d has of places beside it, d pixels before: the weight of pixel d for places beside i.
    taps: Tensor = found[0, size // 2 - reach : size // 2 + reach + 1].flip(0).t()
    around = (torch.arange(size)[:, None] + torch.arange(-reach, reach + 1)).clamp(0, size - 1)
    need(torch.allclose(signals[:, around] @ taps.t(), found, rtol=0, atol=1e-5))
    return taps.contiguous()


def _with_edges(editor: Editor, x: str, like: str, sizes: Sequence[int], reach: int) -> list[Node]:
    """The image with its first and last rows and columns so many times more."""
    nodes: list[Node] = []
    for axis, size in enumerate(sizes, start=2):
        ends = [editor.make("slice", (x,), like, axis=axis, start=at, stop=at + 1) for at in (0, size - 1)]
        low, high = ((end.output,) * reach for end in ends)
        nodes += [*ends, editor.make("concat", (*low, x, *high), like, axis=axis)]
        x = nodes[-1].output
    return nodes
