"""Copy, check and mask state dicts, convert them to and from safetensors files, and load them into a model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor, nn

from ticketry.choices import did_you_mean, format_names, require_name
from ticketry.core.mask import Mask
from ticketry.core.scope import name_without_wrappers
from ticketry.core.sharding import (
    distribute_like,
    is_sharded,
    local_shard,
    shard_groups,
    shard_like,
    sum_over_process_groups,
)
from ticketry.errors import TicketError

_MOST_DIMENSIONS = 32


def copy_state(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Return a contiguous copy of a state dict on the CPU, without prefixes of wrappers in names.

    Sharded tensors stay on their devices. `what` names the state dict in error messages.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = name_without_wrappers(require_name(name, what, TicketError))
        if short in state:
            raise TicketError(f"two tensors of {what} are called {short!r} once wrappers are removed")
        if short == "__metadata__":
            raise TicketError(f"{what} holds a tensor called {short!r}, a name that safetensors keeps for itself")
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise TicketError(f"{what} holds {name!r}, which is not a dense tensor: leave it out of the state dict")
        if tensor.dim() > _MOST_DIMENSIONS:
            raise TicketError(f"{what} holds {name!r} with {tensor.dim()} dimensions, more than {_MOST_DIMENSIONS}")
        if is_sharded(tensor):
            state[short] = tensor.detach().clone()
        else:
            state[short] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return state


def require_masked_tensors(mask: Mask, start: Mapping[str, Tensor]) -> None:
    """Raise `TicketError` unless `start` has every tensor of the mask, with the mask's shape."""
    for name, shape in mask.shapes.items():
        if name not in start:
            question = did_you_mean(name, start)
            raise TicketError(
                f"the mask names {name!r}, which start does not have; {question}start has {format_names(start)}"
            )
        if tuple(start[name].shape) != shape:
            raise TicketError(f"the mask of {name!r} has the shape {shape}, but start {tuple(start[name].shape)}")


def require_same_shapes(start: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> None:
    """Raise `TicketError` unless both state dicts have the same names and shapes."""
    for name in (*start, *trained):
        if name not in start or name not in trained:
            lacks, other = ("trained", trained) if name in start else ("start", start)
            raise TicketError(
                f"{name!r} is in one of start and trained, but not in the other; {did_you_mean(name, other)}{lacks} has"
                f" {format_names(other)}"
            )
        if start[name].shape != trained[name].shape:
            shapes = tuple(start[name].shape), tuple(trained[name].shape)
            raise TicketError(f"{name!r} has the shape {shapes[0]} in start, but {shapes[1]} in trained")


def warn_of_same_weights(
    start: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
    start_copy: Mapping[str, Tensor],
    trained_copy: Mapping[str, Tensor],
    mask: Mask,
) -> None:
    """Warn if `start` has the trained weights, as happens if it was taken from the model without a copy.

    Args:
        start, trained: the caller's state dicts, which may share memory.
        start_copy, trained_copy: the ticket's copies of them; in `trained_copy`, removed weights are 0.
    """
    shared = [name for name, tensor in start.items() if name in trained and share_memory(tensor, trained[name])]
    if shared:
        problem = f"start shares memory with trained ({format_names(shared)}), so that it has the trained weights"
    elif not any(is_sharded(tensor) for tensor in start_copy.values()) and all(
        torch.equal(*((one[mask[name]], other[mask[name]]) if name in mask else (one, other)))
        for name, one, other in ((name, tensor, trained_copy[name]) for name, tensor in start_copy.items())
    ):
        problem = "start has the same values as trained"
    else:
        return
    warnings.warn(
        f"{problem}: a ticket's training starts from its start. model.state_dict() follows the model as it trains: copy"
        " it early, with {name: tensor.clone() for name, tensor in model.state_dict().items()}",
        stacklevel=4,
    )


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Return whether the two tensors share memory, so that writing to one would change the other."""
    first, second = _address_range(one), _address_range(other)
    return first is not None and second is not None and first[0] < second[1] and second[0] < first[1]


def _address_range(tensor: Tensor) -> tuple[int, int] | None:
    """Return the first and the last memory address of a tensor's elements; None for an empty tensor."""
    own = local_shard(tensor)
    if own.layout != torch.strided or own.is_meta or not own.numel():
        return None
    length = sum((size - 1) * stride for size, stride in zip(own.shape, own.stride(), strict=True)) + 1
    begin = own.data_ptr()
    return begin, begin + length * own.itemsize


def mask_state(state: dict[str, Tensor], mask: Mask) -> dict[str, Tensor]:
    """Set removed weights in a state dict to 0, in place, and return the state dict.

    A tied tensor has several names in the state dict and a single name in the mask. It is masked under all its names,
    because `load_state_dict` uses the last one.
    """
    unmasked = [name for name in state if name not in mask and state[name].dim() > 1]
    for name, kept in mask.items():
        twins = [other for other in unmasked if _have_same_bits(state[name], state[other])]
        for twin in (name, *twins):
            own = local_shard(state[twin])
            if own.dtype == _WITHOUT_ZERO and not kept.all():
                raise TicketError(f"{twin!r} is of {own.dtype}, which has no 0: its removed weights cannot be stored")
            # As integers of the same size: torch cannot fill tensors of float8 and large unsigned integers.
            bits = own.view(_INTEGERS[own.itemsize]) if own.itemsize in _INTEGERS else own
            bits.masked_fill_(~shard_like(kept, state[twin]).to(own.device), 0)
    return state


_WITHOUT_ZERO = getattr(torch, "float8_e8m0fnu", None)
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _have_same_bits(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if is_sharded(one) != is_sharded(other):
        return False
    if is_sharded(one) and is_sharded(other):
        if one.device_mesh != other.device_mesh or one.placements != other.placements:
            return False
        own = local_shard(one)  # all processes compare their shards
        differ = torch.tensor([not _have_same_bits(own, local_shard(other))], dtype=torch.int64, device=own.device)
        return not int(sum_over_process_groups(differ, shard_groups(one)))
    return torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8))


