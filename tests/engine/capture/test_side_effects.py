"""Models that write to inputs, weights or state of their own are refused; writes that nobody sees are captured.

Whoever calls a compiled model may write to what it gives, as with the model itself.
"""

from __future__ import annotations

import operator
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from engine.models import Of, assert_exact, ops
from interpreter import Program
from samples import sample
from ticketry.errors import CaptureError, EngineError
from ticketry_engine.capture import capture
from ticketry_engine.capture.program import Arguments, export
from ticketry_engine.capture.side_effects import as_functional_program, is_in_place
from ticketry_engine.compiled import load

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


def late(h: Tensor, calls: int) -> Tensor:
    return h * (2 if calls > 7 else 1)


def counter(m: Any, h: Tensor, s: Any) -> Tensor:
    m.count += 1
    return late(h, m.count)


def counter_in_an_object(m: Any, h: Tensor, s: Any) -> Tensor:
    m.holder.calls += 1
    return late(h, m.holder.calls)


def recurrent(m: Any, h: Tensor, s: Any) -> Tensor:
    m.state = h + getattr(m, "state", 0.0)
    return m.state


CHANGES = "has a memory of its calls: each of them changes its"
STATE: dict[str, tuple[Callable[[Any, Tensor, Any], Any], str]] = {
    "a row of a buffer": (lambda m, h, s: first(h, m.table[:3].copy_(h)), "writes to 'table' in evaluation mode"),
    "a weight": (lambda m, h, s: first(h, m.layer.weight.mul_(1.5)), "writes to 'layer.weight' in evaluation mode"),
    "statistics": (
        lambda m, h, s: nn.functional.batch_norm(h, m.table[0], m.table[1], training=True),
        "writes to 'table' in evaluation mode",
    ),
    "its own values": (lambda m, h, s: first(h, h.relu().data.mul_(2.0)) + h, "writes to its own tensors"),
    "a late counter": (counter, CHANGES),
    "a late counter in a dict": (
        lambda m, h, s: late(h, first(m.counts["calls"], m.counts.update(calls=m.counts["calls"] + 1))),
        CHANGES,
    ),
    "a late counter in an object": (counter_in_an_object, CHANGES),
    "a log": (lambda m, h, s: late(h, first(len(m.log), m.log.append(1))), CHANGES),
    "a set": (lambda m, h, s: late(h, first(len(m.seen), m.seen.add(len(m.seen)))), CHANGES),
    "the last state": (recurrent, "Model remembers its calls"),
    "the first result": (lambda m, h, s: m.counts.setdefault("first", h), "Model remembers its calls"),
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
    assert_exact(tk.compile(model, None, x), model, x, x, rtol=1e-5)


def test_an_attribute_that_a_model_only_sets_is_noted() -> None:
    def keep(m: Any, h: Tensor, s: Any) -> Tensor:
        m.last = h
        return h

    model, x = Model(keep).eval(), torch.randn(3, 6)
    with pytest.warns(UserWarning, match="compiled with a limit: the model changes its own 'last' in each call"):
        fast = tk.compile(model, None, x)
    assert "note: the model changes its own 'last' in each call" in str(fast)
    assert_exact(fast, model, x, rtol=1e-5)


OWN: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: x.relu_().add_(1) + x,
    "on a view": lambda x: first(x, x[:, 1].mul_(3)) + 1,
    "base read no more": lambda x: operator.iadd(x[:, :2], 1).relu_(),
    "view read afterwards": lambda x: first(x[:, :2], x.add_(1)) * x[:, :2],
    "through dropout": lambda x: x + nn.functional.dropout(x, 0.5, training=False).relu_() + x,
    "split and changed": lambda x: (lambda one, other: torch.cat([one.mul_(2), other, x], 1))(*x.chunk(2, 1)),
    "copied into": lambda x: (lambda out: first(out, operator.setitem(out, (ALL, slice(1, None)), x[:, :-1])))(0 * x),
}


