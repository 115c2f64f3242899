"""Defines the graph of a network: capture builds a graph, the planner reads it, and a model file stores it.

`Graph.validate` checks a graph, for example one from a file; the shapes must agree with the rules of `ir.native`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ticketry_engine.errors import GraphError
from ticketry_engine.ir.aten import check_torch_node
from ticketry_engine.ir.native import (
    DTYPES,
    LARGEST_SIZE,
    LONGEST_NAME,
    MOST_DIMENSIONS,
    MOST_NODES,
    OTHERS,
    UNFILED,
    Json,
    Node,
    TensorFacts,
    Value,
    dtype_name,
    infer_output,
    short_repr,
)
from ticketry_engine.support.modules import name_without_wrappers

OF_SIGNATURES = frozenset({"fewest", "defaults"})
"""Optional entries of a signature.

``"fewest"`` is the smallest batch size for which the graph is valid. ``"defaults"`` maps the name of an argument to its
default, ``{"constant": ...}``, or to None if a graph cannot contain the default. It lists arguments that were captured
with another constant than the default, and arguments that were left out and whose default is not None.
"""


@dataclass(frozen=True)
class Graph:
    """A network as a list of nodes (operations), in an order in which the nodes can run."""

    inputs: tuple[str, ...]
    outputs: Json
    """Outputs of a call, as a tree: the name of a value, a constant, or a container of such trees.

    A constant is ``{"constant": None | bool | number | str}``. A container is ``{"tuple": [...]}``, ``{"list": [...]}``
    or ``{"dict": {...}}``; ``{"record": {...}}``, a dict whose entries are also attributes; ``{"fields": {...}}``, a
    tuple with named entries; or ``{"numbered": {...}}``, a dict whose keys are integers."""
    nodes: tuple[Node, ...]
    values: dict[str, Value]
    tensors: dict[str, Tensor]
    signature: Json = None
    """Places of `inputs` in a call's arguments: ``{"args": [tree...], "kwargs": {name: tree}, "names": [name...]}``.

    The trees have the form of `outputs`; ``names`` are the names of positional arguments. Entries in `OF_SIGNATURES`
    are optional. None: the inputs are the positional arguments, in order."""
    notes: tuple[str, ...] = ()
    """Notes for the user, such as why the batch size is fixed."""

    @property
    def accepts_any_batch(self) -> bool:
        """Return whether the graph accepts any number of examples."""
        shapes = [self.values[name].shape for name in self.inputs]
        return any(bool(shape) and shape[0] is None for shape in shapes if shape is not None)

    @property
    def node_by_output(self) -> dict[str, Node]:
        """Return, for each value name, the node that computes the value."""
        return {one.output: one for one in self.nodes}

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the names of the values in `outputs`, in order and without repetition."""
        return tuple(dict.fromkeys(value_names(self.outputs)))

    def read_counts(self) -> dict[str, int]:
        """Return, for each value name, how often nodes and the graph's outputs read the value."""
        counts = dict.fromkeys(self.values, 0)
        for one in self.nodes:
            for name in one.inputs:
                counts[name] += 1
        for name in value_names(self.outputs):
            counts[name] += 1
        return counts

    def with_nodes(self, nodes: tuple[Node, ...] | list[Node], **changes: Any) -> Graph:
        """Return a copy with the nodes `nodes`; `changes` are new values for other fields of the graph.

        Values and weights that the new nodes neither read nor make are left out.
        """
        changed = replace(self, nodes=tuple(nodes), **changes)
        named = {*changed.inputs, *(one.output for one in changed.nodes)}
        held = {name for one in changed.nodes for name in one.weights.values()}
        return replace(
            changed,
            values={name: value for name, value in changed.values.items() if name in named},
            tensors={name: tensor for name, tensor in changed.tensors.items() if name in held},
        )

    def validate(self, *, trusted: bool = False) -> Graph:
        """Return the graph itself if the graph is consistent, else raise `GraphError`.

        It is inconsistent if an operation is unknown; if a name is used before its definition, or defined twice; if a
        weight is missing or has a wrong shape; if an output shape disagrees with the input shapes; or if an attribute
        has a wrong type or size. Outputs of operations that torch runs are checked later, when they run.

        If `trusted`, the graph was built in this process. Otherwise it is also inconsistent if it has operations that a
        model file may not contain, or names that cannot be printed.
        """
        _check_node_outputs(self)
        if not trusted:
            named = (text for one in self.nodes for text in (one.op, one.output, *one.weights))
            _check_printable([*self.values, *self.tensors, *self.notes, *named])
        types = DTYPES | UNFILED if trusted else DTYPES
        for name, value in self.values.items():
            _check_value(name, value, types)
        for name, tensor in self.tensors.items():
            _check_name(name)
            if not isinstance(tensor, Tensor) or dtype_name(tensor.dtype) not in types:
                raise GraphError(f"the weight {name!r} is no tensor of a data type that the engine knows")
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
        for name in self.output_names:
            if name not in known:
                raise GraphError(f"the output {name[:80]!r} is made by no node")
        if len(known) != len(self.values):
            raise GraphError(f"no node makes the value {next(iter(set(self.values) - known))[:80]!r}")
        _check_signature(self)
        if not trusted:
            _check_printable(_iterate_names_and_keys([self.outputs, self.signature]))
        return self


