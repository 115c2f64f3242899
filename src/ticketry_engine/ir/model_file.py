"""Saves a graph as one safetensors file, model.tk, whose metadata is the graph as JSON; loads such files.

The file ends with a digest of all its bytes (`support.files.sealed`); a file with a wrong digest is not read. Of
weights with many zeros, only the nonzero values and their positions are stored. No pickle is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor

from ticketry_engine.errors import GraphError, ModelFileError
from ticketry_engine.ir.aten import NOT_FINITE, is_portable
from ticketry_engine.ir.graph import Graph
from ticketry_engine.ir.native import DTYPES, LARGEST_SIZE, MOST_DIMENSIONS, Json, Node, Value
from ticketry_engine.ir.reference import check_stated_outputs
from ticketry_engine.support.files import (
    append_digest,
    parse_json,
    read_bytes,
    read_metadata,
    verify_and_strip_digest,
    write_atomically,
)

KIND = "ticketry.model"
FORMAT = 2
"""Format number of files that contain positions as an Elias-Fano code; other files have the format number 1."""
_NOT_OURS = (SafetensorError, ValueError, TypeError, AttributeError, LookupError, RuntimeError, MemoryError)
"""Errors of safetensors and json for bytes that are no model file; a `RecursionError` is a `RuntimeError`."""


def save(graph: Graph, path: str | Path, meta: Mapping[str, Json] | None = None) -> Path:
    """Write a graph to a file, atomically through a temporary file, and return the path.

    The folder of `path` must exist. `meta` is JSON to store beside the graph. Raise `ModelFileError` if the file cannot
    be written, or if the model has custom operations, which would need the model's source code when the file is loaded.
    """
    target = Path(path)
    data = append_digest(dumps(graph, meta))
    try:
        write_atomically(target, data, durable=True, parents=False)
    except OSError as error:
        raise ModelFileError(
            f"the model cannot be written to {target}: {error.strerror or error}; make room, check the permissions, or"
            " choose another place"
        ) from None
    return target


def load(path: str | Path) -> tuple[Graph, dict[str, Json], str]:
    """Load a file written by `save`; return (graph, metadata that was saved with it, digest of the file's bytes)."""
    if not os.path.isfile(path):  # also refuses pipes and devices
        raise ModelFileError(f"there is no model file {path}")
    try:
        data = read_bytes(Path(path))
    except (OSError, MemoryError) as error:
        raise ModelFileError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error!r}") from None
    try:
        graph, meta = loads(_verify_and_strip_digest(data))
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from None
    return graph, meta, hashlib.blake2b(data, digest_size=16).hexdigest()


def dumps(graph: Graph, meta: Mapping[str, Json] | None = None) -> bytes:
    """Return the bytes of a graph's file without the digest; raise the same errors as `save`."""
    own = [one.op for one in graph.nodes if not one.native and not is_portable(one.op)]
    if own:
        whose = "operations that no file may hold" if own[0].startswith("aten.") else "operations of its own"
        raise ModelFileError(
            f"the model has {whose}, such as {own[0]}: files have operations of torch on real numbers that read nothing"
            " but their arguments and write to none"
        )
    graph.validate()
    stored: dict[str, Tensor] = {}
    total = weight_bytes(graph)
    table = {name: store_weight(name, tensor, stored, total) for name, tensor in sorted(graph.tensors.items())}
    number = FORMAT if any(one.get("packed") == PLACES for one in table.values()) else 1
    document = {"kind": KIND, "format": number, "graph": to_json(graph), "tensors": table, "meta": dict(meta or {})}
    try:
        text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelFileError(f"what is to be saved with the model is no JSON: {error}") from None
    # One metadata entry, because safetensors writes several in varying order.
    return bytes(safetensors_save(stored, metadata={KIND: text}))


