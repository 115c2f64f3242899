"""A graph as one file, model.tk: a safetensors container whose metadata is the graph in JSON. No pickle.

The file ends with a digest of all its bytes (`support.sealed_files`) and is not read if it does not match. Weights with
many exact zeros are packed, see `packed_weights`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor

from ticketry_engine.errors import GraphError, ModelFileError
from ticketry_engine.ir.aten import NOT_FINITE, is_portable
from ticketry_engine.ir.graph import Graph
from ticketry_engine.ir.nodes import Json, Node, Value
from ticketry_engine.ir.packed_weights import PLACES, need, read_weights, stored_as, weight_bytes
from ticketry_engine.ir.shape_claims import probe
from ticketry_engine.support.files import content_of, parse_json, write_atomically
from ticketry_engine.support.sealed_files import read_metadata, sealed, unsealed

KIND = "ticketry.model"
FORMAT = 2
"""Format of files with Elias-Fano positions; other files have format 1."""
_NOT_OURS = (
    SafetensorError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    RuntimeError,
    RecursionError,
    MemoryError,
)


def save(graph: Graph, path: str | Path, meta: Mapping[str, Json] | None = None) -> Path:
    """Write a graph to a file, atomically through a temporary name.

    Args:
        meta: JSON to store beside the graph, such as its ticket.

    Raises:
        ModelFileError: if the file cannot be written, or the model has custom operations: a file has to load without
            the model's source.
    """
    target = Path(path)
    data = sealed(dumps(graph, meta))
    try:
        write_atomically(target, data, durable=True, parents=False)
    except OSError as error:
        raise ModelFileError(
            f"the model cannot be written to {target}: {error.strerror or error}; make room, check the permissions, or"
            " choose another place"
        ) from None
    return target


def load(path: str | Path) -> tuple[Graph, dict[str, Json], str]:
    """Load a file written by `save`; return its graph, its meta data, and a digest of its bytes.

    Raises:
        ModelFileError: if the file is missing, damaged or inconsistent.
    """
    if not os.path.isfile(path):  # also refuses pipes and devices
        raise ModelFileError(f"there is no model file {path}")
    try:
        data = content_of(Path(path))
    except (OSError, MemoryError) as error:
        raise ModelFileError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error!r}") from None
    try:
        graph, meta = loads(_whole(data))
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from None
    return graph, meta, hashlib.blake2b(data, digest_size=16).hexdigest()


def dumps(graph: Graph, meta: Mapping[str, Json] | None = None) -> bytes:
    """Return the bytes of a graph's file; equal graphs give equal bytes. Raises ModelFileError as `save` does."""
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
    table = {name: stored_as(name, tensor, stored, total) for name, tensor in sorted(graph.tensors.items())}
    number = FORMAT if any(one.get("packed") == PLACES for one in table.values()) else 1
    document = {"kind": KIND, "format": number, "graph": to_json(graph), "tensors": table, "meta": dict(meta or {})}
    try:
        text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelFileError(f"what is to be saved with the model is no JSON: {error}") from None
    # One metadata entry, because safetensors writes several in varying order.
    return bytes(safetensors_save(stored, metadata={KIND: text}))


def loads(data: bytes) -> tuple[Graph, dict[str, Json]]:
    """Return the graph and the meta data in the bytes of a file. Raises ModelFileError as `load` does."""
    try:
        stored = safetensors_load(data)
        metadata = read_metadata(data)
    except _NOT_OURS as error:
        raise ModelFileError(f"this is no model file: {str(error)[:120]}") from None
    if KIND not in metadata:
        raise ModelFileError("this is a safetensors file, but not of a compiled model")
    document = _document(metadata[KIND])
    tensors = read_weights(document["tensors"], stored)
    try:
        return probe(from_json(document["graph"], tensors).validate()), document["meta"]
    except GraphError as error:
        raise ModelFileError(f"the graph in the file cannot be: {error}") from None


def _whole(data: bytes) -> bytes:
    try:
        return unsealed(data)
    except ValueError as error:
        loads(data)  # raises a more specific error if this is no model file at all
        raise ModelFileError(str(error)) from None


