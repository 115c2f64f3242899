"""What a graph's torch nodes claim to make, compared with what torch says, without data and memory.

The shapes of native nodes follow from their inputs (`graph.native`). Those of torch nodes are claims, and a file may
claim anything: a node that says it makes ten numbers may be asked to make 2^40. So the nodes of a graph from a file are
run once on the device that has shapes and no data.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ticketry.engine.graph.aten import find, prepare
from ticketry.engine.graph.graph import Graph
from ticketry.engine.graph.native import dtype_name
from ticketry.engine.graph.nodes import LARGEST_SIZE, OTHERS, Node, Value
from ticketry.errors import GraphError

BATCH = 2
_LARGEST = 1 << 36
"""Elements of what a node makes of two examples."""


def probe(graph: Graph) -> Graph:
    """Return the graph itself if its torch nodes make what they claim, as far as that can be known without data.

    Raises:
        GraphError: if a node does not take its arguments, or makes something else than it says, or too much.
    """
    weights = {name: tensor.to("meta") for name, tensor in graph.tensors.items()}
    made: dict[str, Any] = {name: _placeholder(graph.values[name]) for name in graph.inputs}
    with torch.no_grad():
        for one in graph.nodes:
            value = graph.values[one.output]
            if one.native:
                made[one.output] = _placeholder(value)
                continue
            known = all(name in made for name in one.inputs)
            found = _run(one, weights, made) if known else None
            if found is None:  # it depends on data, or on what does
                if value.shape is not None:
                    made[one.output] = _placeholder(value)
                continue
            _compare(one, value, found)
            made[one.output] = found
    return graph


def _placeholder(value: Value) -> Tensor:
    sizes = [BATCH if size is None else size for size in value.shape or ()]
    return torch.empty(sizes, dtype=getattr(torch, value.dtype), device="meta")


def _run(one: Node, weights: dict[str, Tensor], made: dict[str, Any]) -> Any:
    """What the node makes, without data; None if that cannot be known."""
    try:
        return prepare(_on_device(one), weights, "meta")(*(made[name] for name in one.inputs))
    except NotImplementedError:
        return None
    except GraphError:
        raise
    except Exception as error:  # torch raises what it likes on arguments that do not fit
        if "meta" in str(error).lower():
            return None
        reason = (str(error).splitlines() or [""])[0][:200]
        raise GraphError(f"{one.op} -> {one.output}: torch does not take its arguments: {reason}") from None


def _on_device(one: Node) -> Node:
    """The node with its device said, where it makes a tensor of nothing."""
    if one.op.startswith("operator."):
        return one
    names = [known.name for known in find(one.op)._schema.arguments]
    if "device" not in names[len(one.attrs["args"]) :]:
        return one
    kwargs = {**one.attrs["kwargs"], "device": {"device": "own"}}
    return replace(one, attrs={"args": one.attrs["args"], "kwargs": kwargs})


def _compare(one: Node, value: Value, found: Any) -> None:
    where = f"{one.op} -> {one.output}"
    kind = "list" if isinstance(found, (tuple, list)) else "number"
    for part in found if kind == "list" else [found]:
        if isinstance(part, Tensor) and part.numel() > min(_LARGEST, LARGEST_SIZE):
            raise GraphError(f"{where}: it makes {part.numel()} numbers of two examples: too many")
    if not isinstance(found, Tensor):
        if value.dtype != kind:
            raise GraphError(f"{where}: it makes a {kind}, not {value.dtype} {value.shape}")
        return
    dtype = dtype_name(found.dtype)
    shape = None if value.shape is None else [BATCH if size is None else size for size in value.shape]
    if value.dtype in OTHERS or dtype != value.dtype or (shape is not None and list(found.shape) != shape):
        raise GraphError(f"{where}: it makes {dtype} {list(found.shape)}, not {value.dtype} {value.shape}")
