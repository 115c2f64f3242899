"""Which values the attributes of native operations can have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ACTS = ("relu", "relu6", "silu", "gelu", "gelu_tanh", "hardswish", "hardsigmoid", "sigmoid", "tanh")
"""An act is one of these, None, or {"leaky_relu": slope}."""

_LARGEST_ATTR = 1 << 16
"""Strides, paddings, dilations and kernels: beyond any network's."""
_LARGEST_NUMBER = 3.4028234663852886e38
"""The largest float32, which kernels compute with."""


def count(value: Any, least: int = 0) -> bool:
    """A whole number that a stride, kernel or number of groups can be."""
    return type(value) is int and least <= value <= _LARGEST_ATTR


def pair(least: int) -> Callable[[Any], bool]:
    """Two such numbers, of at least so much."""
    return lambda value: isinstance(value, (list, tuple)) and len(value) == 2 and all(count(n, least) for n in value)


def size(value: Any) -> bool:
    """A size of an axis, or a place along it."""
    return type(value) is int and 0 <= value < 1 << 40


def axis(value: Any) -> bool:
    """An axis behind the batch."""
    return type(value) is int and 1 <= value < 16


def boolean(value: Any) -> bool:
    """True or False."""
    return type(value) is bool


def number(value: Any) -> bool:
    """A finite number that kernels and torch can compute with."""
    if type(value) is int:
        return -(1 << 63) <= value < 1 << 63  # torch takes no larger ones
    return type(value) is float and abs(value) <= _LARGEST_NUMBER  # false of NaN too


def is_act(value: Any) -> bool:
    """Whether `value` names an activation (None is the identity)."""
    if isinstance(value, dict):
        return set(value) == {"leaky_relu"} and number(value["leaky_relu"])
    return value is None or (isinstance(value, str) and value in ACTS)


def is_axes(value: Any) -> bool:
    """A list of axes."""
    return isinstance(value, (list, tuple)) and 0 < len(value) <= 16 and all(count(one) for one in value)


def is_shape(value: Any) -> bool:
    """A shape, whose first size may be None: the batch."""
    sane = isinstance(value, (list, tuple)) and 0 < len(value) <= 16
    return sane and (value[0] is None or size(value[0])) and all(size(one) for one in value[1:])


def is_room(value: Any) -> bool:
    """How much is added to each axis but the batch."""
    return isinstance(value, (list, tuple)) and 0 < len(value) <= 16 and all(count(one) for one in value)
