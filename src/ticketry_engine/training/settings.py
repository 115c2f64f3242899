"""What code may read in modules beside parameters, buffers and modules: told at every step, so quickly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)
"""What is told by its value."""

_PLAIN = frozenset(PLAIN)
_OWN = frozenset(vars(nn.Module())) - {"training"}
"""Attributes of any module, which are no settings."""

_SMALL = 16
"""Elements of a tensor that is told by its values; a larger one by who it is, and how often it was written to."""


class _Held:
    """Something that is itself alone; held, so that nothing else gets its address."""

    def __init__(self, thing: Any, version: int = 0) -> None:
        self.thing, self.version = thing, version

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self.thing is other.thing and self.version == other.version

    def __hash__(self) -> int:
        return hash((id(self.thing), self.version))


def settings_of(module: nn.Module, seen: dict[int, int]) -> tuple[Any, ...]:
    """What a module holds: numbers and texts, also in tuples, lists, dicts and objects of classes in Python.

    Args:
        seen: objects that were told before, by their address, and their numbers; grows.
    """
    held = vars(module).items()
    return tuple(
        [
            value if type(value) in _PLAIN else _told(value, seen)
            for name, value in held
            if name not in _OWN and name != "forward"
        ]
    )


def _told(value: Any, seen: dict[int, int]) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is tuple and all(type(part) in _PLAIN for part in value):
        return value
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if isinstance(value, (nn.Module, type)) or callable(value):
        return _Held(value)
    number = seen.get(id(value))
    if number is not None:
        return "seen", number
    seen[id(value)] = len(seen)
    told: list[Any] = [kind]
    if isinstance(value, Mapping):
        told += [(_told(key, seen), _told(part, seen)) for key, part in value.items()]
    elif isinstance(value, (tuple, list)):
        told += [_told(part, seen) for part in value]
    elif isinstance(value, (set, frozenset)):
        told.append(frozenset(_told(part, seen) for part in value))
    elif not hasattr(value, "__dict__"):
        return _Held(value)
    told += [(name, _told(part, seen)) for name, part in getattr(value, "__dict__", {}).items()]
    return tuple(told)


def _of_tensor(tensor: Tensor) -> Any:
    if tensor.grad_fn is not None:  # as hooks put it there at each call: made of parameters
        return None
    if tensor.numel() <= _SMALL and tensor.device.type == "cpu" and tensor.layout == torch.strided:
        return tensor.dtype, tuple(tensor.shape), repr(tensor.tolist())
    return _Held(tensor, tensor._version)
