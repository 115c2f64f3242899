"""A recorded model is the model that torch.export gives; what cannot be recorded for sure is left to torch.export."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from engine.a_recurrent import Recurrent
from interpreter import Program as Interpreted
from samples import sample
from ticketry.errors import CaptureError
from ticketry.tasks.models.networks import build
from ticketry_engine.capture import capture, pipeline
from ticketry_engine.capture.convert import convert
from ticketry_engine.capture.tracing.examples import NotRecordedError
from ticketry_engine.capture.tracing.record import record
from ticketry_engine.capture.tracing.torch_export import Arguments
from ticketry_engine.ir import Graph


class Of(nn.Module):
    """A model that is a function, with some weights."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function
        self.layer = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.register_buffer("kept", torch.linspace(0, 1, 6))

    def forward(self, x: Any, **kwargs: Any) -> object:
        return self.function(self, x, **kwargs)


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def recorded(model: nn.Module, example: Any, dynamic_batch: bool = True) -> Graph:
    model = model.eval().requires_grad_(False)
    return pipeline.simplify(*convert(record(model, Arguments.of(example), dynamic_batch=dynamic_batch), model))


def exported(model: nn.Module, example: Any) -> Graph:
    model = model.eval().requires_grad_(False)
    return pipeline.simplify(*convert(pipeline._exported(model, Arguments.of(example), True), model))


def canonical(graph: Graph) -> list[Any]:
    """A graph without the names of what is computed, and without arguments that are defaults."""
    names = {name: name for name in graph.inputs}

    def named(given: Any) -> Any:
        if isinstance(given, dict):
            return {key: named(part) for key, part in given.items()}
        if isinstance(given, (list, tuple)):
            return [named(part) for part in given]
        return names.get(given, given) if isinstance(given, str) else given

    rows: list[Any] = []
    for place, one in enumerate(graph.nodes):
        attrs = named(one.attrs)
        if one.op == "operator.mul":
            attrs["args"].sort(key=str)
        inputs = [names[name] for name in one.inputs]
        names[one.output] = f"value {place}"
        value = graph.values[one.output]
        weights = {role: "a constant" if name.endswith(".constant") else name for role, name in one.weights.items()}
        rows.append((one.op, inputs, attrs, weights, value.shape, value.dtype))
    return [*rows, graph.inputs, named(graph.outputs), graph.signature, graph.notes]


# -- what is recorded --------------------------------------------------------------------------------------------------


NETWORKS: list[tuple[str, Callable[[], nn.Module], Callable[[], Any]]] = [
    *(
        (name, lambda name=name: build(name, shape=(3, 32, 32), classes=10), lambda: torch.randn(2, 3, 32, 32))
        for name in ("resnet-20-8", "vgg-11@0.125", "conv-4-16", "lenet-300-100")
    ),
    ("recurrent", Recurrent, lambda: torch.randint(11, (3, 5))),
    (
        "transformer",
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        lambda: torch.randn(3, 5, 8),
    ),
]


