"""Small graphs for tests."""

from __future__ import annotations

import torch

from ticketry_engine.ir import Graph, Node, Value, native_node


def small(seed: int = 0) -> Graph:
    """Most kinds of entries that a file has: native and torch nodes, sizes, lists, packed weights, a record."""
    generator = torch.Generator().manual_seed(seed)

    def weight(*shape: int, density: float = 1.0) -> torch.Tensor:
        made = torch.randn(shape, generator=generator)
        return made * (torch.rand(shape, generator=generator) < density)

    nodes = (
        native_node("conv2d", ("x",), "a", {"weight": "conv.weight", "bias": "conv.bias"}, padding=(1, 1), act="relu"),
        native_node("conv2d", ("a", "a"), "b", {"weight": "deep.weight"}, groups=4, act={"leaky_relu": 0.1}),
        native_node("affine", ("b",), "c", {"scale": "norm.scale", "shift": "norm.shift"}, act="silu"),
        native_node("max_pool2d", ("c",), "d", kernel=(2, 2), stride=(2, 2)),
        Node("aten.sym_size.int", ("x",), "n", {"args": [{"value": "x"}, 0], "kwargs": {}}),
        Node("operator.mul", ("n",), "m", {"args": [{"value": "n"}, 4], "kwargs": {}}),
        Node("aten.reshape.default", ("d", "m"), "e", {"args": [{"value": "d"}, [{"value": "m"}, 9]], "kwargs": {}}),
        Node("aten.split.Tensor", ("e",), "f", {"args": [{"value": "e"}, 3, 1], "kwargs": {}}),
        Node("operator.getitem", ("f",), "g", {"args": [{"value": "f"}, 1], "kwargs": {}}),
        native_node("flatten", ("d",), "h"),
        native_node("linear", ("h",), "y", {"weight": "last.weight"}),
    )
    values = {
        name: Value(name, shape, dtype)
        for name, shape, dtype in (
            ("x", (None, 3, 6, 6), "float32"),
            *((name, (None, 4, 6, 6), "float32") for name in "abc"),
            *(("d", (None, 4, 3, 3), "float32"), ("n", None, "number"), ("m", None, "number")),
            *(("e", None, "float32"), ("f", None, "list"), ("g", None, "float32")),
            *(("h", (None, 36), "float32"), ("y", (None, 5), "float32")),
        )
    }
    tensors = {
        "conv.weight": weight(4, 3, 3, 3, density=0.3),
        "conv.bias": weight(4),
        "deep.weight": weight(4, 1, 1, 1),
        "norm.scale": weight(4),
        "norm.shift": weight(4),
        "last.weight": weight(5, 36, density=0.1),
    }
    outputs = {"record": {"logits": "y", "parts": {"tuple": ["g", {"constant": None}]}}}
    signature = {"args": ["x"], "kwargs": {"flag": {"constant": True}}, "names": ["x"]}
    return Graph(("x",), outputs, nodes, values, tensors, signature, ("a note",))