# -- the graph ---------------------------------------------------------------------------------------------------------


def to_json(graph: Graph) -> Json:
    """Return a graph without its weights as JSON, for `from_json`."""
    return {
        "inputs": list(graph.inputs),
        "outputs": _spelled(graph.outputs),
        "nodes": [[one.op, list(one.inputs), one.output, one.attrs, one.weights] for one in graph.nodes],
        "values": {
            name: [None if value.shape is None else list(value.shape), value.dtype]
            for name, value in graph.values.items()
        },
        "signature": _spelled(graph.signature),
        "notes": list(graph.notes),
    }


def from_json(document: Json, tensors: dict[str, Tensor]) -> Graph:
    """Return the graph of `to_json` with weights, not yet validated; raise ModelFileError for other JSON."""
    keys = {"inputs", "outputs", "nodes", "values", "signature", "notes"}
    need(isinstance(document, dict) and set(document) == keys, f"its graph has not the parts {sorted(keys)}")
    need(_texts(document["inputs"]) and _texts(document["notes"]), "its inputs or notes are no texts")
    need(isinstance(document["nodes"], list), "its nodes are no list")
    need(isinstance(document["values"], dict), "its values are no object")
    return Graph(
        inputs=tuple(document["inputs"]),
        outputs=_numbered(document["outputs"]),
        nodes=tuple(_node(entry) for entry in document["nodes"]),
        values={name: _value(name, entry) for name, entry in document["values"].items()},
        tensors=tensors,
        signature=_numbered(document["signature"]),
        notes=tuple(document["notes"]),
    )


def _spelled(tree: Json) -> Json:
    """Replace non-finite floats in a tree of values by ``{"float": name}``, which JSON can store."""
    if isinstance(tree, dict):
        return {key: _spelled(part) for key, part in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_spelled(part) for part in tree]
    return {"float": str(tree)} if isinstance(tree, float) and not math.isfinite(tree) else tree


def _numbered(tree: Json) -> Json:
    """Restore non-finite floats: the inverse of `_spelled`. Only constants are restored, not entries named "float"."""
    if isinstance(tree, dict):
        spelled = tree.get("constant") if set(tree) == {"constant"} else None
        if isinstance(spelled, dict) and set(spelled) == {"float"} and spelled["float"] in NOT_FINITE:
            return {"constant": float(spelled["float"])}
        return {key: _numbered(part) for key, part in tree.items()}
    return [_numbered(part) for part in tree] if isinstance(tree, list) else tree


def _node(entry: Json) -> Node:
    need(isinstance(entry, list) and len(entry) == 5, "a node is no list of five")
    op, inputs, output, attrs, weights = entry
    need(isinstance(op, str) and isinstance(output, str) and _texts(inputs), "a node's names are no texts")
    need(isinstance(attrs, dict) and isinstance(weights, dict), "a node's attributes and weights are no objects")
    need(_texts(list(weights.values())), "the names of a node's weights are no texts")
    return Node(op, tuple(inputs), output, attrs, weights)


def _value(name: str, entry: Json) -> Value:
    need(isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str), "a value is no shape and data type")
    shape, dtype = entry
    need(shape is None or isinstance(shape, list), "a value's shape is no list")
    return Value(name, None if shape is None else tuple(shape), dtype)


def _texts(value: Json) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


# -- JSON --------------------------------------------------------------------------------------------------------------


def _document(text: str) -> dict[str, Json]:
    try:
        found: Any = parse_json(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ModelFileError(f"its description is not JSON ({str(error)[:80]})") from None
    need(isinstance(found, dict) and found.get("kind") == KIND, "its description is not that of a model")
    document: dict[str, Json] = found
    number = document.get("format")
    if not isinstance(number, int) or type(number) is bool or number < 1:
        raise ModelFileError("the file is damaged: its description has no format number")
    if number > FORMAT:
        raise ModelFileError(f"a newer ticketry has made it (its format is not {FORMAT}): pip install -U ticketry")
    need(set(document) == {"kind", "format", "graph", "tensors", "meta"}, "its description has not all its parts")
    need(isinstance(document["meta"], dict), "what was saved with it is no object")
    return document


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name occurs twice")
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
