"""Rewrites a graph node by node; all capture passes use this module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ticketry_engine.capture.convert import OVERLOADS
from ticketry_engine.capture.program import Multiple, Sizes
from ticketry_engine.ir import FLOATS, Graph, Json, Node, Value, aten, native_node, with_value_names
from ticketry_engine.ir.native import TensorFacts, accepts_attributes, infer_output

Shape: TypeAlias = "tuple[int | None, ...]"

OpArguments: TypeAlias = "dict[str, Json]"
"""Arguments of an ATen node, by argument name."""

Rule: TypeAlias = "Callable[[Editor, Node], list[Node] | str | None]"
"""Function that returns the replacement of a node.

The replacement is the name of an equal value, or a list of nodes; the last one computes the node's output. To keep
the node, the function returns None or raises `NoMatchError`.
"""

Lowering: TypeAlias = "Callable[[Editor, Node, OpArguments], list[Node] | str | None]"
"""Function that returns the replacement of an ATen node, given its arguments."""


class NoMatchError(Exception):
    """Error of a function that rewrites nodes of a graph, if the given node is not of the kind that it rewrites."""


def finite_number(arg: Json) -> float:
    """Return an argument as a float; raise `NoMatchError` if the argument is not a finite number."""
    require_match(isinstance(arg, (int, float)))
    return float(arg)


def require_match(condition: object) -> None:
    """Raise `NoMatchError` unless the condition holds."""
    if not condition:
        raise NoMatchError


@dataclass
class Editor:
    """A graph that is being rewritten: gives access to its values, weights and nodes, and adds values and weights."""

    graph: Graph
    values: dict[str, Value]
    tensors: dict[str, Tensor]
    sizes: Mapping[str, Sizes]
    """Name of a captured value -> its sizes; includes values whose batch is not at axis 0."""
    makers: dict[str, Node]
    """Name of a value -> the node that computes the value, among the nodes rewritten so far."""
    uses: Mapping[str, int]
    """Name of a value -> how often nodes and the graph's outputs read the value before the pass."""
    holders: Mapping[str, int]
    """Name of a weight -> number of nodes that use the weight before the pass."""

    _constants: dict[tuple[Any, ...], str] = field(default_factory=dict)

    @classmethod
    def from_graph(cls, graph: Graph, sizes: Mapping[str, Sizes] | None = None) -> Editor:
        """Return an editor for a graph; `sizes` are the sizes of the captured values."""
        holders = Counter(name for one in graph.nodes for name in one.weights.values())
        return cls(graph, dict(graph.values), dict(graph.tensors), sizes or {}, {}, graph.read_counts(), holders)

    def shape(self, name: str) -> Shape | None:
        return self.values[name].shape

    def value_sizes(self, name: str) -> Sizes | None:
        """Return the sizes of a value, including the batch size; None if any size is unknown."""
        found = self.sizes.get(name)
        if found is None and (shape := self.shape(name)) is not None:
            found = tuple(Multiple(1) if size is None else size for size in shape)
        return None if found is None or None in found else found

    def have_same_sizes(self, one: str, other: str) -> bool:
        """Return whether the sizes of two values are known and equal."""
        return self.value_sizes(one) is not None and self.value_sizes(one) == self.value_sizes(other)

    def share_float_dtype(self, *names: str) -> bool:
        """Return whether all values have known shapes and the same floating-point data type."""
        kinds = {self.values[name].dtype for name in names}
        known = all(self.values[name].shape is not None for name in names)
        return known and len(kinds) == 1 and kinds <= FLOATS

    def float_inputs(self, node: Node, *args: Json, axes: int | None = None) -> list[str]:
        """Return the names of the values that `args`, arguments of `node`, refer to.

        Raise `NoMatchError` if an argument refers to no value; if the values and the node's output do not all have one
        floating-point data type; or if a value does not have `axes` axes (None: at least one axis).
        """
        names = [value_name(arg) for arg in args]
        found = [name for name in names if name is not None]
        require_match(len(found) == len(names) and self.share_float_dtype(*found, node.output))
        shapes = [self.shape(name) or () for name in found]
        require_match(all(len(shape) == axes if axes is not None else shape for shape in shapes))
        return found

    def add_value(self, like: str, shape: Shape, suffix: str = "part") -> str:
        """Add a value of the given shape with the data type of the value `like`, and return the new value's name."""
        name = unused_name(f"{like}.{suffix}", self.values)
        self.values[name] = Value(name, shape, self.values[like].dtype)
        return name

    def add_weight(self, name: str, tensor: Tensor) -> str:
        """Add `tensor` as the weight `name`, with a number appended if the name is taken; return the weight's name."""
        known = self.tensors.get(name)
        if known is tensor:
            return name
        name = unused_name(name, self.tensors)
        self.tensors[name] = tensor
        return name

    def add_constant(self, name: str, tensor: Tensor) -> str:
        """Add a constant as a weight, unless this method added an equal weight before; return the weight's name."""
        tensor = tensor.contiguous()
        key = (str(tensor.dtype), tuple(tensor.shape), tensor.view(torch.uint8).numpy().tobytes())
        if key not in self._constants:
            self._constants[key] = self.add_weight(name, tensor)
        return self._constants[key]

    def replace_weight(self, name: str, tensor: Tensor) -> str:
        """Replace the weight `name` by `tensor` if at most one node uses it, else add a new weight; return the name."""
        if self.holders.get(name, 0) > 1:
            return self.add_weight(name, tensor)
        self.tensors[name] = tensor
        return name

    def make_node(
        self, op: str, inputs: tuple[str, ...], like: str, weights: Mapping[str, str] | None = None, **attrs: Json
    ) -> Node:
        """Return a node with one of the engine's own operations, and add a value for its output.

        The value has the shape that follows from the inputs and the data type of `like`.
        """
        made = native_node(op, inputs, "", weights, **attrs)
        return replace(made, output=self.add_value(like, self.infer_shape(made)))

    def infer_shape(self, node: Node) -> Shape:
        """Return the output shape of a node with one of the engine's own operations."""
        inputs = [TensorFacts(self.shape(name) or (), self.values[name].dtype) for name in node.inputs]
        weights = {role: TensorFacts.from_tensor(self.tensors[name]) for role, name in node.weights.items()}
        return infer_output(node.op, node.attrs, inputs, weights)[0]

    def match_maker(self, name: str | None, *ops: str, act: Json = None) -> Node:
        """Return the node that computes `name`; its operation must be in `ops`, and its activation must be `act`.

        Torch operations in `ops` are named without overload, such as "relu". Raise `NoMatchError` if the node differs.
        """
        maker = self.makers.get(name or "")
        if (
            maker is None
            or (maker.op if maker.native else aten_name(maker)) not in ops
            or maker.attrs.get("act") != act
        ):
            raise NoMatchError
        return maker

    def maker_if_read_once(self, name: str) -> Node | None:
        """Return the node that computes the value `name` if the value is read exactly once; else None."""
        return self.makers.get(name) if self.uses.get(name, 0) == 1 else None


