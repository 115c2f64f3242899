"""Checks for attribute values of native operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ACTS = ("relu", "relu6", "silu", "gelu", "gelu_tanh", "hardswish", "hardsigmoid", "sigmoid", "tanh")
"""Names of activations; an attribute ``act`` is one of these, None, or {"leaky_relu": slope}."""

_LARGEST_ATTR = 1 << 16
"""Most of a stride, padding, dilation or kernel size: a bound for untrusted files."""
_LARGEST_NUMBER = 3.4028234663852886e38
"""The largest float32, which kernels compute with."""


def is_count(value: Any, least: int = 0) -> bool:
    """Return whether a value is an integer that a stride, kernel size or number of groups may be."""
    return type(value) is int and least <= value <= _LARGEST_ATTR


def is_pair(least: int) -> Callable[[Any], bool]:
    """Return a check for two such integers of at least `least`."""
    return lambda value: isinstance(value, (list, tuple)) and len(value) == 2 and all(is_count(n, least) for n in value)


def is_size(value: Any) -> bool:
    """Return whether a value may be an axis size or an index along it."""
    return type(value) is int and 0 <= value < 1 << 40


def is_axis(value: Any) -> bool:
    """Return whether a value is an axis after the batch axis."""
    return type(value) is int and 1 <= value < 16


def is_boolean(value: Any) -> bool:
    """Return whether a value is a bool."""
    return type(value) is bool


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number that float32 can represent."""
    if type(value) is int:
        return -(1 << 63) <= value < 1 << 63  # the range of torch's integers
    return type(value) is float and abs(value) <= _LARGEST_NUMBER  # also False for NaN


def is_act(value: Any) -> bool:
    """Return whether a value names an activation (None is the identity)."""
    if isinstance(value, dict):
        return set(value) == {"leaky_relu"} and is_number(value["leaky_relu"])
    return value is None or (isinstance(value, str) and value in ACTS)


def is_axes(value: Any) -> bool:
    """Return whether a value is a list of axes."""
    return isinstance(value, (list, tuple)) and 0 < len(value) <= 16 and all(is_count(one) for one in value)


def is_shape(value: Any) -> bool:
    """Return whether a value is a shape; its first size may be None, the batch."""
    sane = isinstance(value, (list, tuple)) and 0 < len(value) <= 16
    return sane and (value[0] is None or is_size(value[0])) and all(is_size(one) for one in value[1:])


def is_room(value: Any) -> bool:
    """Return whether a value is a list of padding sizes, one for each axis after the batch."""
    return isinstance(value, (list, tuple)) and 0 < len(value) <= 16 and all(is_count(one) for one in value)