def loads(data: bytes) -> tuple[Graph, dict[str, Json]]:
    """Return (graph, metadata) from the bytes that `dumps` returned; raise `ModelFileError` for other bytes."""
    try:
        stored = safetensors_load(data)
        metadata = read_metadata(data)
    except _NOT_OURS as error:
        raise ModelFileError(f"this is no model file: {str(error)[:120]}") from None
    if KIND not in metadata:
        raise ModelFileError("this is a safetensors file, but not of a compiled model")
    document = _parse_document(metadata[KIND])
    tensors = read_weights(document["tensors"], stored)
    try:
        return check_stated_outputs(from_json(document["graph"], tensors).validate()), document["meta"]
    except GraphError as error:
        raise ModelFileError(f"the graph in the file cannot be: {error}") from None


def _verify_and_strip_digest(data: bytes) -> bytes:
    try:
        return verify_and_strip_digest(data)
    except ValueError as error:
        loads(data)  # raises a more specific error if this is no model file at all
        raise ModelFileError(str(error)) from None


# -- the graph ---------------------------------------------------------------------------------------------------------


def to_json(graph: Graph) -> Json:
    """Return a graph as JSON that `from_json` reads; the JSON does not contain the weights."""
    return {
        "inputs": list(graph.inputs),
        "outputs": _encode_floats(graph.outputs),
        "nodes": [[one.op, list(one.inputs), one.output, one.attrs, one.weights] for one in graph.nodes],
        "values": {
            name: [None if value.shape is None else list(value.shape), value.dtype]
            for name, value in graph.values.items()
        },
        "signature": _encode_floats(graph.signature),
        "notes": list(graph.notes),
    }


def from_json(document: Json, tensors: dict[str, Tensor]) -> Graph:
    """Return the graph that `to_json` wrote, with the weights `tensors`; the graph is not checked for consistency.

    Raise `ModelFileError` if `document` does not have the form that `to_json` returns.
    """
    keys = {"inputs", "outputs", "nodes", "values", "signature", "notes"}
    require(isinstance(document, dict) and set(document) == keys, f"its graph has not the parts {sorted(keys)}")
    require(_is_text_list(document["inputs"]) and _is_text_list(document["notes"]), "its inputs or notes are no texts")
    require(isinstance(document["nodes"], list), "its nodes are no list")
    require(isinstance(document["values"], dict), "its values are no object")
    return Graph(
        inputs=tuple(document["inputs"]),
        outputs=_decode_floats(document["outputs"]),
        nodes=tuple(_parse_node(entry) for entry in document["nodes"]),
        values={name: _parse_value(name, entry) for name, entry in document["values"].items()},
        tensors=tensors,
        signature=_decode_floats(document["signature"]),
        notes=tuple(document["notes"]),
    )


def _encode_floats(tree: Json) -> Json:
    """Return `tree` with an object such as ``{"float": "inf"}`` for each number that JSON cannot express."""
    if isinstance(tree, dict):
        return {key: _encode_floats(part) for key, part in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_encode_floats(part) for part in tree]
    return {"float": str(tree)} if isinstance(tree, float) and not math.isfinite(tree) else tree


def _decode_floats(tree: Json) -> Json:
    """Return `tree` with infinity or NaN in place of objects such as ``{"float": "inf"}``."""
    if isinstance(tree, dict):
        spelled = tree.get("constant") if set(tree) == {"constant"} else None
        if isinstance(spelled, dict) and set(spelled) == {"float"} and spelled["float"] in NOT_FINITE:
            return {"constant": float(spelled["float"])}
        return {key: _decode_floats(part) for key, part in tree.items()}
    return [_decode_floats(part) for part in tree] if isinstance(tree, list) else tree


def _parse_node(entry: Json) -> Node:
    require(isinstance(entry, list) and len(entry) == 5, "a node is no list of five")
    op, inputs, output, attrs, weights = entry
    require(isinstance(op, str) and isinstance(output, str) and _is_text_list(inputs), "a node's names are no texts")
    require(isinstance(attrs, dict) and isinstance(weights, dict), "a node's attributes and weights are no objects")
    require(_is_text_list(list(weights.values())), "the names of a node's weights are no texts")
    return Node(op, tuple(inputs), output, attrs, weights)


