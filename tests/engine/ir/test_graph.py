"""A graph that contradicts itself is refused with the reason; its tensors are traced back to parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ticketry as tk
from engine.ir.graphs import small
from engine.models import Of
from ticketry.errors import GraphError
from ticketry_engine.capture import capture
from ticketry_engine.ir import Graph, Node, Value, last_uses, native_node
from ticketry_engine.ir.graph import layer_name, tensor_origins
from ticketry_engine.ir.native import TensorFacts, infer_output


def changed(**parts: Any) -> Graph:
    return replace(small(), **parts)


def with_node(index: int, **changes: Any) -> Graph:
    nodes = list(small().nodes)
    nodes[index] = replace(nodes[index], **changes)
    return changed(nodes=tuple(nodes))


def with_attr(index: int, **changes: Any) -> Graph:
    return with_node(index, attrs={**small().nodes[index].attrs, **changes})


def with_value(name: str, **changes: Any) -> Graph:
    return more_values(replace(small().values[name], **changes), name)


def more_values(value: Value, name: str | None = None) -> Graph:
    return changed(values={**small().values, name or value.name: value})


def with_tensor(name: str, tensor: torch.Tensor) -> Graph:
    return changed(tensors={**small().tensors, name: tensor})


def torch_node(args: list[Any], op: str = "aten.reshape.default", **changes: Any) -> Graph:
    return with_node(6, op=op, attrs={"args": args, "kwargs": {}}, **changes)


def with_signature(args: list[str], **more: Any) -> Graph:
    return changed(signature={"args": args, "kwargs": {}, **more})


D, M = {"value": "d"}, {"value": "m"}

WRONG: dict[str, tuple[Callable[[], Graph], str]] = {
    "unknown operation": (lambda: with_node(0, op="conv3d"), "'conv3d' is not one that a graph in a file may have"),
    "operation that writes": (lambda: torch_node([D, M], "aten.add_.Tensor"), "not one that a graph in a file may"),
    "operation with a file": (lambda: torch_node(["/etc/passwd"], "aten.from_file.default"), "not one that a graph"),
    "attribute of python": (lambda: torch_node([D], "aten.__class__.mro"), "not one that a graph"),
    "overload that is none": (lambda: torch_node([D, M], "aten.reshape.Scalar"), "torch .* has no operation"),
    "used before made": (lambda: with_node(0, inputs=("b",)), "'b' is not made before it"),
    "never made": (lambda: with_node(0, inputs=("zz",)), "'zz' is not made before it"),
    "made twice": (lambda: with_node(1, output="a"), "two nodes make a value of the same name"),
    "makes the input": (lambda: with_node(1, output="x"), "makes the graph's input 'x'"),
    "value of nobody": (lambda: with_node(10, output="other"), "is no value of the graph|made by no node"),
    "weight that is not there": (lambda: with_node(0, weights={"weight": "w"}), "has no tensor 'w' for its weight"),
    "role that is none": (lambda: with_node(0, weights={"weight": "conv.weight", "scale": "conv.bias"}), "its weights"),
    "weight of another shape": (lambda: with_tensor("conv.weight", torch.ones(4, 2, 3, 3)), "3 channels do not fit"),
    "bias of another shape": (lambda: with_tensor("conv.bias", torch.ones(3)), "bias has the shape"),
    "empty kernel": (lambda: with_tensor("conv.weight", torch.ones(4, 3, 0, 3)), "has no elements"),
    "weight of another type": (lambda: with_tensor("conv.weight", torch.ones(4, 3, 3, 3).half()), "several data types"),
    "shape that does not follow": (lambda: with_value("a", shape=(None, 4, 5, 6)), r"makes float32 \(None, 4, 6, 6\)"),
    "type that does not follow": (lambda: with_value("a", dtype="float16"), "it makes float32"),
    "unknown type": (lambda: with_value("a", dtype="float8"), "unknown data type 'float8'"),
    "batch elsewhere": (lambda: with_value("x", shape=(3, None, 6, 6)), "impossible shape"),
    "negative size": (lambda: with_value("x", shape=(None, -3, 6, 6)), "impossible shape"),
    "true for a size": (lambda: with_value("x", shape=(None, True, 6, 6)), "impossible shape"),
    "huge value": (lambda: with_value("x", shape=(None, 1 << 20, 1 << 20, 6)), "too large"),
    "many dimensions": (lambda: with_value("e", shape=(1,) * 40), "dimensions"),
    "name of another": (lambda: more_values(Value("y", (None, 1)), "x"), "calls itself 'y'"),
    "long name": (lambda: more_values(Value("n" * 600, None)), "is no name"),
    "value without maker": (lambda: more_values(Value("q", ())), "makes the value 'q'"),
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
    "torch node with an attribute": (lambda: with_node(6, attrs={"args": [], "kwargs": {}, "x": 1}), "args and kwargs"),
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
    "three numbers to multiply": (lambda: with_attr(5, args=[{"value": "n"}, 4, 4]), "number of arg"),
    "output of nobody": (lambda: changed(outputs={"tuple": ["y", "zz"]}), "'zz' is made by no node"),
    "output of no kind": (lambda: changed(outputs={"set": ["y"]}), "no tree of values"),
    "output of two kinds": (lambda: changed(outputs={"tuple": ["y"], "list": []}), "no tree of values"),
    "signature without names": (lambda: with_signature(["x"]), "args, kwargs and names"),
    "signature without input": (lambda: with_signature([], names=[]), "each of its inputs once"),
    "value that clears the screen": (
        lambda: more_values(Value("\x1b[2J", None)),
        r"the name '\\x1b\[2J' has characters that cannot be printed",
    ),
    "weight that does": (lambda: with_tensor("a\x1b", torch.ones(1)), "cannot be printed"),
    "operation that does": (lambda: with_node(6, op="aten.\x1b"), "cannot be printed"),
    "note that does": (lambda: changed(notes=("\u202e",)), "cannot be printed"),
    "output that does": (lambda: changed(outputs={"dict": {"\x1b": "y", "g": "g"}}), "cannot be printed"),
    "argument that does": (lambda: with_signature(["x"], names=["\x07"]), "cannot be printed"),
    "input of no shape": (lambda: with_value("x", shape=None), "no tensor of a known shape"),
}


@pytest.mark.parametrize("name", WRONG)
def test_contradictions(name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises(GraphError, match=message):
        make().validate()


def test_constants_are_any_text() -> None:
    graph = with_signature(["x"], names=["x"], kwargs={"mode": {"constant": "a\n"}})
    assert graph.validate() is graph


def test_deep_output():
    tree: Any = "y"
    for _ in range(5000):
        tree = {"tuple": [tree]}
    with pytest.raises(GraphError, match="no tree of values"):
        changed(outputs=tree).validate()


def test_values_are_needed_until_their_last_use():
    steps = [(("x",), ("a", "unread")), (("a", "x"), ("b",)), (("a", "b"), ("y",))]
    assert last_uses(steps, ["y"]) == [("unread",), ("x",), ("a", "b")]


def test_unused_nodes_leave_with_their_weights():
    graph = small()
    kept = graph.with_nodes([one for one in graph.nodes if one.output != "y"])
    assert "y" not in kept.values
    assert "last.weight" not in kept.tensors


SIZES, STEPS = st.integers(1, 12), st.integers(1, 3)
PAIRS, PADS = st.tuples(STEPS, STEPS), st.tuples(st.integers(0, 3), st.integers(0, 3))


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


@given(SIZES, SIZES, PAIRS, PAIRS, PADS, STEPS)
def test_shapes_of_convolutions(height, width, kernel, stride, padding, dilation):
    x, weight = torch.zeros(2, 4, height, width), torch.zeros(6, 2, *kernel)
    found = shape_by(
        "conv2d", x, {"weight": weight}, stride=stride, padding=padding, dilation=(dilation, dilation), groups=2
    )
    assert found == shape_of(lambda: F.conv2d(x, weight, None, stride, padding, dilation, 2))


@given(SIZES, SIZES, PAIRS, PAIRS, PADS, STEPS, st.booleans())
def test_shapes_of_poolings(height, width, kernel, stride, padding, dilation, ceil):
    x = torch.zeros(2, 3, height, width)
    window = {"kernel": kernel, "stride": stride, "padding": padding, "ceil": ceil}
    largest = shape_by("max_pool2d", x, **window, dilation=(dilation, dilation))
    assert largest == shape_of(lambda: F.max_pool2d(x, kernel, stride, padding, dilation, ceil))
    mean = shape_by("avg_pool2d", x, **window)
    assert mean == shape_of(lambda: F.avg_pool2d(x, kernel, stride, padding, ceil))


weight_norm = torch.nn.utils.parametrizations.weight_norm
BODY = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
ORIGINS = {
    "over one axis": (nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 1)), (3, 8)),
    "weight norm": (nn.Sequential(weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), weight_norm(nn.Linear(6, 6))), (3, 8, 8)),
    "a weight that another layer has turned": (
        Of(lambda m, x: nn.functional.linear(torch.tanh(m.code(x)), m.code.weight.t()), code=nn.Linear(8, 4)),
        (8,),
    ),
    "a norm folded into a convolution at each of two calls": (
        Of(lambda m, x: m.body(x) - m.body(2 * x), body=BODY),
        (3, 8, 8),
    ),
}


@pytest.mark.parametrize("name", ORIGINS)
def test_every_weight_is_found_and_masks_say_that_it_is_the_right_one(name: str) -> None:
    """A mask that keeps one weight of each row of a layer leaves as many in the tensors that are made of it alone."""
    model, shape = ORIGINS[name]
    model.eval()
    x = torch.randn(2, *shape)
    scope = tk.scope(model)
    of = tensor_origins(capture(model, None, x), scope.shapes)
    assert set(of.values()) == set(scope.shapes)
    for parameter in scope.shapes:
        kept = {one: torch.ones(size, dtype=torch.bool) for one, size in scope.shapes.items()}
        kept[parameter].flatten(1)[:, 1:] = False
        graph = capture(model, tk.Mask(kept), x)
        for tensor, origin in of.items():
            shape = scope.shapes[origin]
            kept_there = graph.tensors[tensor].count_nonzero() if graph.tensors[tensor].numel() == prod(shape) else -1
            assert bool(kept_there == shape[0]) == (origin == parameter), tensor


def test_layers_are_called_as_their_modules() -> None:
    told = ["0.weight", "0.weight.2d", "a.parametrizations.weight.original1.computed", "a.in_proj_weight", "b.weight.1"]
    assert [layer_name(name) for name in told] == ["0", "0", "a", "a.in_proj_weight", "b.weight.1"]


def test_a_node_has_all_attributes() -> None:
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
