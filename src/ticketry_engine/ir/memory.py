"""Which tensors may be read by their address: dense ones whose numbers lie in memory that is theirs, as they are.

A tensor of torch's may be many things besides that: one without data, on another device, sparse, a view that is read
negated, a wrapper of another tensor, one whose memory was freed. `plain` lets through what holds its numbers itself,
and says what the rest is. Every address that a kernel is given is of a tensor from `plain`, `fitting` or `fresh`.
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
    """What torch goes by when it chooses how to compute with a tensor: a bit for each thing it is."""
    return torch._C._dispatch_keys(tensor).raw_repr()


@functools.cache
def plain_keys(device: str) -> frozenset[int]:
    """The keys of a tensor on a kind of device that is nothing else, also of one made in inference mode.

    Found once, while nobody traces: torch's stack of tracers belongs to the process, and is empty meanwhile.
    """
    found = []
    for inference in (False, True):
        with ONE_AT_A_TIME, torch.inference_mode(inference), _disable_current_modes():
            found.append(_keys(torch.empty(0, dtype=torch.float32, device=device)))
    return frozenset(found)


_ON_CPU = plain_keys("cpu")


def plain(value: object, name: str, keys: frozenset[int] = _ON_CPU) -> Tensor:
    """The tensor with its numbers in memory as they are: itself, or a copy of one that is read negated or conjugated.

    A subclass of Tensor that holds its own numbers gives those: what it does besides in torch, it does not do here.

    Args:
        value: what was given.
        name: what messages call it.
        keys: those of tensors on the device that is meant, from `plain_keys`.

    Raises:
        EngineError: if it is no tensor, or one that has no such numbers on the device.
    """
    if type(value) not in _TYPES or _keys(value) not in keys:
        value = _resolved(value, name, keys)
    tensor: Tensor = value  # type: ignore[assignment]
    _hold(tensor, name)
    return tensor if tensor.data_ptr() % tensor.itemsize == 0 else tensor.clone()


def fitting(value: object, shape: Sequence[int], name: str) -> Tensor:
    """A `plain` tensor that is float32 of this shape.

    Raises:
        EngineError: if it is not.
    """
    tensor = plain(value, name)
    if tensor.dtype is not torch.float32 or tensor.shape != shape:
        raise EngineError(f"{name} is {tensor.dtype} {list(tensor.shape)}, but the kernels take float32 {list(shape)}")
    return tensor


def fresh(shape: Sequence[int]) -> Tensor:
    """A `plain` float32 tensor to be written, whatever torch's defaults are.

    Raises:
        EngineError: if a mode of torch is on in which new tensors have no memory of their own.
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
        if not known.has(torch._C.DispatchKey.Python):  # whose numbers Python code stands for
            if type(tensor) not in _TYPES:
                tensor = tensor.as_subclass(Tensor)
            if known.has(torch._C.DispatchKey.Negative) or known.has(torch._C.DispatchKey.Conjugate):
                _hold(tensor, name)
                tensor = tensor.detach().resolve_neg().resolve_conj()
        if _keys(tensor) in keys:
            return tensor
        raise EngineError(f"{name} {_kind(tensor)}: the engine reads dense tensors that lie in memory")


def _kind(tensor: Tensor) -> str:
    """What a tensor is that is not plain."""
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
    """Raise `EngineError` unless the storage has all bytes that shape and strides reach."""
    count = tensor.numel()
    if not count:
        return
    if not tensor.is_contiguous():
        count = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if (tensor.storage_offset() + count) * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise EngineError(f"{name} has less memory than its shape says: its storage was freed or made smaller")