@dataclass(frozen=True)
class Region:
    """A subgraph that runs in kernels, with the values that it reads from other nodes and makes for other nodes."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]

    @property
    def read_counts(self) -> dict[str, int]:
        """Return, for each value name, how often the nodes and the outputs of the subgraph read the value."""
        return dict(Counter([*(name for one in self.nodes for name in one.inputs), *self.outputs]))


def last_uses(steps: Sequence[tuple[Sequence[str], Sequence[str]]], kept: Iterable[str]) -> list[tuple[str, ...]]:
    """Return, for each step, the names of the values that are no longer needed after the step.

    A step is (names of values read, names of values made). The values `kept` are always needed.
    """
    last = {name: number for number, (reads, _) in enumerate(steps) for name in reads}
    free = set().union(*(set(reads) | set(makes) for reads, makes in steps)) - set(kept)
    return [
        (
            *(name for name in dict.fromkeys(reads) if last[name] == number and name in free),
            *(name for name in makes if name not in last and name in free),
        )
        for number, (reads, makes) in enumerate(steps)
    ]


# -- trees of values ---------------------------------------------------------------------------------------------------

_DEEPEST = 64
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,18})")
"""Pattern of the only spelling of an integer that keys may have, so that equal integers have equal texts."""


def value_names(tree: Json, depth: int = 0) -> Iterator[str]:
    """Yield the value names in a tree of the form of `Graph.outputs`, in order.

    The tree consists of nested JSON containers with value names as leaves; raise `GraphError` for other JSON.
    """
    if isinstance(tree, str):
        yield tree
        return
    if not isinstance(tree, dict) or len(tree) != 1 or depth > _DEEPEST:
        raise GraphError(f"{short_repr(tree)} is no tree of values")
    ((kind, content),) = tree.items()
    if kind == "constant" and (content is None or isinstance(content, (bool, int, float, str))):
        return
    if kind in ("tuple", "list") and isinstance(content, list):
        parts = content
    elif (
        kind in ("dict", "record", "fields", "numbered")
        and isinstance(content, dict)
        and all(isinstance(key, str) for key in content)
        and (kind != "numbered" or all(_WHOLE.fullmatch(key) for key in content))
    ):
        parts = list(content.values())
    else:
        raise GraphError(f"{short_repr(tree)} is no tree of values")
    for part in parts:
        yield from value_names(part, depth + 1)


def with_value_names(tree: Json, change: Callable[[str], str]) -> Json:
    """Return a copy of `tree`, JSON of the form of `Graph.outputs`, with `change(name)` in place of each value name.

    `change` is called in the order in which `value_names` yields the names.
    """
    if isinstance(tree, str):
        return change(tree)
    ((kind, content),) = tree.items()
    if kind == "constant":
        return tree
    if isinstance(content, list):
        return {kind: [with_value_names(part, change) for part in content]}
    return {kind: {key: with_value_names(part, change) for key, part in content.items()}}


# -- the model parameters that tensors of a graph were computed from ---------------------------------------------------


COMPUTED = ".computed"
"""Suffix of the name of a tensor that was computed from a parameter, such as a parametrised weight."""

_FORMS = r"2d|T|padded|phases|computed"
"""Suffixes that passes append to the name of a weight when they transform the weight."""

_FORM = re.compile(rf"(\.({_FORMS}))+$|\.parametrizations(?=\.)|(?<=weight)\.original\d?(?=$|\.)")
_ADDED = re.compile(rf"\.({_FORMS}|\d+)$")
"""Pattern of a suffix in `_FORMS`, or of a number that distinguishes several tensors of one parameter."""


def layer_name(weight: str) -> str:
    """Return the module name of the layer to which the weight with the name `weight` belongs."""
    return _FORM.sub("", weight).removesuffix(".weight")


def tensor_origins(graph: Graph, parameters: Iterable[str]) -> dict[str, str]:
    """Return, by name of a tensor of the graph, the parameter that equals the tensor or from which it was computed.

    Only the names in `parameters` are considered.
    """
    own = {name_without_wrappers(name): name for name in parameters}
    found: dict[str, str] = {}
    for tensor in graph.tensors:
        name = tensor
        while name not in own and _ADDED.search(name):
            name = _ADDED.sub("", name)
        if name in own:
            found[tensor] = own[name]
    return found


def parameters_of(node: Node, tensor_origins: Mapping[str, str]) -> set[str]:
    """Return the names of the parameters from which a node's weights were computed.

    `tensor_origins` has the parameter for each weight of the graph.
    """
    return {tensor_origins[weight] for weight in node.weights.values() if weight in tensor_origins}


# -- checks ------------------------------------------------------------------------------------------------------------


def _check_node_outputs(graph: Graph) -> None:
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
        raise GraphError(f"{short_repr(name)} is no name: a text of 1 to {LONGEST_NAME} characters is needed")


def _check_printable(names: Iterable[str]) -> None:
    """Raise `GraphError` if a name has characters that cannot be printed in tables and messages."""
    for name in names:
        if not name.isprintable():
            raise GraphError(
                f"the name {short_repr(name)} has characters that cannot be printed: give the part another one"
            )


def _iterate_names_and_keys(tree: Json) -> Iterator[str]:
    """Yield all value names and dict keys in a tree, or a list of trees, of the form of `Graph.outputs`."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for key, part in tree.items():
            yield key
            yield from () if key == "constant" else _iterate_names_and_keys(part)
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from _iterate_names_and_keys(part)


