"""Models that write to inputs, weights or state of their own are refused; writes that nobody sees are captured."""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from interpreter import Program
from samples import sample
from ticketry.errors import CaptureError
from ticketry_engine.capture import capture
from ticketry_engine.capture.program import Arguments, export
from ticketry_engine.capture.side_effects import as_functional_program, is_in_place

ALL = slice(None)


class Model(nn.Module):
    """Calls a function of itself, its layer's output and the second input."""

    def __init__(self, function: Callable[[Any, Tensor, Any], Any]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(6, 6), function
        self.register_buffer("table", torch.zeros(4, 6))
        self.count, self.counts, self.log = 0, {"calls": 0}, []
        self.seen, self.holder = set[int](), SimpleNamespace(calls=0)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        return self.function(self, self.layer(x), state)


def first(result: Any, *effects: Any) -> Any:
    return result


WRITES: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "copy_": lambda m, h, s: first(h, s.copy_(h)),
    "+=": lambda m, h, s: operator.iadd(s, h) * 2,
    "assignment to a view": lambda m, h, s: first(h, operator.setitem(s, (ALL, 0), h[:, 0])),
    "out=": lambda m, h, s: first(h, torch.add(h, s, out=s)),
    "reshaped": lambda m, h, s: first(h, s.view(-1).add_(1)) + s,
    "past autograd": lambda m, h, s: first(h, s.data.mul_(2)) + s,
    "several at once": lambda m, h, s: first(h, torch._foreach_add_([s], 1.0)),
    # The schemas of these two do not say that they may return their argument.
    "the same type": lambda m, h, s: first(h, s.type_as(h).add_(1)),
    "as many axes": lambda m, h, s: first(h, torch.atleast_2d(s).add_(1)),
    "activation": lambda m, h, s: h + nn.functional.relu(s, inplace=True),
    "another storage": lambda m, h, s: first(h, s.set_(h.clone())),
    "through numpy": lambda m, h, s: first(h, operator.setitem(s.numpy(), ALL, 1)) + s,
}


@pytest.mark.parametrize("name", WRITES)
def test_a_model_that_writes_to_an_input_is_refused(name: str) -> None:
    model, x, state = Model(WRITES[name]).eval(), torch.randn(3, 6), torch.randn(3, 6)
    before = state.clone()
    with pytest.raises(CaptureError, match=r"changes its input 'state' in place.*state = state\.clone\(\)"):
        tk.compile(model, None, (x, state))
    assert torch.equal(state, before)
    with torch.no_grad():
        model(x, state)
    assert not torch.equal(state, before)  # the case is what it says


@pytest.mark.parametrize(
    ("function", "state"),
    [
        (lambda m, h, s: first(h, operator.setitem(s, "keys", h)), {"keys": torch.ones(3, 6)}),
        (lambda m, h, s: first(h, s.append(h)), [torch.ones(3, 6)]),
        (lambda m, h, s: h + s.pop("keys"), {"keys": torch.ones(3, 6)}),
    ],
)
def test_a_model_that_changes_a_container_it_is_given_is_refused(function: Any, state: Any) -> None:
    with pytest.raises(CaptureError, match="changes its input 'state' in place"):
        tk.compile(Model(function).eval(), None, (torch.randn(3, 6), state))


def late_counter(m: Any, h: Tensor, s: Any) -> Tensor:
    m.count += 1
    return h * (2 if m.count > 7 else 1)


def late_counter_in_a_dict(m: Any, h: Tensor, s: Any) -> Tensor:
    m.counts["calls"] += 1
    return h * (2 if m.counts["calls"] > 7 else 1)


def growing_log(m: Any, h: Tensor, s: Any) -> Tensor:
    m.log.append(1)
    return h * (2 if len(m.log) > 7 else 1)


def growing_set(m: Any, h: Tensor, s: Any) -> Tensor:
    m.seen.add(len(m.seen))
    return h * (2 if len(m.seen) > 7 else 1)


def late_counter_in_an_object(m: Any, h: Tensor, s: Any) -> Tensor:
    m.holder.calls += 1
    return h * (2 if m.holder.calls > 7 else 1)


def recurrent(m: Any, h: Tensor, s: Any) -> Tensor:
    m.state = h + getattr(m, "state", 0.0)
    return m.state


def cached(m: Any, h: Tensor, s: Any) -> Tensor:
    return m.counts.setdefault("first", h)


