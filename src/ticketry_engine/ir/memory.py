"""Checks that a tensor may be read by its address: dense, with its numbers in its own memory.

A torch tensor may also be without data, on another device, sparse, a negated view, a wrapper of another tensor, or have
freed memory. `plain` accepts tensors that kernels can read, and raises a specific error for the others. Every address
passed to a kernel comes from a tensor returned by `plain`, `fitting` or `fresh`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from ticketry_engine.errors import EngineError
from ticketry_engine.support.process_state import ONE_AT_A_TIME

_TYPES = (Tensor, nn.Parameter)


def _keys(tensor: Any) -> int:
    """Return torch's dispatch keys of a tensor as bits."""
    return torch._C._dispatch_keys(tensor).raw_repr()


@functools.cache
def plain_keys(device: str) -> frozenset[int]:
    """Return the dispatch keys of ordinary dense tensors on a device type, in and outside inference mode.

    They are read under a lock with torch's tracing modes disabled, because that stack belongs to the whole process.
    """
    found = []
    for inference in (False, True):
        with ONE_AT_A_TIME, torch.inference_mode(inference), _disable_current_modes():
            found.append(_keys(torch.empty(0, dtype=torch.float32, device=device)))
    return frozenset(found)


_ON_CPU = plain_keys("cpu")


def plain(value: object, name: str, keys: frozenset[int] = _ON_CPU) -> Tensor:
    """Return a tensor that can be read by its address: itself, or a copy of a negated or conjugated view.

    A subclass of Tensor with its own memory is read as that memory; its Python overrides are ignored.

    Args:
        value: the object to check.
        name: its name in messages.
        keys: dispatch keys accepted, from `plain_keys`.

    Raises:
        EngineError: if the value is not a tensor, or not a dense one on the device.
    """
    if type(value) not in _TYPES or _keys(value) not in keys:
        value = _resolved(value, name, keys)
    tensor: Tensor = value  # type: ignore[assignment]
    _hold(tensor, name)
    return tensor if tensor.data_ptr() % tensor.itemsize == 0 else tensor.clone()


def fitting(value: object, shape: Sequence[int], name: str) -> Tensor:
    """Return the value as a `plain` float32 tensor of this shape.

    Raises:
        EngineError: if it has another dtype or shape, or is not plain.
    """
    tensor = plain(value, name)
    if tensor.dtype is not torch.float32 or tensor.shape != shape:
        raise EngineError(f"{name} is {tensor.dtype} {list(tensor.shape)}, but the kernels take float32 {list(shape)}")
    return tensor


def fresh(shape: Sequence[int]) -> Tensor:
    """Return a new `plain` float32 tensor, independent of torch's defaults.

    Raises:
        EngineError: in a torch mode whose new tensors have no memory, such as FakeTensorMode.
    """
    made = torch.empty(shape, dtype=torch.float32, device="cpu")
    if type(made) is not Tensor or _keys(made) not in _ON_CPU:
        raise EngineError(
            "the engine cannot run in a mode of torch that makes other tensors than dense ones in the CPU's memory"
            " (FakeTensorMode, torch.func, functionalization): call it outside"
        )
    return made


def _resolved(value: object, name: str, keys: frozenset[int]) -> Tensor:
    if not isinstance(value, Tensor):
        raise EngineError(f"{name} has to be a tensor, not {type(value).__name__}")
    tensor = value
    with torch._C.DisableTorchFunctionSubclass():
        known = torch._C._dispatch_keys(tensor)
        if not known.has(torch._C.DispatchKey.Python):  # tensors implemented in Python have no numbers of their own
            if type(tensor) not in _TYPES:
                tensor = tensor.as_subclass(Tensor)
            if known.has(torch._C.DispatchKey.Negative) or known.has(torch._C.DispatchKey.Conjugate):
                _hold(tensor, name)
                tensor = tensor.detach().resolve_neg().resolve_conj()
        if _keys(tensor) in keys:
            return tensor
        raise EngineError(f"{name} {_kind(tensor)}: the engine reads dense tensors that lie in memory")


def _kind(tensor: Tensor) -> str:
    """Describe, for a message, why a tensor is not plain."""
    if tensor.device.type == "meta":
        return "has no data (device meta)"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "is wrapped by torch.func or torch.vmap"
    if tensor.is_nested:
        return "is nested (pad it)"
    if tensor.is_quantized:
        return "is quantized (.dequantize() it)"
    if tensor.layout is not torch.strided:
        return f"is of the layout {tensor.layout} (.to_dense() it)"
    if torch._C._dispatch_keys(tensor).has(torch._C.DispatchKey.Python):
        return f"is a {type(tensor).__name__}, which holds no numbers of its own"
    return f"is no plain tensor on {tensor.device}, or on another device than the model was compiled for"


def _hold(tensor: Tensor, name: str) -> None:
    """Raise EngineError unless the storage contains all bytes that shape and strides reach."""
    count = tensor.numel()
    if not count:
        return
    if not tensor.is_contiguous():
        count = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if (tensor.storage_offset() + count) * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise EngineError(f"{name} has less memory than its shape says: its storage was freed or made smaller")