def _parse_value(name: str, entry: Json) -> Value:
    require(
        isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str), "a value is no shape and data type"
    )
    shape, dtype = entry
    require(shape is None or isinstance(shape, list), "a value's shape is no list")
    return Value(name, None if shape is None else tuple(shape), dtype)


def _is_text_list(value: Json) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _parse_document(text: str) -> dict[str, Json]:
    try:
        found: Any = parse_json(
            text, parse_constant=_refuse_non_finite_number, object_pairs_hook=_dict_without_repeated_keys
        )
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ModelFileError(f"its description is not JSON ({str(error)[:80]})") from None
    require(isinstance(found, dict) and found.get("kind") == KIND, "its description is not that of a model")
    document: dict[str, Json] = found
    number = document.get("format")
    if not isinstance(number, int) or type(number) is bool or number < 1:
        raise ModelFileError("the file is damaged: its description has no format number")
    if number > FORMAT:
        raise ModelFileError(f"a newer ticketry has made it (its format is not {FORMAT}): pip install -U ticketry")
    require(set(document) == {"kind", "format", "graph", "tensors", "meta"}, "its description has not all its parts")
    require(isinstance(document["meta"], dict), "what was saved with it is no object")
    return document


def _dict_without_repeated_keys(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name occurs twice")
    return made


def _refuse_non_finite_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


# -- Stores the weights of a model file: the retained values, and their positions --------------------------------------

# Positions are stored as one bit for each element or, if shorter, as an Elias-Fano code. If some zeros are
# negative, as multiplying with a mask produces, another bit for each element marks them.


def weight_bytes(graph: Graph) -> int:
    """Return the size in bytes of all weights of the graph, stored as dense tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in graph.tensors.values())


PLACES = "places"
"""Value of the table entry "packed" for weights whose positions are stored as an Elias-Fano code."""


def most_header_bytes(name: str, total: int) -> int:
    """Return the most bytes by which the file's JSON header grows if a weight is stored without its zeros.

    `name` is the name of the weight. `total` is the size of all weights in bytes, which limits the number of digits.
    """
    entry = {f"kept:{name}": {"dtype": "F32", "shape": [total], "data_offsets": [total, total]}}
    return len(json.dumps(entry, separators=(",", ":"))) + len(rf",\"packed\":\"{PLACES}\"") + 2 + _ROUNDED - 1


def smallest_position_bytes(kept: int, weights: int) -> int:
    """Return the bytes that the shortest code takes for the positions of `kept` nonzero among `weights` elements."""
    return min(bitmap_bytes(weights), elias_fano_bytes(kept, weights))


_ROUNDED = 8
"""The size of the file's header is rounded up to a multiple of this number of bytes."""


def store_weight(name: str, tensor: Tensor, stored: dict[str, Tensor], total: int) -> Json:
    """Store a weight in one or more tensors, which are added to `stored` by name; return JSON that describes them.

    `total` is the size of all weights in bytes. Zeros are left out if this makes the file smaller.
    """
    flat = tensor.detach().cpu().contiguous().flatten()
    facts: dict[str, Json] = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    kept = flat != 0
    count, weights = int(kept.sum()), flat.numel()
    packed = most_header_bytes(name, total) + smallest_position_bytes(count, weights) + count * flat.element_size()
    if packed >= weights * flat.element_size():
        stored[f"dense:{name}"] = flat.clone()
        return facts
    if elias_fano_bytes(count, weights) < bitmap_bytes(weights):
        stored[f"{PLACES}:{name}"] = torch.from_numpy(pack_positions(kept.numpy()))
        facts["packed"] = PLACES
    else:
        stored[f"bits:{name}"] = _pack_flags(kept)
        facts["packed"] = True
    stored[f"kept:{name}"] = flat[kept]
    if flat.is_floating_point() and bool((negative := torch.signbit(flat) & ~kept).any()):  # -0.0
        stored[f"signs:{name}"] = _pack_flags(negative)
        facts["signed"] = True
    return facts


def _pack_flags(flags: Tensor) -> Tensor:
    return torch.from_numpy(pack_bits(flags.numpy()))


def read_weights(table: Json, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights by name, restored from `stored`, the tensors of a file by name.

    `table` is JSON with an entry from `store_weight` for each weight. Raise `ModelFileError` if the two disagree.
    """
    require(isinstance(table, dict), "its table of weights is no object")
    made: dict[str, Tensor] = {}
    wanted: set[str] = set()
    for name, facts in table.items():
        where = f"the weight {name[:80]!r}"
        known = {"dtype", "shape", "packed", "signed"}
        require(isinstance(facts, dict) and set(facts) <= known, f"{where} has no facts")
        shape, dtype = facts.get("shape"), facts.get("dtype")
        require(isinstance(dtype, str) and dtype in DTYPES, f"{where} has an unknown data type")
        sane = isinstance(shape, list) and len(shape) <= MOST_DIMENSIONS
        require(
            sane and all(type(size) is int and 0 <= size <= LARGEST_SIZE for size in shape), f"{where} has no shape"
        )
        require(prod(max(size, 1) for size in shape) <= LARGEST_SIZE, f"{where} is too large")
        packed = facts.get("packed", False)
        require(packed is True or packed == PLACES or "packed" not in facts, f"{where} is neither packed nor not")
        require(
            facts.get("signed", True) is True and bool(packed or "signed" not in facts),
            f"{where} is neither signed nor not",
        )
        keys = [f"kept:{name}", f"{PLACES if packed == PLACES else 'bits'}:{name}"] if packed else [f"dense:{name}"]
        keys += [f"signs:{name}"] if "signed" in facts else []
        require(all(key in stored for key in keys), f"{where} is not in the file")
        wanted.update(keys)
        parts = [stored[key] for key in keys]
        require(parts[0].dtype == getattr(torch, dtype), f"{where} is of another data type than its table says")
        if packed:
            read = _read_positions if packed == PLACES else _read_flags
            made[name] = _restore_packed_weight(where, *parts, shape=shape, read=read)
        else:
            fits = tuple(parts[0].shape) == (prod(shape),)
            require(fits, f"{where} has not the number of elements of its shape")
            made[name] = parts[0].view(shape)
    require(wanted == set(stored), "it holds tensors that are no weights of the graph")
    return made


def _restore_packed_weight(
    where: str,
    kept: Tensor,
    places: Tensor,
    signs: Tensor | None = None,
    *,
    shape: list[int],
    read: Callable[[str, Tensor, int, int], Tensor],
) -> Tensor:
    require(kept.dim() == 1, f"{where} has values that are no list")
    which = read(where, places, prod(shape), kept.numel())
    made = torch.zeros(prod(shape), dtype=kept.dtype)
    if signs is not None:
        require(made.is_floating_point(), f"{where} has signs of zeros that have none")
        made[_read_bits(where, signs, prod(shape))] = -0.0
    made[which] = kept
    return made.view(shape)


def _read_flags(where: str, bits: Tensor, total: int, count: int) -> Tensor:
    which = _read_bits(where, bits, total)
    require(int(which.sum()) == count, f"{where} has not the number of values of its bits")
    return which


def _read_bits(where: str, bits: Tensor, total: int) -> Tensor:
    fits = bits.dtype == torch.uint8 and tuple(bits.shape) == (bitmap_bytes(total),)
    require(fits, f"{where} has not the number of bits of its shape")
    return torch.from_numpy(unpack_bits(bits.numpy(), total))


def _read_positions(where: str, places: Tensor, total: int, count: int) -> Tensor:
    require(places.dtype == torch.uint8 and places.dim() == 1, f"{where} has places that are no bytes")
    try:
        return torch.from_numpy(unpack_positions(places.numpy(), count, total))
    except ValueError as error:
        raise ModelFileError(f"{where} is damaged: {error}") from None


def require(condition: bool, message: str) -> None:
    """Raise `ModelFileError` with the reason `message` unless the condition holds."""
    if not condition:
        raise ModelFileError(f"the file is damaged: {message}")


# -- positions as bits or as an Elias-Fano code ------------------------------------------------------------------------

# The Elias-Fano code of n increasing positions among t elements stores the k lower bits of each position one after
# another, and the higher parts as one bit vector whose i-th one is at index i + (higher part of position i):
#
#     size = n (k + 1) + t / 2^k bits         about 0.52 bits per element at density 10 %, 0.11 at 1 %
#
# This is close to the entropy, and is written and read without a loop over the positions. Above a density of a quarter
# one bit per element is shorter. Source: Elias, "Efficient storage and retrieval by content and address of static
# files", 1974.


Bytes = NDArray[np.uint8]

_MOST_LOW = 4
"""Maximum number of lower bits per position.

More bits would give shorter codes below a density of 4 %. With this limit, a file has at least one byte for 128
elements, so that a small untrusted file cannot claim very large weights.
"""


def pack_bits(flags: NDArray[np.bool_]) -> Bytes:
    """Return bytes with one bit per flag; the first flag is the lowest bit of the first byte."""
    return np.packbits(flags, bitorder="little")


def unpack_bits(data: Bytes, total: int) -> NDArray[np.bool_]:
    """Return the `total` flags that `pack_bits` packed."""
    return np.unpackbits(data, count=total, bitorder="little").view(np.bool_)


def bitmap_bytes(total: int) -> int:
    """Return the number of bytes that `pack_bits` returns for `total` flags."""
    return (total + 7) // 8


def elias_fano_bytes(count: int, total: int) -> int:
    """Return the number of bytes that `pack_positions` returns for `total` flags of which `count` are True."""
    low = _best_low_part_width(count, total)
    return (count * low + 7) // 8 + (_bits_of_high_parts(count, total, low) + 7) // 8


def pack_positions(flags: NDArray[np.bool_]) -> Bytes:
    """Return the positions of the flags that are True as an Elias-Fano code."""
    places = np.flatnonzero(flags)
    count, total = len(places), len(flags)
    low = _best_low_part_width(count, total)
    lower = (places[:, None] >> np.arange(low)) & 1
    row = np.zeros(_bits_of_high_parts(count, total, low), dtype=np.bool_)
    row[(places >> low) + np.arange(count)] = True
    return np.concatenate([np.packbits(lower.astype(np.uint8), bitorder="little"), pack_bits(row)])


def unpack_positions(data: Bytes, count: int, total: int) -> NDArray[np.bool_]:
    """Return the `total` flags that `pack_positions` packed; raise `ValueError` unless `count` of them are True."""
    if not 0 <= count <= total or len(data) != elias_fano_bytes(count, total):
        raise ValueError("the number of bytes does not match its positions")
    low = _best_low_part_width(count, total)
    cut = (count * low + 7) // 8
    ones = np.flatnonzero(unpack_bits(data[cut:], _bits_of_high_parts(count, total, low)))
    if len(ones) != count:
        raise ValueError("the number of positions does not match its values")
    lower = np.unpackbits(data[:cut], count=count * low, bitorder="little").reshape(count, low).astype(np.int64)
    places = ((ones - np.arange(count)) << low) + lower @ (1 << np.arange(low, dtype=np.int64))
    if count and (places[-1] >= total or (np.diff(places) <= 0).any()):
        raise ValueError("its positions do not increase within its elements")
    flags = np.zeros(total, dtype=np.bool_)
    flags[places] = True
    return flags


def _best_low_part_width(count: int, total: int) -> int:
    """Return how many low bits of each position the Elias-Fano code stores directly, for the shortest code."""
    low = 0
    while low < _MOST_LOW and _elias_fano_bits(count, total, low + 1) < _elias_fano_bits(count, total, low):
        low += 1
    return low


def _elias_fano_bits(count: int, total: int, low: int) -> int:
    return count * low + _bits_of_high_parts(count, total, low)


def _bits_of_high_parts(count: int, total: int, low: int) -> int:
    """Return the bits that an Elias-Fano code takes for the positions without their `low` lowest bits."""
    return count + (max(total - 1, 0) >> low)