def of_own_values(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return Of(lambda m, x: function(x * m.factor[0]), factor=nn.ParameterList([torch.tensor(2.0)]))


@pytest.mark.parametrize("name", sample(OWN, 4))
def test_writes_to_own_values_are_captured(name: str) -> None:
    model, x = of_own_values(OWN[name]), torch.randn(3, 4, 5)
    with torch.no_grad():
        assert torch.equal(Program(capture(model, None, x))(torch.cat([x, x])), model(torch.cat([x, x])))


@pytest.mark.parametrize("name", ["plain", "base read no more"])
def test_writes_that_no_view_sees_need_no_second_tracing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = export(of_own_values(OWN[name]), Arguments.from_examples(torch.randn(2, 4)), dynamic_batch=True)[0]
    assert any(is_in_place(one) for one in program.graph.nodes)
    monkeypatch.setattr(type(program), "run_decompositions", None)
    assert not any(is_in_place(one) for one in as_functional_program(program).graph.nodes)


def test_writes_to_a_copy_of_an_input_stay_allowed() -> None:
    def forward(m: Any, h: Tensor, state: Tensor) -> Tensor:
        own = state.clone()
        own[:, 0] = h[:, 0]
        return own.add_(1) * 2

    model, x, state = Model(forward).eval(), torch.randn(3, 6), torch.randn(3, 6)
    before = state.clone()
    assert_exact(tk.compile(model, None, (x, state)), model, (x, state), rtol=1e-5)
    assert torch.equal(state, before)


def net(function: Callable[[Tensor, Tensor], Any]) -> nn.Module:
    """A model that is a function of its input and of a layer's output."""
    torch.manual_seed(0)
    return Of(lambda m, x: function(x, m.layer(x)), layer=nn.Linear(8, 8)).eval()


RESULTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "zeros for each example": lambda x, y: (y, torch.zeros(x.shape[0], 4)),
    "positions": lambda x, y: (y, torch.arange(4).expand(x.shape[0], 4).clone()),
    "a copy of the input": lambda x, y: (x.clone(), x * 1),
    "a result and its copy": lambda x, y: {"y": y, "more": [y.clone(), y[:, :3] + 0]},
    "a copy of a part": lambda x, y: (y, y[:, 2:5].clone()),
    "a part of a copy": lambda x, y: (x, y, x.clone().view(-1, 2, 4)),
    "parts, which are views": lambda x, y: y.chunk(2, 1),
    "the input itself": lambda x, y: (x, y, y),
}


def tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for part in (tree.values() if isinstance(tree, dict) else tree) for leaf in tensors(part)]


@pytest.mark.parametrize("name", RESULTS)
def test_writing_to_one_result_changes_what_it_changes_in_torch(name: str) -> None:
    model, x = net(RESULTS[name]), torch.randn(3, 8)
    fast = tk.compile(model, None, x)
    with torch.no_grad():
        for index in range(len(tensors(model(x)))):
            given = [x.clone() for _ in range(2)]
            found = [tensors(run(own)) for run, own in zip((model, fast), given, strict=True)]
            for made in found:
                made[index].add_(1)
            torch.testing.assert_close([given[1], *found[1]], [given[0], *found[0]])
            torch.testing.assert_close(tensors(fast(x)), tensors(model(x)))


class Both(NamedTuple):
    one: Tensor
    two: tuple[Tensor, int]


@pytest.mark.parametrize("name", ["NamedTuple", "max"])
def test_a_tuple_with_names_is_unpacked_and_read_by_name(name: str, tmp_path: Path) -> None:
    results = {"NamedTuple": lambda x, y: Both(y, (x, 3)), "max": lambda x, y: y.max(1)}
    model, x = net(results[name]), torch.randn(3, 8)
    fast = tk.compile(model, None, x)
    fast.save(tmp_path / "model.tk")
    with torch.no_grad():
        wanted = model(x)
    for made in (fast(x), load(tmp_path / "model.tk")(x), pickle.loads(pickle.dumps(fast(x)))):
        one, two = made
        torch.testing.assert_close((one, two), tuple(wanted))
        assert isinstance(made, tuple)
        for field, value in zip(getattr(wanted, "_fields", type(wanted).__match_args__), (one, two), strict=True):
            assert getattr(made, field) is value
        with pytest.raises(AttributeError, match="the output has no 'three'; it has"):
            _ = made.three


def test_dicts_of_whole_numbers_have_them_as_keys(tmp_path: Path) -> None:
    """Levels of a pyramid, layers of a probe: as arguments too, and after a file."""

    def levels(m: Of, given: dict[int, Tensor]) -> dict[int, Any]:
        return {4: m.layer(given[-1]), 0: {"0": given[2] + 1}}

    torch.manual_seed(0)
    model, x = Of(levels, layer=nn.Linear(8, 8)).eval(), {-1: torch.randn(3, 8), 2: torch.randn(3, 8)}
    fast = tk.compile(model, None, (x,))
    fast.save(tmp_path / "model.tk")
    with torch.no_grad():
        wanted = model(x)
    for made in (fast(x), load(tmp_path / "model.tk")(x)):
        assert list(made) == [4, 0]
        assert list(made[0]) == ["0"]
        torch.testing.assert_close(made, wanted)
    with pytest.raises(EngineError, match=r"not a mapping of \[-1, 2\] as when captured"):
        fast({"-1": x[-1], "2": x[2]})


def test_keys_of_several_kinds_are_refused() -> None:
    for keys in ((1, "1"), (("a", "b"),), (True,)):
        with pytest.raises(CaptureError, match="a dict of the inputs or outputs has the keys"):
            tk.compile(net(lambda x, y, keys=keys: dict.fromkeys(keys, y)), None, torch.randn(3, 8))


def test_what_is_its_own_is_not_copied() -> None:
    model = net(lambda x, y: (y.relu(), (y * 2).flatten(1), nn.functional.dropout(x, 0.1, False)))
    assert "clone" not in str(ops(capture(model, None, torch.randn(3, 8))))
