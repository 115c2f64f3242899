"""A graph that contradicts itself is refused, with the place and the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from engine.ir.graphs import small
from ticketry.errors import GraphError
from ticketry_engine.ir import Graph, Node, Value, native_node
from ticketry_engine.ir.native import TensorFacts, infer_output


def with_node(index: int, **changes: Any) -> Graph:
    graph = small()
    nodes = list(graph.nodes)
    nodes[index] = replace(nodes[index], **changes)
    return replace(graph, nodes=tuple(nodes))


def with_attr(index: int, **changes: Any) -> Graph:
    return with_node(index, attrs={**small().nodes[index].attrs, **changes})


def with_value(name: str, **changes: Any) -> Graph:
    graph = small()
    return replace(graph, values={**graph.values, name: replace(graph.values[name], **changes)})


def with_tensor(name: str, tensor: torch.Tensor) -> Graph:
    graph = small()
    return replace(graph, tensors={**graph.tensors, name: tensor})


def torch_node(args: list[Any], op: str = "aten.reshape.default", **changes: Any) -> Graph:
    return with_node(6, op=op, attrs={"args": args, "kwargs": {}}, **changes)


D, M = {"value": "d"}, {"value": "m"}

WRONG: dict[str, tuple[Callable[[], Graph], str]] = {
    "unknown operation": (lambda: with_node(0, op="conv3d"), "'conv3d' is not one that a graph in a file may have"),
    "operation that writes": (
        lambda: torch_node([D, M], "aten.add_.Tensor"),
        "not one that a graph in a file may have",
    ),
    "operation with a file": (lambda: torch_node(["/etc/passwd"], "aten.from_file.default"), "not one that a graph"),
    "attribute of python": (lambda: torch_node([D], "aten.__class__.mro"), "not one that a graph"),
    "overload that is none": (lambda: torch_node([D, M], "aten.reshape.Scalar"), "torch .* has no operation"),
    "used before made": (lambda: with_node(0, inputs=("b",)), "'b' is not made before it"),
    "never made": (lambda: with_node(0, inputs=("zz",)), "'zz' is not made before it"),
    "made twice": (lambda: with_node(1, output="a"), "two nodes make a value of the same name"),
    "makes the input": (lambda: with_node(1, output="x"), "makes the graph's input 'x'"),
    "value of nobody": (lambda: with_node(10, output="other"), "is no value of the graph|made by no node"),
    "weight that is not there": (lambda: with_node(0, weights={"weight": "w"}), "has no tensor 'w' for its weight"),
    "role that is none": (
        lambda: with_node(0, weights={"weight": "conv.weight", "scale": "norm.scale"}),
        "its weights have to be",
    ),
    "weight of another shape": (lambda: with_tensor("conv.weight", torch.ones(4, 2, 3, 3)), "3 channels do not fit"),
    "bias of another shape": (lambda: with_tensor("conv.bias", torch.ones(3)), "bias has the shape"),
    "empty kernel": (lambda: with_tensor("conv.weight", torch.ones(4, 3, 0, 3)), "has no elements"),
    "weight of another type": (lambda: with_tensor("conv.weight", torch.ones(4, 3, 3, 3).half()), "several data types"),
    "weight of integers": (lambda: with_tensor("conv.weight", torch.ones(4, 3, 3, 3).long()), "several data types"),
    "shape that does not follow": (
        lambda: with_value("a", shape=(None, 4, 5, 6)),
        r"it makes float32 \(None, 4, 6, 6\)",
    ),
    "type that does not follow": (lambda: with_value("a", dtype="float16"), "it makes float32"),
    "unknown type": (lambda: with_value("a", dtype="float8"), "unknown data type 'float8'"),
    "batch elsewhere": (lambda: with_value("x", shape=(3, None, 6, 6)), "impossible shape"),
    "negative size": (lambda: with_value("x", shape=(None, -3, 6, 6)), "impossible shape"),
    "true for a size": (lambda: with_value("x", shape=(None, True, 6, 6)), "impossible shape"),
    "huge value": (lambda: with_value("x", shape=(None, 1 << 20, 1 << 20, 6)), "too large"),
    "many dimensions": (lambda: with_value("e", shape=(1,) * 40), "dimensions"),
    "name of another": (
        lambda: replace(small(), values={**small().values, "x": Value("y", (None, 1))}),
        "calls itself 'y'",
    ),
    "long name": (
        lambda: replace(small(), values={**small().values, "n" * 600: Value("n" * 600, None)}),
        "is no name",
    ),
    "value without maker": (
        lambda: replace(small(), values={**small().values, "q": Value("q", ())}),
        "makes the value 'q'",
    ),
    "stride of 0": (lambda: with_attr(0, stride=[0, 1]), r"stride cannot be \[0, 1\]"),
    "stride of one axis": (lambda: with_attr(0, stride=[1]), "stride cannot be"),
    "huge padding": (lambda: with_attr(0, padding=[1 << 20, 0]), "padding cannot be"),
    "half a dilation": (lambda: with_attr(0, dilation=[1, 0.5]), "dilation cannot be"),
    "no groups": (lambda: with_attr(0, groups=0), "groups cannot be 0"),
    "groups that do not divide": (lambda: with_attr(0, groups=3), "3 channels do not fit"),
    "unknown act": (lambda: with_attr(0, act="softsign"), "act cannot be 'softsign'"),
    "slope of a text": (lambda: with_attr(0, act={"leaky_relu": "0.1"}), "act cannot be"),
    "slope that is no number": (lambda: with_attr(0, act={"leaky_relu": float("nan")}), "act cannot be"),
    "huge slope": (lambda: with_attr(0, act={"leaky_relu": 10**400}), "act cannot be"),
    "attribute too many": (lambda: with_attr(0, bias=True), "its attributes have to be"),
    "attribute missing": (lambda: with_node(0, attrs={"act": None}), "its attributes have to be"),
    "residual of another shape": (lambda: with_node(1, inputs=("a", "x")), "the residual has the shape"),
    "too many inputs": (lambda: with_node(1, inputs=("a", "a", "a")), "inputs, got 3"),
    "input without a shape": (lambda: with_node(10, inputs=("g",)), "'g' has no known shape"),
    "torch node with an attribute": (
        lambda: with_node(6, attrs={"args": [], "kwargs": {}, "more": 1}),
        "args and kwargs",
    ),
    "torch node without arguments": (lambda: torch_node([], inputs=()), "not those of the operation, self, shape"),
    "too many arguments": (lambda: torch_node([D, [M, 9], 1]), "not those of the operation"),
    "unnamed input": (lambda: torch_node([D, [4, 9]]), "name other values than its inputs"),
    "unnamed weight": (lambda: torch_node([{"tensor": "conv.bias"}, [M, 9]], inputs=("m",)), "name other tensors"),
    "argument that is none": (lambda: torch_node([D, [M, {"slice": 3}]]), "is no argument"),
    "argument of infinity": (lambda: torch_node([D, [M, float("inf")]]), "too large"),
    "argument beyond 64 bits": (lambda: torch_node([D, [M, 10**400]]), "too large"),
    "complex number that is none": (lambda: torch_node([D, [M, {"complex": "1+j"}]]), "is no argument"),
    "unknown data type": (lambda: torch_node([D, [M, {"dtype": "load"}]]), "is no argument"),
    "deep argument": (lambda: torch_node([D, [[[[[[[[[[M]]]]]]]]]]]), "is no argument"),
    "three numbers to multiply": (
        lambda: with_node(5, attrs={"args": [{"value": "n"}, 4, 4], "kwargs": {}}),
        "number of arg",
    ),
    "output of nobody": (lambda: replace(small(), outputs={"tuple": ["y", "zz"]}), "'zz' is made by no node"),
    "output of no kind": (lambda: replace(small(), outputs={"set": ["y"]}), "no tree of values"),
    "output of two kinds": (lambda: replace(small(), outputs={"tuple": ["y"], "list": []}), "no tree of values"),
    "signature without names": (
        lambda: replace(small(), signature={"args": ["x"], "kwargs": {}}),
        "args, kwargs and names",
    ),
    "signature without input": (
        lambda: replace(small(), signature={"args": [], "kwargs": {}, "names": []}),
        "each of its inputs once",
    ),
    "value that clears the screen": (
        lambda: replace(small(), values={**small().values, "\x1b[2J": Value("\x1b[2J", None)}),
        r"the name '\\x1b\[2J' has characters that cannot be printed",
    ),
    "weight that does": (
        lambda: replace(small(), tensors={**small().tensors, "a\x1b": torch.ones(1)}),
        "cannot be printed",
    ),
    "operation that does": (lambda: with_node(6, op="aten.\x1b"), "cannot be printed"),
    "note that does": (lambda: replace(small(), notes=("\u202e",)), "cannot be printed"),
    "output that does": (lambda: replace(small(), outputs={"dict": {"\x1b": "y", "g": "g"}}), "cannot be printed"),
    "argument that does": (
        lambda: replace(small(), signature={"args": ["x"], "kwargs": {}, "names": ["\x07"]}),
        "cannot be printed",
    ),
    "input of no shape": (lambda: with_value("x", shape=None), "no tensor of a known shape"),
}


def test_the_small_graph_is_consistent():
    graph = small()
    assert graph.validate() is graph
    assert graph.accepts_any_batch
    assert graph.output_names == ("y", "g")


@pytest.mark.parametrize("name", WRONG)
def test_contradictions(name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises(GraphError, match=message):
        make().validate()


def test_constants_are_any_text() -> None:
    signature = {"args": ["x"], "kwargs": {"mode": {"constant": "a\n"}}, "names": ["x"]}
    replace(small(), signature=signature).validate()


def test_deep_output():
    tree: Any = "y"
    for _ in range(5000):
        tree = {"tuple": [tree]}
    with pytest.raises(GraphError, match="no tree of values"):
        replace(small(), outputs=tree).validate()


def test_unused_nodes_leave_with_their_weights():
    graph = small()
    kept = graph.with_nodes([one for one in graph.nodes if one.output != "y"])
    assert "y" not in kept.values
    assert "last.weight" not in kept.tensors


# -- shapes against torch's --------------------------------------------------------------------------------------------

SIZES = st.integers(1, 12)
STEPS = st.integers(1, 3)
PADS = st.integers(0, 3)


def shape_by(op: str, x: torch.Tensor, weights: dict[str, torch.Tensor] | None = None, **attrs: Any) -> Any:
    """What `infer_output` says, or None if it refuses."""
    made = native_node(op, ("x",), "y", dict.fromkeys(weights or {}, "w"), **attrs)
    facts = {role: TensorFacts(tuple(weight.shape), "float32") for role, weight in (weights or {}).items()}
    try:
        return infer_output(op, made.attrs, [TensorFacts(tuple(x.shape), "float32")], facts)[0]
    except GraphError:
        return None


def shape_of(function: Callable[[], torch.Tensor]) -> Any:
    """What torch makes, or None if it refuses or makes nothing."""
    try:
        made = function()
    except (RuntimeError, ValueError):
        return None
    return tuple(made.shape) if made.numel() else None


@given(SIZES, SIZES, st.tuples(STEPS, STEPS), st.tuples(STEPS, STEPS), st.tuples(PADS, PADS), STEPS)
def test_shapes_of_convolutions(height, width, kernel, stride, padding, dilation):
    x, weight = torch.zeros(2, 4, height, width), torch.zeros(6, 2, *kernel)
    found = shape_by(
        "conv2d", x, {"weight": weight}, stride=stride, padding=padding, dilation=(dilation, dilation), groups=2
    )
    assert found == shape_of(lambda: F.conv2d(x, weight, None, stride, padding, dilation, 2))


@given(SIZES, SIZES, st.tuples(STEPS, STEPS), st.tuples(STEPS, STEPS), st.tuples(PADS, PADS), STEPS, st.booleans())
def test_shapes_of_poolings(height, width, kernel, stride, padding, dilation, ceil):
    x = torch.zeros(2, 3, height, width)
    window = {"kernel": kernel, "stride": stride, "padding": padding, "ceil": ceil}
    largest = shape_by("max_pool2d", x, **window, dilation=(dilation, dilation))
    assert largest == shape_of(lambda: F.max_pool2d(x, kernel, stride, padding, dilation, ceil))
    mean = shape_by("avg_pool2d", x, **window)
    assert mean == shape_of(lambda: F.avg_pool2d(x, kernel, stride, padding, ceil))


def test_a_node_has_all_attributes():
    assert native_node("conv2d", ("x",), "y", {"weight": "w"}, stride=(2, 2)).attrs == {
        "act": None,
        "stride": [2, 2],
        "padding": [0, 0],
        "dilation": [1, 1],
        "groups": 1,
    }
    with pytest.raises(GraphError, match="no native operation 'conv9d'"):
        native_node("conv9d", (), "y")
    assert not Node("aten.relu.default", ("x",), "y").native
