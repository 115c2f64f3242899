"""Stores the weights of a model file: the retained values, and their positions.

Positions are stored as one bit for each element or, if shorter, as an Elias-Fano code (`places`). If some zeros are
negative, as multiplying with a mask produces, another bit for each element marks them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor

from ticketry_engine.errors import ModelFileError
from ticketry_engine.ir.graph import Graph
from ticketry_engine.ir.nodes import DTYPES, LARGEST_SIZE, MOST_DIMENSIONS, Json
from ticketry_engine.ir.places import (
    bytes_of_bits,
    bytes_of_numbers,
    pack_bits,
    pack_places,
    unpack_bits,
    unpack_places,
)


def weight_bytes(graph: Graph) -> int:
    """Return the bytes of all weights without packing."""
    return sum(tensor.numel() * tensor.element_size() for tensor in graph.tensors.values())


PLACES = "places"
"""Value of "packed" for weights whose positions are an Elias-Fano code."""


def head_bytes(name: str, total: int) -> int:
    """Return the most bytes by which a packed weight enlarges the file's head.

    Args:
        total: `weight_bytes` of the graph; it bounds the number of digits in the head.
    """
    entry = {f"kept:{name}": {"dtype": "F32", "shape": [total], "data_offsets": [total, total]}}
    return len(json.dumps(entry, separators=(",", ":"))) + len(rf",\"packed\":\"{PLACES}\"") + 2 + _ROUNDED - 1


def place_bytes(kept: int, weights: int) -> int:
    """Return the bytes that store the positions of the retained weights."""
    return min(bytes_of_bits(weights), bytes_of_numbers(kept, weights))


_ROUNDED = 8
"""The size of the head is a multiple of this."""


def stored_as(name: str, tensor: Tensor, stored: dict[str, Tensor], total: int) -> Json:
    """Put a weight's parts into `stored`, and return its entry for the table of weights."""
    flat = tensor.detach().cpu().contiguous().flatten()
    facts: dict[str, Json] = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    kept = flat != 0
    count, weights = int(kept.sum()), flat.numel()
    packed = head_bytes(name, total) + place_bytes(count, weights) + count * flat.element_size()
    if packed >= weights * flat.element_size():
        stored[f"dense:{name}"] = flat.clone()
        return facts
    if bytes_of_numbers(count, weights) < bytes_of_bits(weights):
        stored[f"{PLACES}:{name}"] = torch.from_numpy(pack_places(kept.numpy()))
        facts["packed"] = PLACES
    else:
        stored[f"bits:{name}"] = _bits(kept)
        facts["packed"] = True
    stored[f"kept:{name}"] = flat[kept]
    if flat.is_floating_point() and bool((negative := torch.signbit(flat) & ~kept).any()):  # -0.0
        stored[f"signs:{name}"] = _bits(negative)
        facts["signed"] = True
    return facts


def _bits(flags: Tensor) -> Tensor:
    return torch.from_numpy(pack_bits(flags.numpy()))


def read_weights(table: Json, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a file from its table and stored tensors; raise ModelFileError if they do not match."""
    need(isinstance(table, dict), "its table of weights is no object")
    made: dict[str, Tensor] = {}
    wanted: set[str] = set()
    for name, facts in table.items():
        where = f"the weight {name[:80]!r}"
        known = {"dtype", "shape", "packed", "signed"}
        need(isinstance(facts, dict) and set(facts) <= known, f"{where} has no facts")
        shape, dtype = facts.get("shape"), facts.get("dtype")
        need(isinstance(dtype, str) and dtype in DTYPES, f"{where} has an unknown data type")
        sane = isinstance(shape, list) and len(shape) <= MOST_DIMENSIONS
        need(sane and all(type(size) is int and 0 <= size <= LARGEST_SIZE for size in shape), f"{where} has no shape")
        need(prod(max(size, 1) for size in shape) <= LARGEST_SIZE, f"{where} is too large")
        packed = facts.get("packed", False)
        need(packed is True or packed == PLACES or "packed" not in facts, f"{where} is neither packed nor not")
        need(
            facts.get("signed", True) is True and bool(packed or "signed" not in facts),
            f"{where} is neither signed nor not",
        )
        keys = [f"kept:{name}", f"{PLACES if packed == PLACES else 'bits'}:{name}"] if packed else [f"dense:{name}"]
        keys += [f"signs:{name}"] if "signed" in facts else []
        need(all(key in stored for key in keys), f"{where} is not in the file")
        wanted.update(keys)
        parts = [stored[key] for key in keys]
        need(parts[0].dtype == getattr(torch, dtype), f"{where} is of another data type than its table says")
        if packed:
            read = _numbers if packed == PLACES else _flags
            made[name] = _unpack(where, *parts, shape=shape, read=read)
        else:
            made[name] = _dense(where, parts[0], shape)
    need(wanted == set(stored), "it holds tensors that are no weights of the graph")
    return made


def _dense(where: str, flat: Tensor, shape: list[int]) -> Tensor:
    need(tuple(flat.shape) == (prod(shape),), f"{where} has not the number of elements of its shape")
    return flat.view(shape)


def _unpack(
    where: str,
    kept: Tensor,
    places: Tensor,
    signs: Tensor | None = None,
    *,
    shape: list[int],
    read: Callable[[str, Tensor, int, int], Tensor],
) -> Tensor:
    need(kept.dim() == 1, f"{where} has values that are no list")
    which = read(where, places, prod(shape), kept.numel())
    made = torch.zeros(prod(shape), dtype=kept.dtype)
    if signs is not None:
        need(made.is_floating_point(), f"{where} has signs of zeros that have none")
        made[_bits_of(where, signs, prod(shape))] = -0.0
    made[which] = kept
    return made.view(shape)


def _flags(where: str, bits: Tensor, total: int, count: int) -> Tensor:
    which = _bits_of(where, bits, total)
    need(int(which.sum()) == count, f"{where} has not the number of values of its bits")
    return which


def _bits_of(where: str, bits: Tensor, total: int) -> Tensor:
    fits = bits.dtype == torch.uint8 and tuple(bits.shape) == (bytes_of_bits(total),)
    need(fits, f"{where} has not the number of bits of its shape")
    return torch.from_numpy(unpack_bits(bits.numpy(), total))


def _numbers(where: str, places: Tensor, total: int, count: int) -> Tensor:
    need(places.dtype == torch.uint8 and places.dim() == 1, f"{where} has places that are no bytes")
    try:
        return torch.from_numpy(unpack_places(places.numpy(), count, total))
    except ValueError as error:
        raise ModelFileError(f"{where} is damaged: {error}") from None


def need(condition: bool, otherwise: str) -> None:
    """Raise ModelFileError with the reason `otherwise` unless the condition holds."""
    if not condition:
        raise ModelFileError(f"the file is damaged: {otherwise}")
