"""Converts a traced program to a graph of ATen operations, and lists the ATen overloads that lowering rules accept."""

from __future__ import annotations

import dataclasses
import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_unflatten

from ticketry_engine.capture.program import Constant, Multiple, Sizes, TracedProgram
from ticketry_engine.errors import CaptureError
from ticketry_engine.ir import DTYPES, UNFILED, Graph, Json, Node, Value, aten
from ticketry_engine.ir.binding import readable_tensor
from ticketry_engine.ir.native import dtype_name
from ticketry_engine.support.modules import name_without_wrappers

_OPERATORS: Mapping[Any, str] = {
    **{getattr(operator, name): name for name in aten.OPERATORS if hasattr(operator, name)},
    torch.sym_max: "max",
    torch.sym_min: "min",
    torch.sym_int: "int",
    torch.sym_float: "float",
    torch.sym_sqrt: "sqrt",  # what torch.export makes of math.sqrt
    math.trunc: "int",
}

_RESHAPES = {
    "aten.view.default": "aten.reshape.default",
    "aten._unsafe_view.default": "aten.reshape.default",
    "aten.view_copy.default": "aten.reshape.default",
    "aten.view_as.default": "aten.reshape_as.default",
}
"""Operation that requires a certain memory layout -> the equivalent operation for any memory layout."""

_BY_STRIDES = ("as_strided", "as_strided_copy", "as_strided_scatter", "_reshape_alias")
"""Operations whose result depends on the memory layout of their input."""


class _Leaf:
    """A placeholder for a tensor or constant while torch rebuilds the containers of a call's arguments or outputs."""

    def __init__(self, tree: Json) -> None:
        self.tree = tree


def convert(program: TracedProgram, model: nn.Module) -> tuple[Graph, dict[str, Sizes]]:
    """Return a traced program as a graph of torch operations, and the sizes of all tensors by value name."""
    reader = _GraphBuilder(program)
    nodes = [made for one in program.graph.nodes if one.op == "call_function" for made in reader.convert_node(one)]
    outputs = reader.encode_outputs(nodes)
    graph = Graph(
        inputs=tuple(reader.inputs),
        outputs=outputs,
        nodes=tuple(nodes),
        values=reader.values,
        tensors=reader.tensors,
        signature=_encode_signature(program, model, reader.arguments),
        notes=tuple(program.notes),
    )
    return graph, reader.sizes


