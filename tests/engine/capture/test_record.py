"""A recorded model is the model that torch.export gives; what cannot be recorded for sure is left to torch.export.

A size that stands for all numbers of examples answers only what is true of all of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ticketry as tk
from engine.models import Of
from interpreter import Program as Interpreted
from samples import sample
from ticketry.tasks.models import build
from ticketry_engine.capture import pipeline
from ticketry_engine.capture.convert import convert
from ticketry_engine.capture.program import FEWEST, Arguments, Examples, NotRecordedError
from ticketry_engine.capture.record import record
from ticketry_engine.ir import Graph


def of(function: Callable[..., object]) -> Of:
    """A model that is a function, with some weights."""
    model = Of(function, layer=nn.Linear(4, 6), norm=nn.LayerNorm(6)).eval()
    model.register_buffer("kept", torch.linspace(0, 1, 6))
    return model.requires_grad_(False)


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def recorded(model: nn.Module, example: Any, dynamic_batch: bool = True) -> Graph:
    model = model.eval().requires_grad_(False)
    return pipeline.lower_to_native(
        *convert(record(model, Arguments.from_examples(example), dynamic_batch=dynamic_batch), model)
    )


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


class Recurrent(nn.Module):
    """A small language model with an LSTM, which returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.recurrent = nn.LSTM(8, 6, num_layers=2, batch_first=True)
        self.decoder = nn.Linear(6, 11)

    def forward(self, words: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        found, (last, _) = self.recurrent(self.embedding(words))
        return {"words": self.decoder(found) * scale, "last": last}


RECORDED: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "resnet": (lambda: build("resnet-20-8", shape=(3, 32, 32), classes=10), lambda n: torch.randn(n, 3, 32, 32)),
    "recurrent": (Recurrent, lambda n: torch.randint(11, (n, 5))),
    "transformer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        lambda n: torch.randn(n, 5, 8),
    ),
    **{
        function.__name__: (lambda function=function: of(function), lambda n: torch.randn(n, 4))
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
    class Scaled(nn.Linear):
        def forward(self, x: Any, scale: float) -> Tensor:
            return super().forward(x["a"] + x["b"][1]) * scale

    model = Scaled(4, 6).eval().requires_grad_(False)
    example = Arguments(({"a": X, "b": [None, X + 1]},), {"scale": 2.0})
    graph, _ = convert(record(model, example, dynamic_batch=True), model)
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


def seen_through_a_view(self: Of, x: Tensor) -> Tensor:
    y = self.layer(x)
    part = y[:, 1]
    y.mul_(3)
    return y + part.unsqueeze(1)


ELSEWHERE = torch.randn(6)


def of_elsewhere(self: Of, x: Tensor) -> Tensor:
    return self.layer(x) + ELSEWHERE


def decides_in_hiding(self: Of, x: Tensor) -> Tensor:
    try:
        large = x.shape[0] > 64
    except Exception:
        large = False
    return self.layer(x) if large else self.norm(self.layer(x))


LEFT: dict[str, Callable[[Of, Tensor], object]] = {
    "decides": lambda m, x: m.layer(x) if x.shape[0] > 64 else m.norm(m.layer(x)),
    "halves": lambda m, x: m.layer(x)[: (len(x) + 1) // 2],
    "iterates": lambda m, x: torch.stack([m.layer(row) for row in x]),
    "looks it up": lambda m, x: m.layer(x) * {64: 2.0}.get(x.shape[0], 1.0),
    "counts": lambda m, x: m.layer(sum(x[index] for index in range(len(x))) + x),
    "reshaped in place": lambda m, x: m.layer(x).unsqueeze_(1).squeeze_(1),
    **{function.__name__: function for function in (decides_in_hiding, seen_through_a_view, of_elsewhere)},
}
EAGER = ["decides_in_hiding", "halves", "seen_through_a_view", "of_elsewhere"]


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_to_torch_export(name: str) -> None:
    with pytest.raises(NotRecordedError):
        record(of(LEFT[name]), Arguments.from_examples(X.clone()), dynamic_batch=True)


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


@pytest.mark.parametrize("name", [*sample(EAGER, 2), *sample(CUTS, [*CUTS][::2])])
def test_what_depends_on_the_number_of_examples_computes_what_the_model_does(name: str) -> None:
    """Fewer and more examples than a cut: what few examples keep whole is not whole for any number of them."""
    model = of(LEFT[name] if name in LEFT else lambda m, x: CUTS[name](m.layer(x)))
    fast = tk.compile(model, None, torch.randn(20, 4))
    for batch in (20, 7, 60) if fast.graph.accepts_any_batch else (20,):
        x = torch.randn(batch, 4)
        with torch.no_grad():
            torch.testing.assert_close(fast(x.clone()), model(x.clone()))


TRACED = 5
MANY = range(FEWEST, 60)

ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod]
COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]
numbers = st.integers(-40, 40)
lines = st.tuples(st.integers(-6, 6).filter(bool), numbers)


def size(line: tuple[int, int]) -> Examples:
    return Examples(*line, TRACED)


def value(made: object, examples: int) -> object:
    """What a result is for another number of examples than the traced one."""
    return made.per_example * examples + made.more if isinstance(made, Examples) else made


def check(function: Callable[..., Any], *operands: Any) -> None:
    """Compare with plain integers, for every number of examples."""
    try:
        made = function(*(size(one) if isinstance(one, tuple) else one for one in operands))
    except (NotRecordedError, ZeroDivisionError):
        return
    for examples in MANY:
        plain = [one[0] * examples + one[1] if isinstance(one, tuple) else one for one in operands]
        if function in (operator.floordiv, operator.mod) and not plain[1]:
            continue  # a division by a size that is 0 for this number
        assert value(made, examples) == function(*plain), (function, operands, examples)


OTHERS = numbers | lines | st.floats(-40, 40)


@given(st.sampled_from([*ARITHMETIC, *COMPARISONS]), lines, OTHERS, st.booleans())
def test_an_answer_holds_for_every_number_of_examples(function, one, other, swapped):
    if isinstance(other, float) and (function in ARITHMETIC or swapped):
        other = int(other)  # Python compares a float on the left without asking the size
    check(function, *((other, one) if swapped else (one, other)))


def test_questions_that_models_ask_have_answers():
    batch = Examples(1, 0, TRACED)
    assert batch > 0
    assert batch >= 2
    assert batch != 1
    assert batch
    assert batch == Examples(1, 0, TRACED)
    assert batch * 6 // batch == 6
    assert (batch * 6 + 12) % 3 == 0
    assert isinstance(batch * 3 // 3 - batch, int)
    assert batch - batch == 0
    size = Examples(2, 1, TRACED)
    assert torch.zeros(33).view(size, 3).shape == (11, 3)
    assert isinstance(torch.Size([size, 3])[:1][0], Examples)


QUESTIONS: list[Callable[[Any], object]] = [
    *(lambda batch: batch == 8, lambda batch: batch > 64, lambda batch: batch in {3, 4}),
    *(lambda batch: batch // 2, lambda batch: batch % 2, lambda batch: divmod(batch, 2), lambda batch: 7 // batch),
    *(lambda batch: batch * batch, lambda batch: 1 / batch, int, float),
]


@pytest.mark.parametrize("ask", QUESTIONS)
def test_questions_with_several_answers_are_refused(ask):
    with pytest.raises(NotRecordedError, match="the model asks for"):
        ask(Examples(1, 0, TRACED))
