"""The Python state of a model: what its modules hold besides weights, to notice a call that changes it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

_PLAIN = (str, bytes, int, float, complex, bool, type(None))
_LEAVES = frozenset({*_PLAIN, Tensor, nn.Parameter})
_CONTAINERS = frozenset({dict, OrderedDict, list, tuple, set, frozenset, deque})
"""Classes whose empty objects hold nothing, attributes neither."""
_TORCH_OWN = frozenset({"_parameters", "_buffers", "_modules"})
"""Attributes of a module that are tables, whose entries are looked at by their own names."""
_DEEPEST = 8

State: TypeAlias = "dict[tuple[object, ...], Any]"
"""Path to an object -> the object itself, which is held so that no other one gets its identity."""


def state_of(model: nn.Module) -> State:
    """Everything that a model's modules hold, through containers and plain objects, by path."""
    found: State = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for table in (module.__dict__, module._parameters, module._buffers, module._modules):
            for name, value in table.items():
                if table is module.__dict__ and name in _TORCH_OWN:
                    continue
                found[prefix, name] = value
                if not _is_leaf(value):
                    _add_parts(found, (prefix, name), value, seen)
    return found


def first_change(before: State, after: State, *, counters: bool = False) -> str | None:
    """The path of the first object that is another one, or a number or text of another value; None if all are equal.

    Args:
        counters: look only at numbers, texts and the number of entries.
    """
    for path in after if before.keys() == after.keys() else (*after, *before):
        if path not in before or path not in after:
            return _spelled(path)
        one, other = before[path], after[path]
        if one is other or _is_equal(one, other):
            continue
        if not counters or (isinstance(one, _PLAIN) and isinstance(other, _PLAIN)):
            return _spelled(path)
    return None


def _spelled(path: tuple[object, ...]) -> str:
    return ".".join(part if isinstance(part, str) else f"{part!r:.80}" for part in path if part != "")


def _is_equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and isinstance(one, _PLAIN) and (one == other or (one != one and other != other))


def _is_leaf(value: Any) -> bool:
    """Whether an object holds nothing that a path goes on to."""
    kind = type(value)
    if kind in _LEAVES or (kind in _CONTAINERS and not value):
        return True
    return isinstance(value, (*_PLAIN, Tensor, nn.Module, type))


def _add_parts(found: State, path: tuple[object, ...], value: Any, seen: set[int]) -> None:
    if len(path) > _DEEPEST or id(value) in seen:
        return
    seen.add(id(value))
    for name, part in _parts(value):
        place = (*path, name)
        found[place] = part
        if not _is_leaf(part):
            _add_parts(found, place, part, seen)


def _parts(value: Any) -> Iterator[tuple[object, Any]]:
    """What an object holds: entries of containers, members of sets, attributes of plain objects."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield key if isinstance(key, (str, int)) else f"{key!r:.80}", part
    elif isinstance(value, (list, tuple, deque)):
        yield from enumerate(value)
    elif isinstance(value, (set, frozenset)):
        yield "members", str(sorted(map(id, value)))
        yield from enumerate(value)
    if type(value) in _CONTAINERS or callable(value):
        return
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        yield from list(attributes.items())
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else tuple(slots):
            name = f"_{kind.__name__.lstrip('_')}{slot}" if slot.startswith("__") and not slot.endswith("__") else slot
            if slot not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)
