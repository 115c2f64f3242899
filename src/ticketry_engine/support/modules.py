"""Removes wrappers of models, finds the parameters that a mask covers, and copies models with replaced tensors."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ticketry_engine.errors import MaskError, UsageError


def require_model(model: object) -> None:
    """Raise `UsageError` unless the argument `model` is a module; the message says what to do."""
    if isinstance(model, nn.Module):
        return
    if isinstance(model, Mapping):
        todo = "make the model and load it first, model.load_state_dict(...), if this is its state dict"
    elif isinstance(model, type):
        todo = f"make one, {model.__name__}(...)"
    else:
        todo = "it is the first argument"
    kind = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
    raise UsageError(f"model= is a torch.nn.Module, not {kind}: {todo}")


def name_without_wrappers(name: str) -> str:
    """Return a parameter's name without prefixes that wrappers add, such as ``module.`` or ``_orig_mod.``."""
    parts = [part for part in name.split(".") if part not in ("_orig_mod", "_fsdp_wrapped_module")]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of torch.compile and of data-parallel training."""
    require_model(model)
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def masked_parameters(model: nn.Module, keep: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Return the parameters that a mask covers, by the mask's names.

    `keep` maps parameter names to tensors, True = retained. Its names may omit prefixes that wrappers add. Raise
    `MaskError` if the model does not have a parameter of the mask, or has it with another shape.
    """
    own = {name_without_wrappers(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)}
    for name, kept in keep.items():
        if name not in own:
            known = ", ".join(list(own)[:4]) + (", …" if len(own) > 4 else "")
            raise MaskError(f"the mask is of {name!r}, which {type(model).__name__} lacks: its parameters are {known}")
        if own[name].shape != kept.shape:
            raise MaskError(
                f"{name!r} has the shape {tuple(own[name].shape)} in {type(model).__name__}, and {tuple(kept.shape)} in"
                " the mask: the mask was made for another model"
            )
    return {name: own[name] for name in keep}


@torch.no_grad()
def apply_mask(model: nn.Module, keep: Mapping[str, Tensor]) -> None:
    """Set the pruned weights of a model to 0, in place; raise `MaskError` if the mask does not fit the model."""
    for name, parameter in masked_parameters(model, keep).items():
        parameter.masked_fill_(~keep[name].to(parameter.device), 0)


# -- Deep copies of a model in which some tensors are replaced or shared -----------------------------------------------


def copy_module(
    model: nn.Module, tensors: Mapping[int, Tensor], shared: Mapping[int, nn.Module] | None = None
) -> nn.Module:
    """Return a deep copy of a model in which some tensors are replaced.

    `tensors` maps the `id` of a parameter or buffer to the tensor that replaces it in the copy. `shared` maps the `id`
    of a submodule to the module that the copy contains in its place; this module is not copied.
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
    return _copy_module(model, memo)


def _copy_module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return a deep copy of a module; for plain modules, this is several times as fast as `copy.deepcopy`."""
    if id(module) in memo:
        return memo[id(module)]  # type: ignore[no-any-return]
    if not _can_copy_by_dict(type(module)):
        found: nn.Module = copy.deepcopy(module, memo)
        return found
    twin = memo[id(module)] = type(module).__new__(type(module))
    for name, value in vars(module).items():
        if name == "_compiled_call_impl":
            continue  # of `module.compile()`: it calls the original, and torch leaves it out of copies as well
        if type(value) in _PLAIN:
            twin.__dict__[name] = value
        elif name == "_modules":
            children = {local: child if child is None else _copy_module(child, memo) for local, child in value.items()}
            twin.__dict__[name] = type(value)(children)
        elif type(value) in (dict, OrderedDict) and not value:
            twin.__dict__[name] = type(value)()
        else:
            twin.__dict__[name] = copy.deepcopy(value, memo)
    return twin


_PLAIN = (type(None), bool, int, float, str)


def _can_copy_by_dict(kind: type[nn.Module]) -> bool:
    """Return whether instances of a class can be copied by copying their `__dict__`."""
    same = all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in _COPYING)
    return same and kind.__setstate__.__module__.startswith("torch.nn.modules.") and not hasattr(kind, "__slots__")


_COPYING = ("__deepcopy__", "__copy__", "__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__new__")


def parameters_and_buffers(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
