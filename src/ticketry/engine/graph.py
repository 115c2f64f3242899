"""The small graph that the engine works on: what capture makes, plans read and model files hold.

Every node has one output. A *native* node is one of a few operations with exact rules for shapes (`engine.infer`); any
other is a *torch node* ``aten.NAME.OVERLOAD`` or ``operator.NAME``, which runs in torch at that place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import Tensor

from ticketry.engine.infer import NATIVE, Facts, Size, infer, short
from ticketry.errors import GraphError

Json: TypeAlias = Any
"""None, bool, int, float, str, or a list or string-keyed dict of these."""

Shape: TypeAlias = "tuple[Size, ...]"

MOST_NODES = 1 << 20
MOST_DIMENSIONS = 16
LONGEST_NAME = 512
LARGEST_SIZE = 1 << 40
"""Elements of one tensor, and examples aside of one value: beyond any network's."""

FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})
DTYPES = FLOATS | {"int64", "int32", "int16", "int8", "uint8", "bool"}
OTHERS = frozenset({"number", "list"})
"""What torch nodes may make besides tensors: sizes and other single numbers; tuples and lists."""


@dataclass(frozen=True)
class Value:
    """What a node makes, or an input of the graph."""

    name: str
    shape: Shape | None
    """None at axis 0 is the batch. A shape that holds the batch in any other way, as N*T, is None as a whole: only
    torch nodes touch such values."""
    dtype: str = "float32"
    """A name of torch's without its ``torch.``, or "number" or "list"."""


