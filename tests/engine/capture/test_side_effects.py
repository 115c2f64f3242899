"""Models that change their inputs, their weights or their own state are refused, or the user is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from ticketry.errors import CaptureError
from ticketry_engine.capture import capture


class Model(nn.Module):
    """A layer, a buffer, and places where calls can be counted."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.register_buffer("table", torch.zeros(4, 6))
        self.count = 0
        self.counts = {"calls": 0}
        self.log: list[int] = []


def model_of(function: Any, *, with_self: bool = False) -> nn.Module:
    """A model whose forward calls a function of (its layer's output, the second input)."""

    class Case(Model):
        def forward(self, x: Tensor, state: Any) -> Any:
            return function(self, self.layer(x), state) if with_self else function(self.layer(x), state)

    return Case().eval()


def copied(h: Tensor, state: Tensor) -> Tensor:
    state.copy_(h)
    return h


def added(h: Tensor, state: Tensor) -> Tensor:
    state += h
    return state * 2


def assigned_to_a_view(h: Tensor, state: Tensor) -> Tensor:
    state[:, 0] = h[:, 0]
    return h


def index_put(h: Tensor, state: Tensor) -> Tensor:
    state.index_put_((torch.tensor([0]),), h[:1])
    return h


def scattered(h: Tensor, state: Tensor) -> Tensor:
    return h + state.scatter_(1, torch.zeros(h.shape[0], 1, dtype=torch.long), 5.0)


def given_as_out(h: Tensor, state: Tensor) -> Tensor:
    torch.add(h, state, out=state)
    return h


def given_as_out_of_a_view(h: Tensor, state: Tensor) -> Tensor:
    torch.mul(h, 2, out=state[:, :])
    return h


def reshaped(h: Tensor, state: Tensor) -> Tensor:
    state.view(-1).add_(1)
    return h + state


def transposed(h: Tensor, state: Tensor) -> Tensor:
    state.t()[0].zero_()
    return h


def split(h: Tensor, state: Tensor) -> Tensor:
    state.chunk(2, 1)[1].mul_(3)
    return h


def past_autograd(h: Tensor, state: Tensor) -> Tensor:
    state.data.mul_(2)
    return h + state


def several_at_once(h: Tensor, state: Tensor) -> Tensor:
    torch._foreach_add_([state], 1.0)
    return h


def the_same_type(h: Tensor, state: Tensor) -> Tensor:
    state.type_as(h).add_(1)  # its schema does not say that it may return its argument
    return h


def at_least_as_many_axes(h: Tensor, state: Tensor) -> Tensor:
    torch.atleast_2d(state).add_(1)
    return h


def in_place_activation(h: Tensor, state: Tensor) -> Tensor:
    return h + nn.functional.relu(state, inplace=True)


def masked(h: Tensor, state: Tensor) -> Tensor:
    return h + state.masked_fill_(h > 0, 0.0)


def swapped(h: Tensor, state: Tensor) -> Tensor:
    state.set_(h.clone())
    return h


def through_numpy(h: Tensor, state: Tensor) -> Tensor:
    state.numpy()[:] = 1
    return h + state


WRITES = [
    *(copied, added, assigned_to_a_view, index_put, scattered, given_as_out, given_as_out_of_a_view, reshaped),
    *(transposed, split, past_autograd, several_at_once, the_same_type, at_least_as_many_axes, in_place_activation),
    *(masked, swapped, through_numpy),
]


@pytest.mark.parametrize("function", WRITES)
def test_a_model_that_writes_to_an_input_is_refused(function: Any):
    model, x, state = model_of(function), torch.randn(3, 6), torch.randn(3, 6)
    before = state.clone()
    with pytest.raises(CaptureError, match=r"changes its input 'state' in place.*state = state\.clone\(\)"):
        tk.compile(model, None, (x, state))
    assert torch.equal(state, before)
    with torch.no_grad():
        model(x, state)
    assert not torch.equal(state, before)  # the case is what it says


def dict_cache(h: Tensor, state: dict[str, Tensor]) -> Tensor:
    state["keys"] = torch.cat([state["keys"], h], 1)
    return state["keys"].sum(1)


