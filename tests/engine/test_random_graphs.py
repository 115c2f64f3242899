"""Random small networks, compiled: equal to torch in double precision on every target, layout and number of threads.

They are graphs of native operations and some of torch's, in chains and branches, with pruned weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd, prod
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from arenas import targets
from engine.models import in_layout
from interpreter import Program
from ticketry.errors import GraphError
from ticketry_engine.compiled import Compiled
from ticketry_engine.ir import Graph, Node, Value, native_node
from ticketry_engine.ir.native import TensorFacts, infer_output
from ticketry_engine.ir.native_shapes import ACTS
from ticketry_engine.plan.storage import UnsupportedError

ACTIVATIONS = (None, *(act for act in ACTS if act != "inverse_root"), {"leaky_relu": 0.1})
"""All activations but one that is not bounded near 0, where rounding errors of its input would grow without limit."""
PATTERNS = ("unstructured", "rows of 4", "rows of 16", "some empty rows", "all but one row empty", "empty")
_MOST_ELEMENTS = 12_000
"""Elements of a value for one example: operations left to torch must take no time."""


class Growing:
    """A graph that grows operation by operation; what does not fit is not added."""

    def __init__(self, draw: st.DrawFn, inputs: dict[str, tuple[int, ...]]) -> None:
        self.draw = draw
        self.generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20), label="seed"))
        self.inputs = tuple(inputs)
        self.values = {name: Value(name, (None, *shape)) for name, shape in inputs.items()}
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(size or 0) for size in (self.values[name].shape or ())[1:])

    def add(self, op: str, inputs: tuple[str, ...], weights: dict[str, Tensor] | None = None, **attrs: Any) -> str:
        """Add a node and return its value's name; `GraphError` if it cannot be."""
        output = f"v{len(self.nodes)}"
        named = {role: f"{output}.{role}" for role in weights or {}}
        one = native_node(op, inputs, output, named, **attrs)
        facts = [TensorFacts(self.values[name].shape or (), "float32") for name in inputs]
        found = {role: TensorFacts(tuple(tensor.shape), "float32") for role, tensor in (weights or {}).items()}
        shape, _ = infer_output(op, one.attrs, facts, found)
        if not 0 < prod(int(size or 0) for size in shape[1:]) <= _MOST_ELEMENTS:
            raise GraphError("too large or empty")
        self.values[output] = Value(output, shape)
        self.tensors.update({named[role]: tensor for role, tensor in (weights or {}).items()})
        self.nodes.append(one)
        return output

    # Random choices

    def pick(self, axes: int, like: tuple[int, ...] | None = None) -> str:
        """A value of so many axes, or of a shape: late ones first; `GraphError` if there is none."""
        fitting = [name for name in self.values if len(self.shape(name)) == axes - 1]
        fitting = [name for name in fitting if like is None or self.shape(name) == like]
        if not fitting:
            raise GraphError("no such value")
        return self.draw(st.sampled_from(fitting[::-1][:4]))

    def one_of(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def pair(self, *choices: int) -> tuple[int, int]:
        first = self.one_of(*choices)
        return first, (first if self.draw(st.booleans()) else self.one_of(*choices))

    def numbers(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def positive(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) + 0.5

    def weight(self, *shape: int) -> Tensor:
        """A pruned weight, scaled so that what it makes is about as large as what it reads."""
        density, pattern = self.one_of(0.02, 0.1, 0.3, 0.7, 1.0), self.one_of(*PATTERNS)
        together = {"rows of 4": 4, "rows of 16": 16}.get(pattern, 1)
        sets = torch.rand((-(-shape[0] // together), *shape[1:]), generator=self.generator) < density
        kept = sets.repeat_interleave(together, 0)[: shape[0]]
        if pattern in ("some empty rows", "all but one row empty"):
            empty = torch.rand(shape[0], generator=self.generator) < (0.5 if pattern == "some empty rows" else 2)
            empty[0] = False
            kept[empty] = False
        if self.draw(st.booleans()):  # rows of one group are not adjacent
            kept = kept[torch.randperm(shape[0], generator=self.generator)]
        scale = max(1.0, density * prod(shape[1:])) ** -0.5
        return self.numbers(*shape) * kept * (0.0 if pattern == "empty" else scale)

    def with_bias(self, weight: Tensor) -> dict[str, Tensor]:
        return {"weight": weight, "bias": self.numbers(len(weight))} if self.draw(st.booleans()) else {"weight": weight}

    def act(self) -> Any:
        return self.one_of(*ACTIVATIONS)

    # Operations

    def conv(self) -> str:
        x = self.pick(4)
        channels = self.shape(x)[0]
        groups = self.one_of(1, 1, 1, gcd(channels, self.one_of(2, 3, 4)), channels)
        per_group = self.one_of(1, 2) if groups == channels else self.one_of(1, 2, 3, 4, 5, 8, 16, 21)
        kernel = self.pair(1, 1, 2, 3, 3, 5)
        outputs = min(groups * per_group, 64 // groups * groups or groups)
        where = {
            "stride": self.pair(1, 1, 1, 2, 3),
            "padding": self.pair(0, 1, 1, 2),
            "dilation": self.pair(1, 1, 2),
            "groups": groups,
        }
        weights = self.with_bias(self.weight(outputs, channels // groups, *kernel))
        made = self.add("conv2d", (x,), weights, **where, act=self.act())
        others = [name for name in self.values if name != made and self.shape(name) == self.shape(made)]
        if others and self.draw(st.booleans()):
            one = self.nodes[-1]
            self.nodes[-1] = Node(one.op, (x, self.draw(st.sampled_from(others))), made, one.attrs, one.weights)
        return made

    def linear(self) -> str:
        x = self.pick(self.one_of(2, 3))
        weights = self.with_bias(self.weight(self.one_of(1, 3, 7, 16, 33), self.shape(x)[-1]))
        return self.add("linear", (x,), weights, act=self.act())

    def norm(self) -> str:
        x = self.pick(self.one_of(2, 4))
        weights = {"scale": self.positive(self.shape(x)[0]), "shift": self.numbers(self.shape(x)[0])}
        return self.add("affine", (x,), weights, act=self.act())

    def activation(self) -> str:
        return self.add("act", (self.pick(self.one_of(2, 3, 4)),), act=self.one_of(*ACTIVATIONS[1:]))

    def in_torch(self) -> str:
        """An operation that the engine does not know, so that it separates two regions."""
        x, output = self.pick(self.one_of(2, 3, 4, 4)), f"v{len(self.nodes)}"
        op, more = self.one_of(("aten.flip.default", [1]), ("aten.mul.Scalar", 0.5))
        self.values[output] = Value(output, self.values[x].shape)
        self.nodes.append(Node(op, (x,), output, {"args": [{"value": x}, more], "kwargs": {}}))
        return output

    def pairwise(self) -> str:
        one = self.pick(self.one_of(2, 3, 4))
        other = self.pick(len(self.shape(one)) + 1, self.shape(one))
        return self.add(self.one_of("add", "mul"), (one, other), act=self.act())

    def gate(self) -> str:
        x = self.pick(4)
        channels, few = self.shape(x)[0], self.one_of(1, 2, 5)
        flat = self.draw(st.booleans())
        y = self.add("global_avg_pool", (x,), keepdim=not flat)
        op, ones = ("linear", ()) if flat else ("conv2d", (1, 1))
        y = self.add(op, (y,), self.with_bias(self.weight(few, channels, *ones)), act=self.act())
        act = self.one_of("sigmoid", "hardsigmoid")
        y = self.add(op, (y,), self.with_bias(self.weight(channels, few, *ones)), act=act)
        y = self.add("reshape", (y,), shape=[None, channels, 1, 1]) if flat else y
        return self.add("mul", (x, y))

    def concat(self) -> str:
        one = self.pick(4)
        sizes = self.shape(one)[1:]
        fitting = [name for name in self.values if self.shape(name)[1:] == sizes and len(self.shape(name)) == 3]
        several = self.draw(st.lists(st.sampled_from(fitting), min_size=1, max_size=3))
        return self.add("concat", (one, *several), axis=1)

    def slice(self) -> str:
        x = self.pick(4)
        bounds = sorted(self.draw(st.integers(0, self.shape(x)[0])) for _ in range(2))
        return self.add("slice", (x,), axis=1, start=bounds[0], stop=bounds[1])

    def pool(self) -> str:
        x = self.pick(4)
        kind = self.one_of("max_pool2d", "avg_pool2d", "global_avg_pool")
        if kind == "global_avg_pool":
            return self.add(kind, (x,), keepdim=self.draw(st.booleans()))
        more: dict[str, Any] = {"count_include_pad": self.draw(st.booleans())}
        if kind == "max_pool2d":
            more = {"dilation": self.pair(1, 1, 2)}
        where = {"kernel": self.pair(1, 2, 3, 5), "stride": self.pair(1, 2, 3), "padding": self.pair(0, 1)}
        return self.add(kind, (x,), **where, **more, ceil=self.draw(st.booleans()))

    def shuffle(self) -> str:
        x = self.pick(4)
        return self.add("channel_shuffle", (x,), groups=gcd(self.shape(x)[0], self.one_of(2, 3, 4)))

    def flatten(self) -> str:
        x = self.add("flatten", (self.pick(4),))
        size = self.shape(x)[0]
        if size > 2000:
            return x
        return self.add("linear", (x,), self.with_bias(self.weight(self.one_of(1, 5, 16), size)), act=self.act())

    def tokens(self) -> str:
        x = self.pick(4)
        channels, height, width = self.shape(x)
        x = self.add("reshape", (x,), shape=[None, channels, height * width])
        return self.add("transpose", (x,), axes=[0, 2, 1])

    def layer_norm(self) -> str:
        x = self.pick(self.one_of(2, 3))
        size = self.shape(x)[-1]
        weights = {"weight": self.positive(size), "bias": self.numbers(size)}
        return self.add("layer_norm", (x,), weights if self.draw(st.booleans()) else None, eps=0.01)

    def softmax(self) -> str:
        x = self.pick(self.one_of(2, 3))
        return self.add("softmax", (x,), axis=len(self.shape(x)))

    def attention(self) -> str:
        x = self.pick(3)
        tokens, size = self.shape(x)
        heads = gcd(size, self.one_of(1, 2, 4))
        parts = []
        wide = self.add("linear", (x,), self.with_bias(self.weight(3 * size, size)))
        for part in range(3):
            y = self.add("slice", (wide,), axis=2, start=part * size, stop=(part + 1) * size)
            y = self.add("reshape", (y,), shape=[None, tokens, heads, size // heads])
            parts.append(self.add("transpose", (y,), axes=[0, 2, 1, 3]))
        y = self.add("attention", tuple(parts), causal=self.draw(st.booleans()), scale=self.one_of(None, 0.3))
        y = self.add("transpose", (y,), axes=[0, 2, 1, 3])
        y = self.add("reshape", (y,), shape=[None, tokens, size])
        return self.add("linear", (y, x), {"weight": self.weight(size, size)})


_KINDS = (
    *("conv",) * 6,
    *("linear", "norm", "activation", "pairwise", "gate", "concat", "slice", "pool", "pool", "shuffle", "flatten"),
    *("in_torch", "tokens", "tokens", "layer_norm", "softmax", "attention", "attention"),
)


@st.composite
def graphs(draw: st.DrawFn, most: int = 8) -> Graph:
    """Graphs of at most so many operations (some of several nodes) on one or two images."""
    shapes = {}
    for number in range(draw(st.sampled_from([1, 1, 1, 2]))):
        sizes = draw(st.integers(1, 12)), draw(st.integers(1, 12))
        shapes[f"x{number}"] = (draw(st.sampled_from([1, 3, 4, 8, 13, 16, 20, 32])), *sizes)
    growing = Growing(draw, shapes)
    for _ in range(draw(st.integers(1, most))):
        before = len(growing.nodes)
        try:
            getattr(growing, draw(st.sampled_from(_KINDS)))()
        except GraphError:  # parts of it stay: branches that end
            del growing.nodes[before:]
            growing.values = {name: growing.values[name] for name in [*shapes, *(n.output for n in growing.nodes)]}
            growing.tensors = {
                n: t for one in growing.nodes for n, t in growing.tensors.items() if n in one.weights.values()
            }
    made = [one.output for one in growing.nodes]
    if not made:
        made = [growing.add("act", (growing.inputs[0],), act="relu")]
    read = {name for one in growing.nodes for name in one.inputs}
    results = [name for name in made if name not in read]
    results += draw(st.lists(st.sampled_from(made), max_size=1))
    outputs = {"tuple": list(dict.fromkeys(results))}
    return Graph(growing.inputs, outputs, tuple(growing.nodes), growing.values, growing.tensors).validate()


WAYS = st.tuples(
    st.sampled_from(targets()),
    st.sampled_from([None, None, "planes", "pixels"]),
    st.integers(1, 3),
    st.one_of(st.integers(1, 65), st.sampled_from([1, 2, 8, 16, 17])),
    st.integers(0, 2),
)
"""How a graph is run: target, layout, threads, examples, and how its inputs are stored."""


@pytest.fixture(scope="module", autouse=True)
def _cores() -> Iterator[None]:
    """As many as the tests have threads, on every machine."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ticketry_engine.compiled.count_cores", lambda: 8)
        yield


def agrees(graph: Graph, way: tuple[str, str | None, int, int, int]) -> None:
    """Run a graph and compare each output, relative to its largest value."""
    target, layout, threads, batch, strides = way
    generator = torch.Generator().manual_seed(batch)
    fast = in_layout(Compiled(graph, threads=threads, target=target), layout)
    inputs = [torch.randn(batch, *graph.values[name].shape[1:], generator=generator) for name in graph.inputs]
    wanted = Program(graph, precision="float64")(*inputs)
    assume(all(bool(value.isfinite().all()) for value in wanted))  # no window of a pool lies outside as a whole
    given = [_laid_out(tensor, strides) for tensor in inputs]
    try:
        found = fast(*given)
    except UnsupportedError:
        if layout is None:
            raise
        return  # the layout that was asked for has no way to run it
    again = fast(*given)
    for made, same, right in zip(found, again, wanted, strict=True):
        assert made.shape == right.shape
        assert torch.equal(made, same)
        # Values are of size 1. What is 0 in double precision, as the norm of a constant row, is a rounding in single,
        # divided by the root of a small number.
        assert float((made.double() - right).abs().max()) <= 1e-4 * max(float(right.abs().max()), 0.5)


def _laid_out(tensor: Tensor, strides: int) -> Tensor:
    if strides == 1:
        return tensor.to(memory_format=torch.channels_last)
    if strides == 2:
        return tensor.repeat(1, 1, 1, 2)[..., : tensor.shape[-1]]
    return tensor


@settings(max_examples=12)
@given(graphs(6), WAYS)
def test_random_graphs(graph: Graph, way: Any) -> None:
    agrees(graph, way)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=1500)
@given(graphs(12), WAYS)
def test_many_random_graphs(graph: Graph, way: Any) -> None:
    agrees(graph, way)