def _check_value(name: str, value: Value, types: frozenset[str]) -> None:
    _check_name(name)
    if value.name != name:
        raise GraphError(f"the value {name!r} calls itself {value.name!r}")
    if value.dtype not in types and value.dtype not in OTHERS:
        if value.dtype in UNFILED:
            kind = short_repr(value.dtype)
            raise GraphError(f"{name!r} has the data type {kind}, which files do not hold: compute it in real numbers")
        raise GraphError(f"{name!r} has the unknown data type {short_repr(value.dtype)}")
    if value.shape is None:
        return
    if not isinstance(value.shape, tuple) or len(value.shape) > MOST_DIMENSIONS:
        raise GraphError(f"{name!r} has no shape of at most {MOST_DIMENSIONS} dimensions")
    total = 1
    for axis, size in enumerate(value.shape):
        if size is None and axis == 0:
            continue
        if type(size) is not int or size < 0:
            raise GraphError(f"{name!r} has the impossible shape {short_repr(value.shape)}")
        total *= max(size, 1)
        if total > LARGEST_SIZE:
            raise GraphError(f"{name!r} is too large: {short_repr(value.shape)}")


def _check_node(graph: Graph, node: Node, known: set[str], trusted: bool) -> None:
    _check_name(node.output)
    where = f"{node.op[:80]} -> {node.output[:80]}"
    if node.output not in graph.values:
        raise GraphError(f"{where}: its output is no value of the graph")
    for name in node.inputs:
        if name not in known:
            raise GraphError(f"{where}: its input {short_repr(name)} is not made before it")
    for role, name in node.weights.items():
        if name not in graph.tensors:
            raise GraphError(f"{where}: the graph has no tensor {short_repr(name)} for its {role[:80]}")
    if not node.native:
        check_torch_node(node, trusted=trusted)
        return
    try:
        shape, dtype = infer_output(
            node.op,
            node.attrs,
            [_tensor_facts(graph.values[name]) for name in node.inputs],
            {role: TensorFacts.from_tensor(graph.tensors[name]) for role, name in node.weights.items()},
        )
    except GraphError as error:
        raise GraphError(f"{where}: {error}") from None
    made = graph.values[node.output]
    if (made.shape, made.dtype) != (shape, dtype):
        raise GraphError(f"{where}: it makes {dtype} {shape}, but its output is said to be {made.dtype} {made.shape}")


def _tensor_facts(value: Value) -> TensorFacts:
    if value.shape is None:
        raise GraphError(f"its input {value.name!r} has no known shape")
    return TensorFacts(value.shape, value.dtype)


def _check_signature(graph: Graph) -> None:
    signature = graph.signature
    if signature is None:
        return
    if not isinstance(signature, dict) or set(signature) - OF_SIGNATURES != {"args", "kwargs", "names"}:
        raise GraphError("the graph's signature has not args, kwargs and names")
    args, kwargs, names = signature["args"], signature["kwargs"], signature["names"]
    if not isinstance(args, list) or not isinstance(kwargs, dict) or not isinstance(names, list):
        raise GraphError("the graph's signature has not args, kwargs and names")
    if not all(isinstance(name, str) for name in [*names, *kwargs]):
        raise GraphError("a name in the graph's signature is no text")
    if type(signature.get("fewest", 0)) is not int:
        raise GraphError("the fewest examples in the graph's signature are no number")
    defaults = signature.get("defaults", {})
    if not isinstance(defaults, dict) or any(tree is not None and [*value_names(tree)] for tree in defaults.values()):
        raise GraphError("the defaults in the graph's signature are no constants")
    found = [name for tree in [*args, *kwargs.values()] for name in value_names(tree)]
    if sorted(found) != sorted(graph.inputs):
        raise GraphError("the graph's signature does not name each of its inputs once")