class _GraphBuilder:
    """Builds nodes, values and weights from a traced program, in the order of its operations."""

    def __init__(self, program: TracedProgram) -> None:
        self.program = program
        self.inputs: list[str] = []
        self.values: dict[str, Value] = {}
        self.sizes: dict[str, Sizes] = {}
        self.tensors: dict[str, Tensor] = {}
        self.weights: dict[str, str] = {}
        """Name of a traced placeholder -> name of the weight that the placeholder stands for."""
        self.arguments: dict[str, Json] = {}
        """Name of a placeholder for an argument of the model -> name of a value, or a constant."""
        self._add_placeholders()

    def _add_placeholders(self) -> None:
        same: dict[tuple[Any, ...], str] = {}
        for name, (target, tensor) in self.program.weights.items():
            tensor = readable_tensor(tensor.detach(), f"the weight {target!r}")
            key, own = (
                (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype),
                name_without_wrappers(target),
            )
            self.weights[name] = same.setdefault(key, own) if tensor.numel() else own
            self.tensors[self.weights[name]] = tensor
        for one in self.program.graph.nodes:
            if one.op == "placeholder" and one.name in self.program.inputs:
                self.inputs.append(one.name)
                self._add_value(one)
                self.arguments[one.name] = one.name
        for name, value in self.program.constants.items():
            self.arguments[name] = {"constant": _require_json_value(value, name)}

    def _add_value(self, node: fx.Node) -> None:
        made = node.meta.get("val")
        if isinstance(made, Tensor):
            self._add_tensor(node.name, made, self.program.sizes(node))
        else:
            kind = "list" if isinstance(made, (tuple, list)) else "number"
            self.values[node.name] = Value(node.name, None, kind)

    def _add_tensor(self, name: str, made: Tensor, sizes: Sizes) -> None:
        self.sizes[name] = sizes
        dtype = dtype_name(made.dtype)
        if dtype not in DTYPES | UNFILED:
            raise CaptureError(f"the value {name!r} is of the data type {dtype}, which the engine does not know")
        self.values[name] = Value(name, shape_from_sizes(sizes), dtype)

    def convert_node(self, node: fx.Node) -> list[Node]:
        """Return the node for a traced operation as a list; return [] if the operation only checks an assertion."""
        op = self._operation_name(node)
        if not op:
            return []
        inputs: dict[str, None] = {}
        weights: dict[str, str] = {}
        encode = self._argument_encoder(node, inputs, weights)
        args = [encode(arg) for arg in node.args]
        kwargs = {
            name: encode(arg) for name, arg in node.kwargs.items() if name not in ("layout", "pin_memory", "generator")
        }
        self._add_value(node)
        return [Node(op, tuple(inputs), node.name, {"args": args, "kwargs": kwargs}, weights)]

    def _operation_name(self, node: fx.Node) -> str:
        target = node.target
        if isinstance(target, torch._ops.OpOverload):
            if not target._schema.returns:
                return ""
            namespace, _, name = target._schema.name.partition("::")
            if namespace == "aten" and name in _BY_STRIDES:
                _refuse_strided_view(node)
            op = f"{namespace}.{name}.{target._overloadname or 'default'}"
            return _RESHAPES.get(op, op)
        if target in _OPERATORS:
            return f"operator.{_OPERATORS[target]}"
        if isinstance(target, torch._ops.HigherOrderOperator):
            raise CaptureError(
                f"the model's control flow depends on tensors ({target}): the engine takes networks that do the same"
                " for every input"
            )
        raise CaptureError(f"the model computes with {target} on sizes, which the engine does not know")

    def _argument_encoder(
        self, node: fx.Node, inputs: dict[str, None], weights: dict[str, str]
    ) -> Callable[[Any], Json]:
        def encode(arg: Any) -> Json:
            if isinstance(arg, fx.Node):
                if arg.name in self.weights:
                    name = self.weights[arg.name]
                    weights[name] = name
                    return {"tensor": name}
                if arg.name in self.arguments and not isinstance(self.arguments[arg.name], str):
                    return self.arguments[arg.name]["constant"]
                inputs[arg.name] = None
                return {"value": arg.name}
            if isinstance(arg, (list, tuple)):
                return [encode(part) for part in arg]
            return _encode_argument(arg, str(node.target))

        return encode

    def encode_outputs(self, nodes: list[Node]) -> Json:
        """Return the call's output containers as JSON, with value names in place of tensors.

        If an output is a weight, append a node to `nodes` that copies the weight to a value.
        """
        found: list[Json] = []
        for one in self.program.outputs:
            if isinstance(one, Constant):
                found.append({"constant": _require_json_value(one.value, "an output")})
            elif one.name in self.weights:
                weight = self.weights[one.name]
                name = f"{weight}.value"
                nodes.append(
                    Node("aten.clone.default", (), name, {"args": [{"tensor": weight}], "kwargs": {}}, {weight: weight})
                )
                tensor = self.tensors[weight]
                self._add_tensor(name, tensor, tuple(tensor.shape))
                found.append(name)
            else:
                found.append(self.arguments.get(one.name, one.name))
        return _encode_containers(tree_unflatten([_Leaf(tree) for tree in found], self.program.out_spec))


def _refuse_strided_view(node: fx.Node) -> None:
    """Raise `CaptureError` if `node` reads memory by strides, and its input is a view of a larger tensor."""
    read = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], fx.Node) else None
    if (
        not isinstance(read, Tensor)
        or not read.is_contiguous()
        or read.storage_offset()
        or read.untyped_storage().nbytes() != read.numel() * read.element_size()
    ):
        raise CaptureError(
            f"the model reads memory by strides ({node.target}) of a view of another tensor, which has another"
            " layout when it is compiled: use unfold, slices or an index in its place, or call contiguous() before"
        )


def shape_from_sizes(sizes: Sizes) -> tuple[int | None, ...] | None:
    """Return `sizes` with None in place of the batch size; return None if another size is unknown or varies."""
    rest = [size for size in sizes[1:] if isinstance(size, int)]
    if len(rest) < len(sizes) - 1:
        return None
    first = sizes[0] if sizes else None
    if first is None:
        return None if sizes else ()
    if isinstance(first, Multiple):
        return (None, *rest) if first.of_batch == 1 else None
    return (first, *rest)