def unused_name(name: str, taken: Mapping[str, Any]) -> str:
    """Return `name`, with a number appended if it is taken."""
    if name not in taken:
        return name
    number = 1
    while f"{name}.{number}" in taken:
        number += 1
    return f"{name}.{number}"


def rewrite_nodes(graph: Graph, rule: Rule, sizes: Mapping[str, Sizes] | None = None) -> Graph:
    """Return the graph after calling `rule` once for every node, in the graph's order, to replace the node.

    `sizes` are the sizes of the captured values by name.
    """
    editor = Editor.from_graph(graph, sizes)
    renamed: dict[str, str] = {}
    done: list[Node] = []
    for old in graph.nodes:
        current = with_renamed_inputs(old, renamed)
        try:
            made = rule(editor, current)
        except NoMatchError:
            made = None
        if isinstance(made, list) and not all(accepts_attributes(one.op, one.attrs) for one in made if one.native):
            made = None  # such as a number that float32 cannot represent
        if isinstance(made, str):
            renamed[old.output] = made
            continue
        for one in [current] if made is None else made:
            editor.makers[one.output] = one
            done.append(one)
    outputs = with_value_names(graph.outputs, lambda name: renamed.get(name, name))
    changed = replace(graph, values=editor.values, tensors=editor.tensors, outputs=outputs)
    return without_unused_nodes(changed.with_nodes(done))


