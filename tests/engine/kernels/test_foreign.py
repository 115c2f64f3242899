"""Kernels for other processors than the host: within what those can do, free of calls into libm, and for Arm right
in an emulator."""

from __future__ import annotations

import re

import pytest
import torch

from arm_emulator import arm_library, assembly
from interpreter import Program as Reference
from samples import sample
from ticketry_engine.ir import Graph, Node, Value, native_node
from ticketry_engine.kernels.jit import Kernel, Library
from ticketry_engine.kernels.program import Driver, Op, Program
from ticketry_engine.kernels.target import Target, cross_compile_target
from ticketry_engine.plan.emission import Emission
from ticketry_engine.plan.region_programs import Native, Plan, partition_graph

LAYOUTS = ("planes", "pixels")
ARM = cross_compile_target("aarch64")
BEYOND = {"avx2": r"%?zmm\d", "generic": r"%?[yz]mm\d|\bvmovups\b", "aarch64": r"\bptrue\b|\bz\d+\.s\b"}
"""What the assembly of a target has not: wider registers, and on Arm those of SVE."""

SUMS = {"avx2": r"\bvfmadd\d+ps\s.*ymm", "generic": r"\bmulps\s+.*xmm", "aarch64": r"\bfmla\s+v\d+\.4s"}
"""How it adds up products, lane by lane."""


