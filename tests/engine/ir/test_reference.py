"""What native operations compute, against formulas written out in float64, and the interpreter of graphs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.ir.graphs import small
from interpreter import Program, reference, run
from ticketry.errors import EngineError, GraphError
from ticketry_engine.ir import Graph, Node, Value, aten, native_node
from ticketry_engine.ir.native import TensorFacts, infer_output, make_activation_function
from ticketry_engine.ir.native_shapes import ACTS

F64 = torch.float64


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64)


def compute(op: str, *inputs: Tensor, weights: dict[str, Tensor] | None = None, **attrs: Any) -> Tensor:
    """What a node makes; its shape is compared with the inferred one."""
    weights = weights or {}
    names = tuple(f"x{index}" for index in range(len(inputs)))
    one = native_node(op, names, "y", {role: role for role in weights}, **attrs)
    made: Tensor = reference(one, weights, inputs)
    facts = {role: TensorFacts(tuple(weight.shape), "float64") for role, weight in weights.items()}
    assert infer_output(op, one.attrs, [TensorFacts(tuple(x.shape), "float64") for x in inputs], facts) == (
        tuple(made.shape),
        "float64",
    )
    return made


def conv_by_unfolding(x: Tensor, weight: Tensor, groups: int, **windows: Any) -> Tensor:
    """[N, channels, places]."""
    columns = [F.unfold(part, weight.shape[2:], **windows) for part in x.chunk(groups, 1)]
    return torch.cat([rows.flatten(1) @ part for rows, part in zip(weight.chunk(groups), columns, strict=True)], 1)


FORMULAS = {
    "relu": lambda x: max(x, 0.0),
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "hardswish": lambda x: x * min(max(x + 3, 0.0), 6.0) / 6,
    "hardsigmoid": lambda x: min(max(x + 3, 0.0), 6.0) / 6,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "inverse_root": lambda x: 1 / math.sqrt(max(x, 1e-30)),
}


@pytest.mark.parametrize("act", [*ACTS, {"leaky_relu": 0.2}])
def test_activations(act: Any) -> None:
    formula = FORMULAS[act] if isinstance(act, str) else lambda x: x if x > 0 else 0.2 * x
    x = torch.linspace(-8, 8, 65, dtype=F64).reshape(1, 65)
    wanted = torch.tensor([formula(float(value)) for value in x[0]], dtype=F64)
    assert torch.allclose(compute("act", x, act=act)[0], wanted, rtol=1e-12, atol=1e-14)
    fresh = make_activation_function(act, may_overwrite=True)
    assert fresh is not None
    assert torch.allclose(fresh(x.clone())[0], wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [((1, 1), (1, 1), (1, 1)), ((2, 1), (0, 2), (1, 2))])
def test_conv2d(groups: int, stride: Any, padding: Any, dilation: Any) -> None:
    x, weight, bias = randn(2, 4, 6, 5), randn(8, 4 // groups, 3, 2), randn(8)
    setting = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    made = compute("conv2d", x, weights={"weight": weight}, **setting)
    wanted = conv_by_unfolding(x, weight, **setting).view_as(made)
    assert torch.allclose(made, wanted)
    residual = torch.randn_like(wanted)
    before = residual.clone()
    made = compute("conv2d", x, residual, weights={"weight": weight, "bias": bias}, **setting, act="relu")
    assert torch.allclose(made, (wanted + bias.view(1, -1, 1, 1) + residual).clamp_min(0))
    assert torch.equal(residual, before)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 5), (2, 3, 2, 5)])
def test_linear(shape: tuple[int, ...]) -> None:
    x, weight, bias = randn(*shape), randn(7, 5), randn(7)
    wanted = (x.unsqueeze(-2) * weight).sum(-1) + bias
    residual = torch.randn_like(wanted)
    made = compute("linear", x, residual, weights={"weight": weight, "bias": bias}, act={"leaky_relu": 0.5})
    total = wanted + residual
    assert torch.allclose(made, torch.where(total > 0, total, total / 2))


def test_sums_and_products():
    x, y, gate = randn(2, 3, 4, 5), randn(2, 3, 4, 5), randn(2, 3, 1, 1)
    assert torch.equal(compute("add", x, y), x + y)
    assert torch.equal(compute("mul", x, gate, act="relu"), (x * gate.expand_as(x)).clamp_min(0))


def test_poolings():
    x = randn(2, 3, 5, 6)
    wide = torch.full((2, 3, 7, 8), -math.inf, dtype=F64)
    wide[:, :, 1:-1, 1:-1] = x
    made = compute("max_pool2d", x, kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    wanted = torch.stack(
        [torch.stack([wide[:, :, a : a + 3, b : b + 3].amax((2, 3)) for b in (0, 2, 4)], -1) for a in (0, 2, 4)], -2
    )
    assert torch.equal(made, wanted)
    made = compute("avg_pool2d", x, kernel=(2, 2), stride=(2, 2), padding=(1, 1), count_include_pad=False)
    assert torch.allclose(made[:, :, 0, 0], x[:, :, 0, 0])
    assert torch.allclose(made[:, :, 1, 1], x[:, :, 1:3, 1:3].mean((2, 3)))
    made = compute("avg_pool2d", x, kernel=(2, 2), stride=(2, 2), padding=(1, 1))
    assert torch.allclose(made[:, :, 0, 0], x[:, :, 0, 0] / 4)
    assert torch.allclose(compute("global_avg_pool", x), x.sum((2, 3)).view(2, 3, 1, 1) / 30)
    assert torch.allclose(compute("global_avg_pool", x, keepdim=False), x.sum((2, 3)) / 30)


def test_shapes():
    x, y = randn(2, 6, 2, 3), randn(2, 1, 2, 3)
    assert torch.equal(compute("concat", x, y, x)[:, 6], y[:, 0])
    assert torch.equal(compute("slice", x, axis=1, start=2, stop=5), x[:, 2:5])
    assert torch.equal(compute("flatten", x), x.reshape(2, 36))
    assert torch.equal(compute("transpose", x, axes=[0, 3, 1, 2])[:, 2, 4, 1], x[:, 4, 1, 2])
    assert torch.equal(compute("reshape", x, shape=[2, 9, 4]).flatten(), x.flatten())
    shuffled = compute("channel_shuffle", x, groups=2)
    assert torch.equal(shuffled, x[:, [0, 3, 1, 4, 2, 5]])


def test_norms_and_attention():
    x = randn(2, 3, 5)
    scale, shift = randn(3), randn(3)
    made = compute("affine", x, weights={"scale": scale, "shift": shift}, act="relu")
    assert torch.allclose(made, (x * scale.view(3, 1) + shift.view(3, 1)).clamp_min(0))
    weight, bias = randn(5), randn(5)
    centred = x - x.mean(-1, keepdim=True)
    wanted = centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt() * weight + bias
    assert torch.allclose(compute("layer_norm", x, weights={"weight": weight, "bias": bias}, eps=0.1), wanted)
    powers = x.exp()
    assert torch.allclose(compute("softmax", x, axis=1), powers / powers.sum(1, keepdim=True))
    q, k, v = randn(2, 3, 4, 5), randn(2, 3, 4, 5), randn(2, 3, 4, 6)
    scores = torch.einsum("nhtd,nhsd->nhts", q, k)
    seen = torch.ones(4, 4).tril().bool()
    for scale_, causal in ((None, False), (0.3, True)):
        powers = (scores * (5**-0.5 if scale_ is None else scale_)).exp() * (seen if causal else 1)
        wanted = torch.einsum("nhts,nhsd->nhtd", powers / powers.sum(-1, keepdim=True), v)
        assert torch.allclose(compute("attention", q, k, v, scale=scale_, causal=causal), wanted)


def test_windows_and_pads():
    q, k, v, bias = randn(2, 3, 2, 4, 5), randn(2, 3, 2, 6, 5), randn(2, 3, 2, 6, 7), randn(3, 1, 4, 6)
    for held in (None, bias, bias[:1], bias.repeat(1, 2, 1, 1)):
        scores = torch.einsum("nwhtd,nwhsd->nwhts", q, k) * 0.3 + (0 if held is None else held)
        wanted = torch.einsum("nwhts,nwhsd->nwhtd", scores.softmax(-1), v)
        weights = {} if held is None else {"bias": held}
        assert torch.allclose(compute("window_attention", q, k, v, weights=weights, scale=0.3), wanted)
    x = randn(2, 3, 4)
    made = compute("pad", x, before=[1, 0], after=[0, 2])
    assert made.shape == (2, 4, 6)
    assert torch.equal(made[:, 1:, :4], x)
    assert made.count_nonzero() == x.numel()


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5, 2)])
def test_batch_norm(shape: tuple[int, ...]) -> None:
    x, residual, weight, bias = randn(*shape), randn(*shape), randn(3), randn(3)
    axes, channels = (0, *range(2, len(shape))), (1, 3, *(1 for _ in shape[2:]))
    mean, variance = x.mean(axes, keepdim=True), x.var(axes, correction=0, keepdim=True)
    wanted = (x - mean) / (variance + 1e-3).sqrt() * weight.view(channels) + bias.view(channels)
    weights = {"weight": weight, "bias": bias}
    assert torch.allclose(compute("batch_norm", x, weights=weights, eps=1e-3), wanted)
    made = compute("batch_norm", x, residual, weights=weights, eps=1e-3, act="relu")
    assert torch.allclose(made, (wanted + residual).clamp_min(0))


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_scan(axis: int) -> None:
    decay, added = randn(2, 3, 4, 5), randn(2, 3, 4, 5)
    start = randn(*(size for other, size in enumerate(added.shape) if other != axis))
    before, wanted = start, []
    for t in range(added.shape[axis]):
        before = decay.select(axis, t) * before + added.select(axis, t)
        wanted.append(before)
    assert torch.allclose(compute("scan", decay, added, start, axis=axis), torch.stack(wanted, axis))
    held = start[:1].mean(1, keepdim=True).expand_as(start)
    constant = compute("scan", decay, added, weights={"start": held[0, :1]}, axis=axis)
    assert torch.allclose(constant, compute("scan", decay, added, held, axis=axis))


def small_by_hand(graph: Graph, x: Tensor) -> tuple[Tensor, Tensor]:
    w = {name: tensor.to(x.dtype) for name, tensor in graph.tensors.items()}
    a = torch.conv2d(x, w["conv.weight"], w["conv.bias"], 1, 1).clamp_min(0)
    b = a * w["deep.weight"].view(4, 1, 1) + a
    b = torch.where(b > 0, b, b * 0.1)
    c = b * w["norm.scale"].view(4, 1, 1) + w["norm.shift"].view(4, 1, 1)
    d = torch.max_pool2d(c * c.sigmoid(), 2)
    return d.flatten(1) @ w["last.weight"].T, d.reshape(-1, 9)[:, 3:6]


@pytest.mark.parametrize("precision", [None, "float64", "bfloat16"])
def test_a_graph_runs_in_any_precision(precision: str | None) -> None:
    graph = small().validate()
    assert graph.accepts_any_batch
    assert graph.output_names == ("y", "g")
    x = torch.randn(3, 3, 6, 6)
    made = run(graph, x, precision=precision)
    wanted = small_by_hand(graph, x.double())
    tolerance = {None: 1e-5, "float64": 1e-12, "bfloat16": 0.1}[precision]
    assert made.logits.dtype == (torch.float32 if precision is None else getattr(torch, precision))
    assert torch.allclose(made.logits.double(), wanted[0], rtol=tolerance, atol=tolerance)
    assert torch.allclose(made["parts"][0].double(), wanted[1], rtol=tolerance, atol=tolerance)
    assert made["parts"][1] is None
    assert made[0] is made.logits


def test_a_torch_node_that_makes_another_shape_than_said_is_noticed():
    values = {"x": Value("x", (None, 4)), "y": Value("y", (None, 5))}
    lying = Node("aten.relu.default", ("x",), "y", {"args": [{"value": "x"}], "kwargs": {}})
    graph = Graph(("x",), "y", (lying,), values, {}).validate()
    with pytest.raises(GraphError, match=r"it made torch\.float32"):
        run(graph, torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((torch.zeros(2, 3, 6, 7),), {}, r"'x' is float32 \[2, 3, 6, 7\], but .* float32 \['batch', 3, 6, 6\]"),
        ((), {}, "'x' is missing"),
        ((torch.zeros(2, 3, 6, 6),), {"other": 1}, "'other' was not given when"),
        (([1.0],), {}, "'x' has to be a tensor, not list"),
    ],
)
def test_calls_that_do_not_fit(args: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        run(small(), *args, **kwargs)


def test_a_scan_of_what_does_not_go_together():
    whole, start = TensorFacts((None, 3, 4), "float32"), TensorFacts((None, 3), "float32")
    several = ((whole, whole, start), 1), ((whole, start, start), 2), ((whole, whole, start), 3), ((whole, whole), 2)
    for inputs, axis in several:
        with pytest.raises(GraphError):
            infer_output("scan", {"axis": axis}, list(inputs), {})
    steps = TensorFacts((None, 1 << 20), "float32")
    for given, axis, weights, message in (
        ([whole, whole, start], 2, {"start": TensorFacts((3,), "float32")}, "one start"),
        ([whole, whole], 2, {"start": TensorFacts((4,), "float32")}, "start"),
        ([steps, steps, TensorFacts((None,), "float32")], 1, {}, "steps"),
    ):
        with pytest.raises(GraphError, match=message):
            infer_output("scan", {"axis": axis}, given, weights)


def test_torch_functions_in_the_place_of_operations_are_the_same():
    x, y = randn(2, 3, 4), randn(2, 4, 3)
    arguments = {
        **dict.fromkeys(("matmul", "bmm"), (x, y)),
        **dict.fromkeys(("cat", "stack"), ([x, x], 1)),
        **dict.fromkeys(("select", "transpose"), (x, 1, 2)),
        **dict.fromkeys(("exp", "neg", "sigmoid", "tanh"), (x,)),
        **dict.fromkeys(("add", "sub", "mul", "div"), (x, x + 3)),
        "unsqueeze": (x, 1),
        "permute": (x, [0, 2, 1]),
        "reshape": (x, [2, 12]),
    }
    for op, function in aten._IN_PYTHON.items():
        given = arguments[op.split(".")[1]]
        assert torch.equal(function(*given), aten.find_operation(op, trusted=True)(*given)), op


def test_unknown_precision():
    with pytest.raises(EngineError, match="no precision 'float8'"):
        Program(small(), precision="float8")