def _encode_argument(arg: Any, where: str) -> Json:
    if isinstance(arg, float) and not math.isfinite(arg):
        return {"float": str(arg)}
    if isinstance(arg, complex):
        return {"complex": str(arg)}
    if arg is None or isinstance(arg, (bool, int, float, str)):
        return arg
    if isinstance(arg, torch.dtype):
        return {"dtype": dtype_name(arg)}
    if isinstance(arg, torch.memory_format):
        return {"memory_format": dtype_name(arg)}
    if isinstance(arg, torch.device):
        return {"device": "own"}
    if isinstance(arg, torch.layout):
        return None
    raise CaptureError(f"{where} has an argument of the type {type(arg).__name__}, which a graph cannot hold")


def _require_json_value(value: Any, where: str) -> Json:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CaptureError(f"{where} is {type(value).__name__}: inputs and outputs have to be tensors, numbers or texts")


def _encode_signature(program: TracedProgram, model: nn.Module, arguments: Mapping[str, Json]) -> Json:
    flat = []
    for given in program.inputs:
        flat.append(
            _Leaf(
                {"constant": _require_json_value(given.value, "an input")}
                if isinstance(given, Constant)
                else arguments[given]
            )
        )
    args, kwargs = tree_unflatten(flat, program.in_spec)
    names = [
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return {
        "args": [_encode_containers(arg) for arg in args],
        "kwargs": {name: _encode_containers(arg) for name, arg in kwargs.items()},
        "names": names,
    }


def _encode_containers(found: Any) -> Json:
    """Return containers of `_Leaf` objects and constants as JSON in the form of `Graph.outputs`."""
    if isinstance(found, _Leaf):
        return found.tree
    if isinstance(found, Mapping):
        kinds = {type(key) for key in found}
        if kinds - {str} and kinds != {int}:
            raise CaptureError(
                f"a dict of the inputs or outputs has the keys {', '.join(map(repr, found))[:200]}: in a graph all keys"
                " of a dict are names, or all are whole numbers"
            )
        kind = "numbered" if int in kinds else "record" if hasattr(found, "to_tuple") else "dict"
        return {kind: {str(key): _encode_containers(part) for key, part in found.items()}}
    if isinstance(found, tuple):
        fields = getattr(found, "_fields", None) or getattr(found, "__match_args__", None)  # of torch's ``max``
        if fields is not None:
            return {"fields": {name: _encode_containers(part) for name, part in zip(fields, found, strict=True)}}
        return {"tuple": [_encode_containers(part) for part in found]}
    if isinstance(found, list):
        return {"list": [_encode_containers(part) for part in found]}
    if dataclasses.is_dataclass(found):
        return {"record": {one.name: _encode_containers(getattr(found, one.name)) for one in dataclasses.fields(found)}}
    return {"constant": _require_json_value(found, "an input or output")}


# -- overloads ---------------------------------------------------------------------------------------------------------

# `view.dtype` reinterprets bits, where `view` changes a shape; `div.Tensor_mode` rounds; `clamp.Tensor` has bounds for
# each element; `mm.dtype` makes another type. A rule is given a node of these overloads only.

_LISTED = """
conv1d default padding
conv2d default padding
conv_transpose2d input
softmax int
mean dim
sum dim_IntList
pow Tensor_Scalar
add Tensor Scalar
sub Tensor Scalar
rsub Tensor Scalar
mul Tensor Scalar
div Tensor Scalar
to device dtype other dtype_layout
flatten using_ints
unflatten int
squeeze default dim dims
transpose int
movedim int intlist
moveaxis int intlist
slice Tensor
select int
split Tensor sizes
unbind int
repeat_interleave self_int
upsample_nearest2d default vec
upsample_bilinear2d default vec
upsample_bicubic2d default vec
"""

OVERLOADS: Mapping[str, frozenset[str]] = {
    name: frozenset(overloads) for name, *overloads in (line.split() for line in _LISTED.strip().splitlines())
}
"""Name of an operation -> the overloads that rules accept; of an operation not listed, rules accept only "default"."""