def network() -> Graph:
    """Most kinds of operations that a region has, between one image and one vector."""
    generator = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> torch.Tensor:
        kept = torch.rand(shape[0] // 4, *shape[1:], generator=generator) < 0.4
        return torch.randn(shape, generator=generator) * kept.repeat_interleave(4, 0)

    def numbers(count: int) -> torch.Tensor:
        return torch.rand(count, generator=generator) + 0.5

    tensors = {
        "stem": weight(16, 3, 3, 3),
        "norm.scale": numbers(16),
        "norm.shift": numbers(16),
        "deep": torch.randn(16, 1, 3, 3, generator=generator),
        "one": weight(16, 16, 3, 3),
        "one.bias": numbers(16),
        "down": weight(24, 16, 3, 3),
        "squeeze": weight(4, 24),
        "excite": weight(24, 4),
        "qkv": weight(72, 24),
        "ln.weight": numbers(24),
        "ln.bias": numbers(24),
        "mix": weight(24, 24),
    }
    nodes: list[Node] = [
        native_node("conv2d", ("x",), "a", {"weight": "stem"}, padding=(1, 1)),
        native_node("affine", ("a",), "b", {"scale": "norm.scale", "shift": "norm.shift"}, act="silu"),
        native_node("conv2d", ("b",), "c", {"weight": "deep"}, padding=(1, 1), groups=16, act="hardswish"),
        native_node("conv2d", ("c", "b"), "d", {"weight": "one", "bias": "one.bias"}, padding=(1, 1), act="relu"),
        native_node("conv2d", ("d",), "e", {"weight": "down"}, stride=(2, 2), padding=(1, 1), act={"leaky_relu": 0.1}),
        native_node("max_pool2d", ("e",), "f", kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
        native_node("avg_pool2d", ("f",), "g", kernel=(2, 2), padding=(1, 1)),
        native_node("global_avg_pool", ("g",), "h", keepdim=False),
        native_node("linear", ("h",), "i", {"weight": "squeeze"}, act="gelu"),
        native_node("linear", ("i",), "j", {"weight": "excite"}, act="sigmoid"),
        native_node("reshape", ("j",), "k", shape=[None, 24, 1, 1]),
        native_node("mul", ("f", "k"), "l"),
        native_node("add", ("l", "f"), "m", act="tanh"),
        native_node("reshape", ("m",), "tokens", shape=[None, 24, 9]),
        native_node("transpose", ("tokens",), "t", axes=[0, 2, 1]),
        native_node("layer_norm", ("t",), "n", {"weight": "ln.weight", "bias": "ln.bias"}),
        native_node("linear", ("n",), "qkv", {"weight": "qkv"}),
    ]
    for number, name in enumerate("qpv"):
        nodes += [
            native_node("slice", ("qkv",), f"{name}0", axis=2, start=24 * number, stop=24 * number + 24),
            native_node("reshape", (f"{name}0",), f"{name}1", shape=[None, 9, 2, 12]),
            native_node("transpose", (f"{name}1",), name, axes=[0, 2, 1, 3]),
        ]
    nodes += [
        native_node("attention", ("q", "p", "v"), "w"),
        native_node("transpose", ("w",), "w1", axes=[0, 2, 1, 3]),
        native_node("reshape", ("w1",), "w2", shape=[None, 9, 24]),
        native_node("linear", ("w2", "t"), "y", {"weight": "mix"}, act="gelu_tanh"),
        native_node("softmax", ("y",), "z", axis=2),
    ]
    return _typed(("x",), {"x": (None, 3, 12, 12)}, "z", nodes, tensors)


def _typed(
    inputs: tuple[str, ...],
    shapes: dict[str, tuple[int | None, ...]],
    output: str,
    nodes: list[Node],
    tensors: dict[str, torch.Tensor],
) -> Graph:
    """A graph whose values have the shapes that follow."""
    from ticketry_engine.ir.native import TensorFacts, infer_output

    values = {name: Value(name, shapes[name]) for name in inputs}
    for one in nodes:
        facts = [TensorFacts(values[name].shape or (), "float32") for name in one.inputs]
        weights = {role: TensorFacts(tuple(tensors[name].shape), "float32") for role, name in one.weights.items()}
        values[one.output] = Value(one.output, infer_output(one.op, one.attrs, facts, weights)[0])
    return Graph(inputs, output, tuple(nodes), values, tensors).validate()


def emitted(graph: Graph, layout: str, images: int, target: Target = ARM) -> Emission:
    """The whole graph as operations of a layout."""
    (region,), reasons = partition_graph(graph)
    assert not reasons
    native = Native(graph, region, Library(target), lambda: "none")
    return native._emit_plan(Plan(layout, images, "batch"))


def named(ops: list[Op]) -> list[tuple[Kernel, str]]:
    """The kernel of each operation, and a name that equal ones share."""
    numbers: dict[str, int] = {}
    return [(op.kernel, f"k{numbers.setdefault(repr(op.kernel), len(numbers))}") for op in ops]


def unique(called: list[tuple[Kernel, str]]) -> list[tuple[Kernel, str]]:
    """Each kernel once."""
    return [(kernel, name) for name, kernel in {name: kernel for kernel, name in called}.items()]


@pytest.mark.parametrize(
    ("name", "layout", "images"),
    sample(
        [(name, layout, images) for images in (4, 1) for layout in LAYOUTS for name in BEYOND],
        [("generic", "pixels", 4)],
    ),
)
def test_every_kernel_keeps_to_its_target(name: str, layout: str, images: int) -> None:
    target, sums = cross_compile_target(name), 0
    for kernel, symbol in unique(named(emitted(network(), layout, images, target).ops)):
        text = assembly(kernel, symbol, target)
        defined = set(re.findall(r"^([\w.$]+):", text, re.M))
        called = set(re.findall(r"^\s+(?:bl?|callq?|jmp)\s+([\w.$]+)", text, re.M))
        # of libc, LLVM makes one of a loop that writes zeros; of libm, nothing
        assert called - defined <= {"memset", "memset@PLT"}, f"{kernel} calls {called - defined}"
        assert not re.search(BEYOND[name], text), kernel
        sums += bool(re.search(SUMS[name], text))
    assert sums


@pytest.mark.parametrize("denormals", [True, False])
@pytest.mark.parametrize("name", BEYOND)
def test_the_driver_tells_every_processor_what_to_do_with_denormals(name: str, denormals: bool) -> None:
    text = assembly(Driver(denormals), "drive", cross_compile_target(name)).lower()
    told = text.count("msr\tfpcr" if name == "aarch64" else "ldmxcsr")
    assert told == (0 if denormals else 2), text


@pytest.mark.parametrize("images", sample([2, 1, 8], 1))
@pytest.mark.parametrize("layout", sample(LAYOUTS, 1))
def test_an_emulated_arm_computes_what_torch_does(layout: str, images: int) -> None:
    graph, batch, library = network(), 3, arm_library()
    emission = emitted(graph, layout, images)
    x = torch.randn(batch, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    wanted = Reference(graph, precision="float64")(x)
    found, calls = torch.empty(wanted.shape), library.calls
    program = Program(emission.ops, images, emission.bytes, library, denormals=False)
    program.run(batch, [x.data_ptr(), found.data_ptr()])
    assert library.calls == calls + 1
    assert float((found.double() - wanted).abs().max() / wanted.abs().max()) < 1e-5