@dataclass(frozen=True)
class Node:
    """One operation. `engine.infer` lists the native ones with their attributes and weights."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attrs: dict[str, Json] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    """Role ("weight", "bias", "scale", "shift") -> name in `Graph.tensors`; of a torch node name -> the same name."""

    @property
    def native(self) -> bool:
        return self.op in NATIVE


def node(
    op: str, inputs: tuple[str, ...], output: str, weights: Mapping[str, str] | None = None, **attrs: Json
) -> Node:
    """A native node, with the default of every attribute that is not given; `GraphError` for an unknown operation."""
    if op not in NATIVE:
        raise GraphError(f"there is no native operation {op!r}")
    whole = {**NATIVE[op].defaults, **attrs}
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in whole.items()}
    return Node(op, tuple(inputs), output, lists, dict(weights or {}))


@dataclass(frozen=True)
class Graph:
    """A network as a list of operations in the order in which they can run."""

    inputs: tuple[str, ...]
    outputs: Json
    """What a call returns: a value's name; ``{"constant": None | bool | number | str}``; or ``{"tuple": [...]}``,
    ``{"list": [...]}``, ``{"dict": {...}}``, ``{"record": {...}}`` of such (a record's entries are attributes too)."""
    nodes: tuple[Node, ...]
    values: dict[str, Value]
    tensors: dict[str, Tensor]
    signature: Json = None
    """How a call's arguments give `inputs`: ``{"args": [tree...], "kwargs": {name: tree}, "names": [of args]}`` with
    trees as in `outputs`; None: positional, in order."""
    notes: tuple[str, ...] = ()
    """What a user should know, such as why the batch is fixed."""

    @property
    def dynamic(self) -> bool:
        """Whether any number of examples is taken."""
        return any(_is_dynamic(self.values[name].shape) for name in self.inputs)

    @property
    def makers(self) -> dict[str, Node]:
        """Value -> the node that makes it."""
        return {one.output: one for one in self.nodes}

    @property
    def results(self) -> tuple[str, ...]:
        """Names of the values in `outputs`, in order, each once."""
        return tuple(dict.fromkeys(leaves(self.outputs)))

    def uses(self) -> dict[str, int]:
        """Value -> how often nodes and the graph's outputs read it."""
        counts = dict.fromkeys(self.values, 0)
        for one in self.nodes:
            for name in one.inputs:
                counts[name] += 1
        for name in leaves(self.outputs):
            counts[name] += 1
        return counts

    def with_nodes(self, nodes: tuple[Node, ...] | list[Node], **changes: Any) -> Graph:
        """The graph with other nodes, without values and tensors that nothing names any more."""
        changed = replace(self, nodes=tuple(nodes), **changes)
        named = {*changed.inputs, *(one.output for one in changed.nodes)}
        held = {name for one in changed.nodes for name in one.weights.values()}
        return replace(
            changed,
            values={name: value for name, value in changed.values.items() if name in named},
            tensors={name: tensor for name, tensor in changed.tensors.items() if name in held},
        )

    def validate(self, *, trusted: bool = False) -> Graph:
        """Return the graph itself if it is consistent.

        The shape of what a torch node makes cannot be derived here: it is a claim, which whoever runs the node checks
        before a native one reads it.

        Args:
            trusted: the graph was made in this process, and may have operations that one in a file may not.

        Raises:
            GraphError: for an unknown operation, a name used before its definition or defined twice, weights that are
                absent or of a wrong shape, a shape that does not follow from those of the inputs, an attribute of a
                wrong type or size.
        """
        _check_counts(self)
        for name, value in self.values.items():
            _check_value(name, value)
        for name, tensor in self.tensors.items():
            _check_tensor(name, tensor)
        known = set()
        for name in self.inputs:
            if name in known:
                raise GraphError(f"two inputs are called {name!r}")
            if name not in self.values or self.values[name].dtype in OTHERS or self.values[name].shape is None:
                raise GraphError(f"the input {name[:80]!r} is no tensor of a known shape")
            known.add(name)
        for one in self.nodes:
            _check_node(self, one, known, trusted)
            known.add(one.output)
        for name in self.results:
            if name not in known:
                raise GraphError(f"the output {name[:80]!r} is made by no node")
        if len(known) != len(self.values):
            raise GraphError(f"no node makes the value {next(iter(set(self.values) - known))[:80]!r}")
        _check_signature(self)
        return self


def _is_dynamic(shape: Shape | None) -> bool:
    return shape is not None and bool(shape) and shape[0] is None


# -- trees of values ---------------------------------------------------------------------------------------------------

_DEEPEST = 64


def leaves(tree: Json, depth: int = 0) -> Iterator[str]:
    """Names of the values in a tree as `Graph.outputs` holds, in order; `GraphError` for what is no such tree."""
    if isinstance(tree, str):
        yield tree
        return
    if not isinstance(tree, dict) or len(tree) != 1 or depth > _DEEPEST:
        raise GraphError(f"{short(tree)} is no tree of values")
    ((kind, content),) = tree.items()
    if kind == "constant" and (content is None or isinstance(content, (bool, int, float, str))):
        return
    if kind in ("tuple", "list") and isinstance(content, list):
        parts = content
    elif kind in ("dict", "record") and isinstance(content, dict) and all(isinstance(key, str) for key in content):
        parts = list(content.values())
    else:
        raise GraphError(f"{short(tree)} is no tree of values")
    for part in parts:
        yield from leaves(part, depth + 1)


# -- checks ------------------------------------------------------------------------------------------------------------


def _check_counts(graph: Graph) -> None:
    if len(graph.nodes) > MOST_NODES:
        raise GraphError(f"{len(graph.nodes)} nodes are more than a graph may have")
    outputs = [one.output for one in graph.nodes]
    if len(set(outputs)) != len(outputs):
        raise GraphError("two nodes make a value of the same name")
    taken = set(graph.inputs) & set(outputs)
    if taken:
        raise GraphError(f"a node makes the graph's input {next(iter(taken))[:80]!r}")


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise GraphError(f"{short(name)} is no name: a text of 1 to {LONGEST_NAME} characters is needed")


def _check_value(name: str, value: Value) -> None:
    _check_name(name)
    if value.name != name:
        raise GraphError(f"the value {name!r} calls itself {value.name!r}")
    if value.dtype not in DTYPES and value.dtype not in OTHERS:
        raise GraphError(f"{name!r} has the unknown data type {short(value.dtype)}")
    if value.shape is None:
        return
    if not isinstance(value.shape, tuple) or len(value.shape) > MOST_DIMENSIONS:
        raise GraphError(f"{name!r} has no shape of at most {MOST_DIMENSIONS} dimensions")
    total = 1
    for axis, size in enumerate(value.shape):
        if size is None and axis == 0:
            continue
        if type(size) is not int or size < 0:
            raise GraphError(f"{name!r} has the impossible shape {short(value.shape)}")
        total *= max(size, 1)
        if total > LARGEST_SIZE:
            raise GraphError(f"{name!r} is too large: {short(value.shape)}")


def _check_tensor(name: str, tensor: Tensor) -> None:
    _check_name(name)
    if not isinstance(tensor, Tensor) or str(tensor.dtype).removeprefix("torch.") not in DTYPES:
        raise GraphError(f"the weight {name!r} is no tensor of a data type that the engine knows")


def _check_node(graph: Graph, one: Node, known: set[str], trusted: bool) -> None:
    _check_name(one.output)
    where = f"{one.op[:80]} -> {one.output[:80]}"
    if one.output not in graph.values:
        raise GraphError(f"{where}: its output is no value of the graph")
    for name in one.inputs:
        if name not in known:
            raise GraphError(f"{where}: its input {short(name)} is not made before it")
    for role, name in one.weights.items():
        if name not in graph.tensors:
            raise GraphError(f"{where}: the graph has no tensor {short(name)} for its {role[:80]}")
    if not one.native:
        from ticketry.engine.aten import check  # late, as it asks torch for its operations

        check(one, trusted=trusted)
        return
    try:
        shape, dtype = infer(
            one.op,
            one.attrs,
            [_facts(graph.values[name]) for name in one.inputs],
            {role: _tensor_facts(graph.tensors[name]) for role, name in one.weights.items()},
        )
    except GraphError as error:
        raise GraphError(f"{where}: {error}") from None
    made = graph.values[one.output]
    if (made.shape, made.dtype) != (shape, dtype):
        raise GraphError(f"{where}: it makes {dtype} {shape}, but its output is said to be {made.dtype} {made.shape}")


def _facts(value: Value) -> Facts:
    if value.shape is None:
        raise GraphError(f"its input {value.name!r} has no known shape")
    return Facts(value.shape, value.dtype)


def _tensor_facts(tensor: Tensor) -> Facts:
    return Facts(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _check_signature(graph: Graph) -> None:
    signature = graph.signature
    if signature is None:
        return
    if not isinstance(signature, dict) or set(signature) != {"args", "kwargs", "names"}:
        raise GraphError("the graph's signature has not args, kwargs and names")
    args, kwargs, names = signature["args"], signature["kwargs"], signature["names"]
    if not isinstance(args, list) or not isinstance(kwargs, dict) or not isinstance(names, list):
        raise GraphError("the graph's signature has not args, kwargs and names")
    if not all(isinstance(name, str) for name in [*names, *kwargs]):
        raise GraphError("a name in the graph's signature is no text")
    found = [name for tree in [*args, *kwargs.values()] for name in leaves(tree)]
    if sorted(found) != sorted(graph.inputs):
        raise GraphError("the graph's signature does not name each of its inputs once")