def match_state_to_model(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of `state` under the names of the state dict of `model`.

    A tied tensor of the model may have a single name in `state`, or several names with equal values.
    """
    own = model.state_dict(keep_vars=True)  # keep_vars: a tied parameter is one object
    short = {name: name_without_wrappers(name) for name in own}
    by_tensor = {id(tensor): state[short[name]] for name, tensor in own.items() if short[name] in state}
    missing = [name for name, tensor in own.items() if id(tensor) not in by_tensor]
    unexpected = sorted(set(state) - set(short.values()))
    if missing or unexpected:
        parts = [("has {} that the ticket lacks", missing), ("lacks {} that the ticket has", unexpected)]
        said = [text.format(", ".join(map(repr, names[:4]))) for text, names in parts if names]
        raise TicketError(f"the ticket does not fit: {type(model).__name__} {' and '.join(said)}")
    filled = {name: state.get(short[name], by_tensor[id(tensor)]) for name, tensor in own.items()}
    last = {id(tensor): name for name, tensor in own.items()}
    for name, tensor in own.items():
        twin = last[id(tensor)]
        if filled[twin] is not filled[name] and not _have_same_bits(filled[twin], filled[name]):
            raise TicketError(
                f"the ticket does not fit: {short[name]!r} and {short[twin]!r} are one tensor in"
                f" {type(model).__name__} (tied), but two in the ticket, with other values"
            )
        if is_sharded(filled[name]) and not is_sharded(tensor):
            raise TicketError(
                f"the ticket's states lie in parts on several devices, and {type(model).__name__} does not: save the"
                " ticket, and load it"
            )
        if filled[name].shape != tensor.shape:
            raise TicketError(
                f"the ticket does not fit: {short[name]!r} has the shape {tuple(tensor.shape)} in"
                f" {type(model).__name__}, but {tuple(filled[name].shape)} in the ticket"
            )
    return {
        name: distribute_like(filled[name], tensor)
        if is_sharded(tensor) and not is_sharded(filled[name])
        else filled[name]
        for name, tensor in own.items()
    }


def state_to_bytes(state: Mapping[str, Tensor]) -> bytes:
    """Return the bytes of a safetensors file with a state dict; they do not depend on the order of its names."""
    try:
        return bytes(safetensors_save(dict(state), metadata={"format": "pt"}))  # transformers needs this entry
    except (SafetensorError, ValueError, TypeError, LookupError, RuntimeError) as error:
        raise TicketError(f"the state dict cannot be written as safetensors: {error}") from None


def state_from_bytes(data: bytes, path: Path) -> dict[str, Tensor]:
    """Return the state dict in the bytes of a safetensors file; `path` is the file's path in messages."""
    try:
        return dict(safetensors_load(data))
    except (SafetensorError, ValueError, TypeError, LookupError, RuntimeError) as error:
        raise TicketError(f"{path} is not a safetensors file: {str(error)[:200]}") from None


def load_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors into a model as `load_state_dict` does, with the current versions of its module classes.

    torch stores versions of module classes in state dicts. A plain mapping has no versions, so some classes, such as
    torchvision's MNASNet, would take it for an old state dict, and convert or refuse it. This function adds the
    versions.
    """
    state = model.state_dict()
    state.clear()  # versions are an attribute of the dictionary
    state.update(tensors)
    model.load_state_dict(state)