@pytest.mark.parametrize(("name", "made", "example"), NETWORKS, ids=[name for name, *_ in NETWORKS])
def test_networks(name: str, made: Callable[[], nn.Module], example: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model, inputs = made(), example()
    assert canonical(recorded(model, inputs)) == canonical(exported(model, inputs))


class Pair(NamedTuple):
    one: Tensor
    two: list[Any]


def of_sizes(self: Of, x: Tensor) -> Tensor:
    batch, width = x.shape
    y = self.layer(x).view(batch * 2, width // 2 + 1)
    return y.reshape(len(x), -1)[:, : x.size(1)] + x.shape[0] * 0 + y.numel() // y.size(0)


def of_devices(self: Of, x: Tensor) -> Tensor:
    assert x.device.type == "cpu"
    assert x.is_cpu
    assert not x.is_meta
    return self.layer(x) + torch.arange(6, device=x.device) + torch.ones(1) + x.new_zeros(x.shape[0], 1)


def in_place(self: Of, x: Tensor) -> Tensor:
    y = self.layer(x)
    y.relu_().add_(1)
    return self.norm(y) + y


def of_answers(self: Of, x: Tensor) -> Tensor:
    if x.shape[0] == x.size(0) and x.shape[0] != 0 and x.shape[0] >= 1:
        x = x + 1
    return self.layer(x)


def containers(self: Of, x: Tensor) -> dict[str, Any]:
    y = self.layer(x)
    parts = y.split([2, 4], 1)
    return {"pair": Pair(parts[0], [parts[1], None]), "flag": True, "input": x, "weight": self.kept}


def without_gradients(self: Of, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = self.layer(x)
    return nn.functional.dropout(y, 0.5, self.training) * self.kept


def means(self: Of, x: Tensor) -> Tensor:
    return self.layer(x).sum() / x.shape[0] + x


RECORDED = [means, of_sizes, of_devices, in_place, of_answers, containers, without_gradients]


@pytest.mark.parametrize("function", RECORDED)
def test_what_models_do(function: Callable[..., Any]) -> None:
    model = Of(function).eval().requires_grad_(False)
    graph = recorded(model, X)
    assert graph.dynamic
    for batch in (2, 3, 7):
        x = torch.randn(batch, 4)
        assert_equal(Interpreted(graph)(x), model(x))


def assert_equal(made: Any, wanted: Any) -> None:
    if isinstance(wanted, Tensor):
        torch.testing.assert_close(made, wanted)
    elif isinstance(wanted, dict):
        for key in wanted:
            assert_equal(made[key], wanted[key])
    elif isinstance(wanted, Pair):
        assert_equal(made.one, wanted.one)
        assert_equal(made.two, wanted.two)
    elif isinstance(wanted, (tuple, list)):
        for one, other in zip(made, wanted, strict=True):
            assert_equal(one, other)
    else:
        assert made == wanted


@pytest.mark.parametrize("function", sample(RECORDED, 2))
def test_as_torch_export_has_it(function: Callable[..., Any]) -> None:
    model = Of(function)
    assert canonical(recorded(model, X)) == canonical(exported(model, X))


def test_inputs_have_the_names_that_torch_export_gives():
    model = Of(lambda self, x, scale: self.layer(x["a"] + x["b"][1]) * scale)
    example = Arguments(({"a": X, "b": [None, X + 1]},), {"scale": 2.0})
    program = record(model.eval().requires_grad_(False), example, dynamic_batch=True)
    graph, _ = convert(program, model)
    wanted, _ = convert(pipeline._exported(model, example, True), model)
    assert (graph.inputs, graph.signature) == (wanted.inputs, wanted.signature)


def test_ties_and_the_users_model():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    before = [(name, id(value), value.clone()) for name, value in model.named_parameters()]
    graph = recorded(model, X)
    assert sum(tensor.shape == (4, 4) for tensor in graph.tensors.values()) == 1
    assert all(id(model.get_parameter(name)) == place for name, place, _ in before)
    assert all(torch.equal(model.get_parameter(name), value) for name, _, value in before)


def test_a_fixed_batch_asks_no_questions():
    model = Of(lambda self, x: self.layer(x) if x.shape[0] > 2 else x)
    graph = recorded(model, X, dynamic_batch=False)
    assert graph.values[graph.inputs[0]].shape == (3, 4)
    assert graph.notes == ("the number of examples is fixed: it was asked for",)


@pytest.mark.slow
def test_no_compiler_of_torch_is_loaded():
    code = """
import sys, torch
from ticketry_engine.capture import capture
from ticketry.tasks.models.networks import build
capture(build("resnet-20-8", shape=(3, 32, 32), classes=10), None, torch.ones(2, 3, 32, 32))
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    environment = {"TICKETRY_CACHE": "", "PATH": "", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == "[]"


# -- what is not -------------------------------------------------------------------------------------------------------


def decides(self: Of, x: Tensor) -> Tensor:
    return self.layer(x) if x.shape[0] > 64 else self.norm(self.layer(x))


def decides_in_hiding(self: Of, x: Tensor) -> Tensor:
    try:
        large = x.shape[0] > 64
    except Exception:
        large = False
    return self.layer(x) if large else self.norm(self.layer(x))


def looks_it_up(self: Of, x: Tensor) -> Tensor:
    return self.layer(x) * {64: 2.0}.get(x.shape[0], 1.0)


def counts(self: Of, x: Tensor) -> Tensor:
    return self.layer(sum(x[index] for index in range(len(x))) + x)


def iterates(self: Of, x: Tensor) -> Tensor:
    return torch.stack([self.layer(row) for row in x])


def halves(self: Of, x: Tensor) -> Tensor:
    return self.layer(x)[: (len(x) + 1) // 2]


def of_values(self: Of, x: Tensor) -> Tensor:
    return self.layer(x) if x.sum() > 0 else x


def remembers(self: Of, x: Tensor) -> Tensor:
    self.kept.add_(1)
    return self.layer(x) + self.kept


def replaces(self: Of, x: Tensor) -> Tensor:
    self.kept = self.kept + 1
    return self.layer(x) + self.kept


def keeps(self: Of, x: Tensor) -> Tensor:
    self.__dict__.setdefault("seen", []).append(self.layer(x))
    return self.layer(x)


def numbers_calls(self: Of, x: Tensor) -> Tensor:
    self.calls = getattr(self, "calls", 0) + 1
    return self.layer(x) * self.calls


def changes_its_input(self: Of, x: Tensor) -> Tensor:
    return self.layer(x.relu_())


def seen_through_a_view(self: Of, x: Tensor) -> Tensor:
    y = self.layer(x)
    part = y[:, 1]
    y.mul_(3)
    return y + part.unsqueeze(1)


def under_autocast(self: Of, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return self.layer(x)


ELSEWHERE = torch.randn(6)


def of_elsewhere(self: Of, x: Tensor) -> Tensor:
    return self.layer(x) + ELSEWHERE


def reshaped_in_place(self: Of, x: Tensor) -> Tensor:
    return self.layer(x).unsqueeze_(1).squeeze_(1)


LEFT = [
    *(decides, decides_in_hiding, looks_it_up, counts, iterates, halves, of_values, replaces, keeps),
    *(numbers_calls, seen_through_a_view, under_autocast, of_elsewhere, reshaped_in_place),
]


@pytest.mark.parametrize("function", LEFT)
def test_what_is_left_to_torch_export(function: Callable[..., Any]) -> None:
    model = Of(function).eval().requires_grad_(False)
    with pytest.raises(NotRecordedError):
        record(model, Arguments.of(X.clone()), dynamic_batch=True)


@pytest.mark.parametrize(("function", "name"), [(remembers, "kept"), (changes_its_input, "x")])
def test_what_is_refused(function: Callable[..., Any], name: str) -> None:
    with pytest.raises(CaptureError, match=f"'{name}' in"):
        record(Of(function).eval().requires_grad_(False), Arguments.of(X.clone()), dynamic_batch=True)


EAGER = [decides, decides_in_hiding, halves, seen_through_a_view, of_elsewhere]


@pytest.mark.parametrize("function", sample(EAGER, 3))
def test_and_comes_out_right(function: Callable[..., Any]) -> None:
    model = Of(function).eval()
    graph = capture(model, None, X.clone())
    for batch in (3, 7) if graph.dynamic else (3,):
        x = torch.randn(batch, 4)
        with torch.no_grad():
            torch.testing.assert_close(Interpreted(graph)(x.clone()), model(x.clone()))


CUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "first": lambda y: y[:8],
    "of more than there are": lambda y: y[:25],
    "last": lambda y: y[-12:],
    "split": lambda y: torch.cat([part - part.mean(0) for part in y.split(8)]),
    "against the first": lambda y: y @ y[:5].t(),
    "every third": lambda y: y[::8] * 2,
    "by its length": lambda y: y[: min(len(y), 8)],
    "rest": lambda y: y[6:],
    "narrow": lambda y: y.narrow(0, 0, 2),
}


@pytest.mark.parametrize("cut", CUTS)
def test_examples_that_a_number_cuts_off(cut: str) -> None:
    """Fewer and more than the number: what few examples keep whole is not whole for any number of them."""
    model = Of(lambda self, x: CUTS[cut](self.layer(x))).eval()
    x = torch.randn(20, 4)
    graph = capture(model, None, x)
    for batch in (20, 7, 60) if graph.dynamic else (20,):
        x = torch.randn(batch, 4)
        with torch.no_grad():
            wanted = model(x)
            torch.testing.assert_close(tk.compile(model, None, torch.randn(20, 4))(x), wanted)
            torch.testing.assert_close(Interpreted(graph)(x), wanted)


def test_an_operation_that_is_not_known_without_data():
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(x.numpy() * 2) + x

    with pytest.raises(NotRecordedError):
        record(Own(), Arguments.of(X), dynamic_batch=True)


def test_a_model_that_does_not_run_is_told_by_torch_export():
    with pytest.raises(CaptureError, match=r"torch\.export does not take Linear"):
        capture(nn.Linear(4, 3), None, torch.randn(2, 5))
