"""Deep copies of a model in which some tensors are replaced or shared."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def copied(model: nn.Module, tensors: Mapping[int, Tensor], shared: Mapping[int, nn.Module] | None = None) -> nn.Module:
    """A deep copy in which some parameters and buffers (by `id`) are others: `tensors`, which are not copied.

    Nor are the modules (by `id`) that are `shared`.
    """
    memo: dict[int, Any] = dict(shared or {})
    for tensor in parameters_and_buffers(model):
        new = tensors.get(id(tensor))
        if new is not None and isinstance(tensor, nn.Parameter) and not isinstance(new, nn.Parameter):
            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
        if new is not None:
            memo[id(tensor)] = new
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # a computed weight, which deepcopy refuses
                memo.setdefault(id(value), value.detach().clone())
    return _copied(model, memo)


def _copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy`, several times as fast for modules that leave their copying to it and hold plain values."""
    if id(module) in memo:
        return memo[id(module)]  # type: ignore[no-any-return]
    if not _plainly_copied(type(module)):
        found: nn.Module = copy.deepcopy(module, memo)
        return found
    twin = memo[id(module)] = type(module).__new__(type(module))
    for name, value in vars(module).items():
        if name == "_compiled_call_impl":
            continue  # of `module.compile()`: it calls the original, and torch leaves it out of copies as well
        if type(value) in _PLAIN:
            twin.__dict__[name] = value
        elif name == "_modules":
            children = {local: child if child is None else _copied(child, memo) for local, child in value.items()}
            twin.__dict__[name] = type(value)(children)
        elif type(value) in (dict, OrderedDict) and not value:
            twin.__dict__[name] = type(value)()
        else:
            twin.__dict__[name] = copy.deepcopy(value, memo)
    return twin


_PLAIN = (type(None), bool, int, float, str)


def _plainly_copied(kind: type[nn.Module]) -> bool:
    """Whether a copy is one of `__dict__`. What torch's layers do besides is for files of old versions."""
    same = all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in _COPYING)
    return same and kind.__setstate__.__module__.startswith("torch.nn.modules.") and not hasattr(kind, "__slots__")


_COPYING = ("__deepcopy__", "__copy__", "__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__new__")


def parameters_and_buffers(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