STATE: dict[str, tuple[Callable[[Any, Tensor, Any], Any], str]] = {
    "a row of a buffer": (lambda m, h, s: first(h, m.table[:3].copy_(h)), "writes to 'table' in evaluation mode"),
    "a weight": (lambda m, h, s: first(h, m.layer.weight.mul_(1.5)), "writes to 'layer.weight' in evaluation mode"),
    "statistics": (
        lambda m, h, s: nn.functional.batch_norm(h, m.table[0], m.table[1], training=True),
        "writes to 'table' in evaluation mode",
    ),
    "its own values": (lambda m, h, s: first(h, h.relu().data.mul_(2.0)) + h, "writes to its own tensors"),
    "a late counter": (late_counter, "has a memory of its calls: each of them changes its"),
    "a late counter in a dict": (late_counter_in_a_dict, "has a memory of its calls: each of them changes its"),
    "a late counter in an object": (late_counter_in_an_object, "has a memory of its calls: each of them changes its"),
    "a log": (growing_log, "has a memory of its calls: each of them changes its"),
    "a set": (growing_set, "has a memory of its calls: each of them changes its"),
    "the last state": (recurrent, "Model remembers its calls"),
    "the first result": (cached, "Model remembers its calls"),
}


@pytest.mark.parametrize("name", STATE)
def test_a_model_that_changes_its_state_is_refused(name: str) -> None:
    function, message = STATE[name]
    with pytest.raises(CaptureError, match=message):
        tk.compile(Model(function).eval(), None, (torch.randn(3, 6),))


def test_a_table_made_in_the_first_call_is_no_memory() -> None:
    def forward(m: Any, h: Tensor, s: Any) -> Tensor:
        if not hasattr(m, "made"):
            m.made = torch.arange(6.0)
        return h + m.made

    model, x = Model(forward).eval(), torch.randn(4, 6)
    fast = tk.compile(model, None, x)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fast(x), model.layer(x) + torch.arange(6.0), atol=1e-5, rtol=1e-5)


def test_an_attribute_that_a_model_only_sets_is_noted() -> None:
    def keep(m: Any, h: Tensor, s: Any) -> Tensor:
        m.last = h
        return h

    model, x = Model(keep).eval(), torch.randn(3, 6)
    with pytest.warns(UserWarning, match="compiled with a limit: the model changes its own 'last' in each call"):
        fast = tk.compile(model, None, x)
    assert "note: the model changes its own 'last' in each call" in str(fast)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), atol=1e-5, rtol=1e-5)


def plain(x: Tensor) -> Tensor:
    return x.relu_().add_(1) + x


def on_a_view(x: Tensor) -> Tensor:
    x[:, 1].mul_(3)
    return x + 1


def view_read_afterwards(x: Tensor) -> Tensor:
    seen = x[:, :2]
    x.add_(1)
    return seen * x[:, :2]


def base_read_no_more(x: Tensor) -> Tensor:
    part = x[:, :2]
    part += 1
    return part.relu_()


def through_dropout(x: Tensor) -> Tensor:
    same = nn.functional.dropout(x, 0.5, training=False)
    same.relu_()
    return x + same


def split_and_changed(x: Tensor) -> Tensor:
    one, other = x.chunk(2, 1)
    one.mul_(2)
    return torch.cat([one, other, x], 1)


def copied_into(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, 1:] = x[:, :-1]
    return out


CASES = [plain, on_a_view, view_read_afterwards, base_read_no_more, through_dropout, split_and_changed, copied_into]


class Own(nn.Module):
    """A function of values that the model has made itself."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.factor = function, nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * self.factor)


@pytest.mark.parametrize("function", sample(CASES, 4))
def test_writes_to_own_values_are_captured(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 4, 5)
    model = Own(function)
    made = Program(capture(model, None, x))(torch.cat([x, x]))
    with torch.no_grad():
        assert torch.equal(made, model(torch.cat([x, x])))


@pytest.mark.parametrize("function", [plain, base_read_no_more])
def test_writes_that_no_view_sees_need_no_second_tracing(
    function: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = export(Own(function), Arguments.from_examples(torch.randn(2, 4)), dynamic_batch=True)[0]
    assert any(is_in_place(one) for one in program.graph.nodes)
    monkeypatch.setattr(type(program), "run_decompositions", None)
    assert not any(is_in_place(one) for one in as_functional_program(program).graph.nodes)


def test_writes_to_a_copy_of_an_input_stay_allowed() -> None:
    def forward(m: Any, h: Tensor, state: Tensor) -> Tensor:
        own = state.clone()
        own[:, 0] = h[:, 0]
        own += 1
        return own * 2

    model, x, state = Model(forward).eval(), torch.randn(3, 6), torch.randn(3, 6)
    fast, before = tk.compile(model, None, (x, state)), state.clone()
    with torch.no_grad():
        torch.testing.assert_close(fast(x, state), model(x, state), atol=1e-5, rtol=1e-5)
    assert torch.equal(state, before)
