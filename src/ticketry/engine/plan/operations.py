"""The operations of both layouts by one set of names, so that a region is emitted the same way for either."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ticketry.engine.cpu import pixels, planes
from ticketry.engine.cpu.pixels.attention import MOST_KEYS
from ticketry.engine.cpu.pixels.geometry import Pixels
from ticketry.engine.cpu.program import Op
from ticketry.engine.cpu.target import Target
from ticketry.engine.plan.forms import UnsupportedError

Pair = tuple[int, int]
Make = Callable[..., list[Op]]


class Operations:
    """What a layout can do. Values are of the layout's own kind."""

    reserve: Callable[[int], int]
    """Set by who emits: so many bytes that one operation uses for itself, and where in the arena they begin."""

    load: Make
    """(number, strides, y)"""
    store: Make
    """(number, strides, x)"""
    conv: Make
    """(x, y, weight, bias, stride=, padding=, dilation=, groups=, act=, residual=)"""
    elementwise: Make
    """("add" | "mul", a, b, y, act)"""
    apply: Make
    """(act, x, y)"""
    affine: Make
    """(x, y, scale, shift, act)"""
    layer_norm: Make
    """(x, y, weight, bias, eps)"""
    softmax: Make
    """(x, y)"""
    max_pool: Make
    """(x, y, kernel, stride, padding, dilation)"""
    avg_pool: Make
    """(x, y, kernel, stride, padding, count_include_pad)"""
    global_mean: Make
    """(x, y)"""
    attention: Make
    """(q, k, v, y, heads, scale, causal)"""


class PlanesOperations(Operations):
    """Over planes."""

    def __init__(self, target: Target) -> None:
        self.load, self.store = planes.load, planes.store
        self._target = target
        self.conv = self._conv
        self.elementwise, self.apply, self.affine = planes.elementwise, planes.apply, planes.affine
        self.layer_norm, self.softmax, self.attention = planes.layer_norm, planes.softmax, planes.attention
        self.max_pool, self.avg_pool, self.global_mean = planes.max_pool, planes.avg_pool, planes.global_mean

    def _conv(self, x: Any, y: Any, weight: Any, bias: Any, **where: Any) -> list[Op]:
        return planes.conv(x, y, weight, bias, **where, target=self._target, scratch=self.reserve)


class PixelsOperations(Operations):
    """Over pixels; for blocks of so many images."""

    def __init__(self, target: Target, images: int) -> None:
        self._target, self._images = target, images
        self.load, self.store = partial(pixels.load, target=target), partial(pixels.store, target=target)
        self.conv = partial(pixels.conv, target=target, images=images)
        self.elementwise, self.apply, self.affine = self._elementwise, self._apply, self._affine
        self.layer_norm, self.softmax = self._layer_norm, partial(pixels.softmax, target=target)
        self.attention = self._attention
        self.max_pool, self.avg_pool = self._max_pool, self._avg_pool
        self.global_mean = partial(pixels.global_mean, target=target)

    def _elementwise(self, kind: str, a: Any, b: Any, y: Any, act: Any) -> list[Op]:
        return {"add": pixels.add, "mul": pixels.mul}[kind](a, b, y, target=self._target, act=act)

    def _apply(self, act: Any, x: Any, y: Any) -> list[Op]:
        return pixels.apply(x, y, act, target=self._target)

    def _affine(self, x: Any, y: Any, scale: Any, shift: Any, act: Any) -> list[Op]:
        return pixels.affine(x, y, scale, shift, target=self._target, act=act)

    def _max_pool(self, x: Any, y: Any, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> list[Op]:
        return pixels.max_pool(x, y, kernel, target=self._target, stride=stride, padding=padding, dilation=dilation)

    def _avg_pool(self, x: Any, y: Any, kernel: Pair, stride: Pair, padding: Pair, counted: bool) -> list[Op]:
        where: dict[str, Any] = {"stride": stride, "padding": padding, "count_include_pad": counted}
        return pixels.avg_pool(x, y, kernel, target=self._target, **where)

    def _layer_norm(self, x: Any, y: Any, weight: Any, bias: Any, eps: float) -> list[Op]:
        return pixels.layer_norm(x, y, weight, bias, eps=eps, target=self._target)

    def _attention(self, q: Any, k: Any, v: Any, y: Any, heads: int, scale: float, causal: bool) -> list[Op]:
        attended(q, k, v)
        here: dict[str, Any] = {"target": self._target, "images": self._images}
        scratch = self.reserve(pixels.attention_bytes(q, k, **here))
        return pixels.attention(q, k, v, y, heads, scratch, **here, scale=scale, causal=causal)


def attended(q: Pixels, k: Pixels, v: Pixels) -> None:
    """`UnsupportedError` if pixels have no kernel for this attention."""
    keys = k.geometry.height * k.geometry.width
    halos = q.geometry.halo or k.geometry.halo or v.geometry.halo
    if halos or keys > MOST_KEYS or not q.channels == k.channels == v.channels:
        raise UnsupportedError("an attention that pixels have no kernel for")