def list_cache(h: Tensor, state: list[Tensor]) -> Tensor:
    state.append(h)
    return torch.stack(state).sum(0)


def popped(h: Tensor, state: dict[str, Tensor]) -> Tensor:
    return h + state.pop("keys")


@pytest.mark.parametrize(
    ("function", "state"),
    [(dict_cache, {"keys": torch.ones(3, 6)}), (list_cache, [torch.ones(3, 6)]), (popped, {"keys": torch.ones(3, 6)})],
)
def test_a_model_that_changes_a_container_it_is_given_is_refused(function: Any, state: Any):
    with pytest.raises(CaptureError, match="changes its input 'state' in place"):
        tk.compile(model_of(function), None, (torch.randn(3, 6), state))


def write_to_a_row(model: Any, h: Tensor, _: Tensor) -> Tensor:
    model.table[: h.shape[0]] = h
    return model.table[: h.shape[0]] * 2


def scale_weight(model: Any, h: Tensor, _: Tensor) -> Tensor:
    model.layer.weight.mul_(1.5)
    return h


def update_statistics(model: Any, h: Tensor, state: Tensor) -> Tensor:
    return nn.functional.batch_norm(h, model.table[0], model.table[1], training=True) + state


@pytest.mark.parametrize(
    ("function", "name"), [(write_to_a_row, "table"), (scale_weight, "layer.weight"), (update_statistics, "table")]
)
def test_a_model_that_writes_to_a_weight_is_refused(function: Any, name: str):
    with pytest.raises(CaptureError, match=f"writes to '{name}' in evaluation mode"):
        tk.compile(model_of(function, with_self=True), None, (torch.randn(3, 6), torch.randn(3, 6)))


def late_counter(model: Any, h: Tensor, _: Tensor) -> Tensor:
    model.count += 1
    return h * (2 if model.count > 7 else 1)


def late_counter_in_a_dict(model: Any, h: Tensor, _: Tensor) -> Tensor:
    model.counts["calls"] += 1
    return h * (2 if model.counts["calls"] > 7 else 1)


def growing_log(model: Any, h: Tensor, _: Tensor) -> Tensor:
    model.log.append(1)
    return h * (2 if len(model.log) > 7 else 1)


@pytest.mark.parametrize("function", [late_counter, late_counter_in_a_dict, growing_log])
def test_a_counter_that_shows_later_is_refused(function: Any):
    with pytest.raises(CaptureError, match="has a memory of its calls: each of them changes its"):
        tk.compile(model_of(function, with_self=True), None, (torch.randn(3, 6), torch.randn(3, 6)))


def test_what_a_model_only_keeps_is_told():
    def keep(model: Any, h: Tensor, _: Tensor) -> Tensor:
        model.last = h
        return h

    model, x = model_of(keep, with_self=True), torch.randn(3, 6)
    with pytest.warns(UserWarning, match="compiled with a limit: the model changes its own 'last' in each call"):
        fast = tk.compile(model, None, (x, x))
    assert "note: the model changes its own 'last' in each call" in str(fast)
    with torch.no_grad():
        torch.testing.assert_close(fast(x, x), model(x, x), atol=1e-5, rtol=1e-5)


def test_writes_to_copies_stay_allowed():
    def function(h: Tensor, state: Tensor) -> Tensor:
        own = state.clone()
        own[:, 0] = h[:, 0]
        own += 1
        return own * 2

    model, x, state = model_of(function), torch.randn(3, 6), torch.randn(3, 6)
    fast, before = tk.compile(model, None, (x, state)), state.clone()
    with torch.no_grad():
        torch.testing.assert_close(fast(x, state), model(x, state), atol=1e-5, rtol=1e-5)
    assert torch.equal(state, before)


def test_a_fixed_number_of_examples_is_told():
    class Insists(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(2, 2, 4).sum(1)

    with pytest.warns(UserWarning, match="the number of examples is fixed"):
        fast = tk.compile(Insists(), None, torch.randn(4, 4))
    assert "note: the number of examples is fixed" in str(fast)
    assert capture(Insists(), None, torch.randn(4, 4)).notes == fast.graph.notes
