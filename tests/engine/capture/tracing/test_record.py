"""A recorded model is the model that torch.export gives; what cannot be recorded for sure is left to torch.export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from engine.a_recurrent import Recurrent
from interpreter import Program as Interpreted
from samples import sample
from ticketry.tasks.models import build
from ticketry_engine.capture import pipeline
from ticketry_engine.capture.convert import convert
from ticketry_engine.capture.program import Arguments, NotRecordedError
from ticketry_engine.capture.record import record
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
    return pipeline.lower_to_native(
        *convert(record(model, Arguments.from_examples(example), dynamic_batch=dynamic_batch), model)
    )


# -- what is recorded --------------------------------------------------------------------------------------------------


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


def containers(self: Of, x: Tensor) -> dict[str, Any]:
    y = self.layer(x)
    parts = y.split([2, 4], 1)
    return {"pair": (parts[0], [parts[1]]), "flag": True, "input": x, "weight": self.kept}


def without_gradients(self: Of, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = self.layer(x)
    return nn.functional.dropout(y, 0.5, self.training) * self.kept


def means(self: Of, x: Tensor) -> Tensor:
    return self.layer(x).sum() / x.shape[0] + x


def of_answers(self: Of, x: Tensor) -> Tensor:
    if x.shape[0] == x.size(0) and x.shape[0] != 0 and x.shape[0] >= 1:
        x = x + 1
    return self.layer(x)


def looks_it_up(self: Of, x: Tensor) -> Tensor:
    return self.layer(x) * {64: 2.0}.get(x.shape[0], 1.0)


def counts(self: Of, x: Tensor) -> Tensor:
    return self.layer(sum(x[index] for index in range(len(x))) + x)


def replaces(self: Of, x: Tensor) -> Tensor:
    self.kept = self.kept + 1
    return self.layer(x) + self.kept


def reshaped_in_place(self: Of, x: Tensor) -> Tensor:
    return self.layer(x).unsqueeze_(1).squeeze_(1)


RECORDED: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "resnet": (lambda: build("resnet-20-8", shape=(3, 32, 32), classes=10), lambda n: torch.randn(n, 3, 32, 32)),
    "recurrent": (Recurrent, lambda n: torch.randint(11, (n, 5))),
    "transformer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        lambda n: torch.randn(n, 5, 8),
    ),
    **{
        function.__name__: (lambda function=function: Of(function), lambda n: torch.randn(n, 4))
        for function in (means, of_sizes, of_devices, in_place, of_answers, containers, without_gradients)
    },
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_models_compute_what_they_do_for_any_batch(name: str) -> None:
    make, draw = RECORDED[name]
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    graph = recorded(model, draw(3))
    assert graph.accepts_any_batch
    for batch in (2, 7):
        x = draw(batch)
        torch.testing.assert_close(Interpreted(graph)(x), model(x), atol=1e-4, rtol=1e-4)


def test_inputs_have_the_names_that_torch_export_gives():
    model = Of(lambda self, x, scale: self.layer(x["a"] + x["b"][1]) * scale)
    example = Arguments(({"a": X, "b": [None, X + 1]},), {"scale": 2.0})
    program = record(model.eval().requires_grad_(False), example, dynamic_batch=True)
    graph, _ = convert(program, model)
    wanted, _ = convert(pipeline._export_program(model, example, True), model)
    assert (graph.inputs, graph.signature) == (wanted.inputs, wanted.signature)


def test_ties_and_the_users_model():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    before = [(name, id(value), value.clone()) for name, value in model.named_parameters()]
    graph = recorded(model, X)
    assert sum(tensor.shape == (4, 4) for tensor in graph.tensors.values()) == 1
    assert all(id(model.get_parameter(name)) == place for name, place, _ in before)
    assert all(torch.equal(model.get_parameter(name), value) for name, _, value in before)


# -- what is not -------------------------------------------------------------------------------------------------------


def decides(self: Of, x: Tensor) -> Tensor:
    return self.layer(x) if x.shape[0] > 64 else self.norm(self.layer(x))


def iterates(self: Of, x: Tensor) -> Tensor:
    return torch.stack([self.layer(row) for row in x])


def halves(self: Of, x: Tensor) -> Tensor:
    return self.layer(x)[: (len(x) + 1) // 2]


def of_values(self: Of, x: Tensor) -> Tensor:
    return self.layer(x) if x.sum() > 0 else x


def keeps(self: Of, x: Tensor) -> Tensor:
    self.__dict__.setdefault("seen", []).append(self.layer(x))
    return self.layer(x)


def numbers_calls(self: Of, x: Tensor) -> Tensor:
    self.calls = getattr(self, "calls", 0) + 1
    return self.layer(x) * self.calls


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


def decides_in_hiding(self: Of, x: Tensor) -> Tensor:
    try:
        large = x.shape[0] > 64
    except Exception:
        large = False
    return self.layer(x) if large else self.norm(self.layer(x))


LEFT = [decides, decides_in_hiding, iterates, halves, of_values, keeps, numbers_calls, seen_through_a_view]
MORE_LEFT = [looks_it_up, counts, replaces, reshaped_in_place]
EAGER = [decides_in_hiding, halves, seen_through_a_view, of_elsewhere]


@pytest.mark.parametrize("function", [*LEFT, *MORE_LEFT, under_autocast, of_elsewhere])
def test_what_is_left_to_torch_export(function: Callable[..., Any]) -> None:
    model = Of(function).eval().requires_grad_(False)
    with pytest.raises(NotRecordedError):
        record(model, Arguments.from_examples(X.clone()), dynamic_batch=True)


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


@pytest.mark.parametrize("function", [*sample(EAGER, 2), *sample(CUTS, [*CUTS][::2])])
def test_what_depends_on_the_number_of_examples_computes_what_the_model_does(function: Any) -> None:
    """Fewer and more examples than a cut: what few examples keep whole is not whole for any number of them."""
    cut = CUTS.get(function)
    model = Of(function if cut is None else lambda self, x: cut(self.layer(x))).eval()
    fast = tk.compile(model, None, torch.randn(20, 4))
    for batch in (20, 7, 60) if fast.graph.accepts_any_batch else (20,):
        x = torch.randn(batch, 4)
        with torch.no_grad():
            torch.testing.assert_close(fast(x.clone()), model(x.clone()))
