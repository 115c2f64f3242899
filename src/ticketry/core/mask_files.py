"""Masks as files: one bit a weight, in safetensors."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor

from ticketry.core.mask import Mask, pack
from ticketry.errors import MaskError
from ticketry.files import parse_json
from ticketry_engine.support.sealed_files import read_metadata as read_metadata

FORMAT = "ticketry.mask.1"
# Refuse a header that claims a tensor larger than any network's before memory is reserved for it.
_LARGEST = 1 << 40
_MOST_DIMENSIONS = 32


def unpack(bits: Tensor, layout: str) -> Mask:
    """The mask that `pack` made.

    Raises:
        MaskError: if layout is no JSON object of shapes, or its size is not that of the bits.
    """
    shapes = _shapes(layout)
    total = sum(prod(shape) for shape in shapes.values())
    if bits.dtype != torch.uint8 or bits.dim() != 1 or bits.numel() != (total + 7) // 8:
        raise MaskError(f"the mask's bits are {tuple(bits.shape)} {bits.dtype}, but its layout has {total} elements")
    flat = torch.from_numpy(np.unpackbits(bits.numpy(), count=total, bitorder="little").view(np.bool_))
    parts = torch.split(flat, [prod(shape) for shape in shapes.values()])
    tensors = {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    return Mask(tensors, copy=False)


def to_bytes(mask: Mask) -> bytes:
    """A mask as the bytes of a safetensors file; equal masks give equal bytes."""
    bits, layout = pack(mask)
    # One entry of metadata: safetensors writes several in an order that changes from call to call.
    return bytes(safetensors_save({"bits": bits}, metadata={FORMAT: layout}))


def from_bytes(data: bytes) -> Mask:
    """The mask in the bytes of a safetensors file.

    Raises:
        MaskError: if they are not such a file, or say something that cannot be.
    """
    try:
        tensors = safetensors_load(data)
        metadata = read_metadata(data)
    except (SafetensorError, ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
        raise MaskError(f"this is no mask file: {error}") from None
    if FORMAT not in metadata:
        raise MaskError(f"this is no mask file of the format {FORMAT}: its metadata has {sorted(metadata)[:4]}")
    if set(tensors) != {"bits"}:
        raise MaskError(f"a mask file holds one tensor, bits, not {sorted(tensors)}")
    return unpack(tensors["bits"], metadata[FORMAT])


def _shapes(layout: str) -> dict[str, tuple[int, ...]]:
    try:
        shapes = parse_json(layout)
        found = {str(name): tuple(shape) for name, shape in shapes.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise MaskError("the mask's layout is not a JSON object of shapes") from None
    for name, shape in found.items():
        sane = len(shape) <= _MOST_DIMENSIONS and all(type(size) is int and 0 <= size <= _LARGEST for size in shape)
        if not sane or prod(max(size, 1) for size in shape) > _LARGEST:
            raise MaskError(f"the mask's layout gives {name!r} the impossible shape {str(shape)[:80]}")
    return found