def with_last_output(nodes: list[Node], x: str, output: str) -> list[Node] | str:
    """Return `nodes` with the last node's output renamed to `output`; return the name `x` if there are no nodes."""
    if not nodes:
        return x
    return [*nodes[:-1], replace(nodes[-1], output=output)]


def with_renamed_inputs(node: Node, renamed: Mapping[str, str]) -> Node:
    """Return the node with inputs renamed by the mapping `renamed` from old to new names."""
    if not any(name in renamed for name in node.inputs):
        return node
    if node.native:
        return replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
    return with_replaced_values(node, {name: {"value": renamed[name]} for name in node.inputs if name in renamed})


def with_replaced_values(node: Node, changed: Mapping[str, Json]) -> Node:
    """Return a node that torch runs with other arguments.

    `changed` maps names of values that the node reads to the arguments, as JSON, that replace them.
    """
    inputs: dict[str, None] = {}
    weights: dict[str, str] = {}

    def replace_value(kind: str, content: str) -> Json:
        made = changed.get(content, {kind: content}) if kind == "value" else {kind: content}
        if (name := value_name(made)) is not None:
            inputs[name] = None
        elif (name := weight_name(made)) is not None:
            weights[name] = name
        return made

    attrs = aten.replace_objects(node.attrs, replace_value)
    return replace(node, inputs=tuple(inputs), attrs=attrs, weights=weights)


def without_unused_nodes(graph: Graph) -> Graph:
    """Return the graph without nodes that contribute to no output of the graph."""
    wanted = set(graph.output_names)
    kept = []
    for one in reversed(graph.nodes):
        if one.output in wanted:
            kept.append(one)
            wanted.update(one.inputs)
    return graph.with_nodes(kept[::-1])


# -- arguments of torch nodes ------------------------------------------------------------------------------------------


def bind_arguments(node: Node) -> OpArguments:
    """Return the arguments of a torch operation by name, including defaults; {} for arithmetic with sizes."""
    if node.op.startswith("operator."):
        return {}
    schema = aten.find_operation(node.op, trusted=True)._schema
    found = {known.name: known.default_value for known in schema.arguments if known.has_default_value()}
    found.update(zip((known.name for known in schema.arguments), node.attrs["args"], strict=False))
    found.update(node.attrs["kwargs"])
    return found


def value_name(arg: Json) -> str | None:
    """Return the name of the value that an argument refers to, or None."""
    return arg["value"] if isinstance(arg, dict) and "value" in arg else None


def weight_name(arg: Json) -> str | None:
    """Return the name of the weight that an argument refers to, or None."""
    return arg["tensor"] if isinstance(arg, dict) and "tensor" in arg else None


def constant_number(arg: Json, tensors: Mapping[str, Tensor]) -> float | None:
    """Return a number, or a weight with one element, as a float; return None for any other argument."""
    if isinstance(arg, (int, float)) and not isinstance(arg, bool):
        return float(arg)
    name = weight_name(arg)
    if name is not None and tensors[name].numel() == 1 and tensors[name].dtype != torch.bool:
        return float(tensors[name])
    return None


def aten_name(node: Node) -> str:
    """Return the name of a node's torch operation without the overload, or "getitem" for an entry of a list.

    Return "" for the engine's own operations, for arithmetic on sizes, and for overloads that are not in `OVERLOADS`.
    """
    kind, _, rest = node.op.partition(".")
    name, _, overload = rest.partition(".")
    if kind == "aten":
        return name if overload in OVERLOADS.get(name, ("default",)) else ""
    return name if rest == "getitem" else ""


def name_without_overload(node: Node) -> str:
    """Return the name of a torch operation without its overload; "" for any other node."""
    kind, _, rest = node.op.partition(".")
    return rest.partition(".")[0] if kind == "aten" else ""
