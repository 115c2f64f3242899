"""The Python state of a model: what its modules hold besides weights, to notice a call that changes it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

_PLAIN = (str, bytes, int, float, complex, bool, type(None))
_SEQUENCES = (list, tuple, deque)
_TORCH_OWN = frozenset({"_parameters", "_buffers", "_modules"})
"""Attributes of a module that are tables, whose entries are looked at by their own names."""
_DEEPEST = 8

State = dict[str, Any]
"""Path to an object -> the object itself, which is held so that no other one gets its identity."""


def state_of(model: nn.Module) -> State:
    """Everything that a model's modules hold, through containers and plain objects, by path."""
    found: State = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        held = {key: value for key, value in module.__dict__.items() if key not in _TORCH_OWN}
        for name, value in {**held, **module._parameters, **module._buffers, **module._modules}.items():
            found.update(_walk(f"{prefix}.{name}" if prefix else name, value, seen, 0))
    return found


def first_change(before: State, after: State, *, counters: bool = False) -> str | None:
    """The path of the first object that is another one, or a number or text of another value; None if all are equal.

    Args:
        counters: look only at numbers, texts and the number of entries.
    """
    for path in (*after, *before):
        if path not in before or path not in after:
            return path
        plain = isinstance(before[path], _PLAIN) and isinstance(after[path], _PLAIN)
        if not _is_same(before[path], after[path]) and (plain or not counters):
            return path
    return None


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    return type(one) is type(other) and isinstance(one, _PLAIN) and (one == other or (one != one and other != other))


def _walk(path: str, value: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    yield path, value
    if isinstance(value, (*_PLAIN, Tensor, nn.Module, type)) or depth > _DEEPEST or id(value) in seen:
        return
    seen.add(id(value))
    for name, part in _parts(value):
        yield from _walk(f"{path}.{name}", part, seen, depth + 1)


def _parts(value: Any) -> Iterator[tuple[object, Any]]:
    """What an object holds: entries of containers, members of sets, attributes of plain objects."""
    if isinstance(value, Mapping):
        yield from ((f"{key!r:.80}", part) for key, part in value.items())
    elif isinstance(value, _SEQUENCES):
        yield from enumerate(value)
    elif isinstance(value, (set, frozenset)):
        yield "members", str(sorted(map(id, value)))
        yield from enumerate(value)
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict) and not callable(value):
        yield from list(attributes.items())
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else tuple(slots):
            name = f"_{kind.__name__.lstrip('_')}{slot}" if slot.startswith("__") and not slot.endswith("__") else slot
            if slot not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)
