"""Attention over values in bfloat16: its kernels compute in float32, on copies."""

from __future__ import annotations

from collections.abc import Sequence

from ticketry.engine.cpu.pixels import attention as plain
from ticketry.engine.cpu.pixels.elementwise import copy
from ticketry.engine.cpu.pixels.geometry import FLOAT, Geometry, Pixels
from ticketry.engine.cpu.program import Op
from ticketry.engine.cpu.target import Target
from ticketry.errors import EngineError


def attention_bytes(q: Pixels, k: Pixels, images: int, target: Target) -> int:
    """Bytes of the arena that `attention` needs beside its values."""
    own = plain.attention_bytes(k, images, target)
    if q.geometry.item == FLOAT:
        return own
    return own + 2 * sum(_wide(value).bytes(images) for value in (q, k))


def attention(
    q: Pixels,
    k: Pixels,
    v: Pixels,
    y: Pixels,
    heads: int,
    scratch: int,
    *,
    target: Target,
    images: int,
    scale: float | None = None,
    causal: bool = False,
) -> list[Op]:
    """`ticketry.engine.cpu.pixels.attention` of values of either size, for blocks of so many images."""
    if q.geometry.item == FLOAT:
        return plain.attention(q, k, v, y, heads, scratch, target=target, scale=scale, causal=causal)
    if any(value.geometry.halo for value in (q, k, v, y)):
        raise EngineError("attention over values with a halo")
    inputs = _places((q, k, v, y), scratch, images)
    queries, keys, worths, result = inputs
    behind = result.offset + result.geometry.bytes(images)
    ops = [op for value, wide in zip((q, k, v), inputs, strict=False) for op in copy(value, wide, target=target)]
    ops += plain.attention(queries, keys, worths, result, heads, behind, target=target, scale=scale, causal=causal)
    return ops + copy(result, y, target=target)


def _wide(value: Pixels) -> Geometry:
    return Geometry.of(value.geometry.height, value.geometry.width, value.channels)


def _places(values: Sequence[Pixels], start: int, images: int) -> list[Pixels]:
    """Room for float32 copies, one behind the other."""
    places = []
    for value in values:
        places.append(Pixels(_wide(value), start))
        start += places[-1].geometry.bytes(images)
    return places
