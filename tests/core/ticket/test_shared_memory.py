"""A state dict follows its model: what takes two of them says so where they are one."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from ticketry.core.ticket.state_dicts import share_memory


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def copied(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def train(model: nn.Module, mask: tk.Mask) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    with tk.hold(model, mask):
        model(torch.randn(4, 6)).pow(2).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("taken", ["live", "of one tensor", "trained is a copy"])
def test_a_start_that_followed_the_training_is_warned_of(taken: str) -> None:
    model = network()
    early = model.state_dict()
    if taken == "of one tensor":
        early = {**copied(early), "2.bias": early["2.bias"]}
    mask = tk.prune(model, 0.5)
    train(model, mask)
    trained = copied(model.state_dict()) if taken == "trained is a copy" else model.state_dict()
    with pytest.warns(UserWarning, match="copy it early") as caught:
        tk.Ticket(mask, early, {}, trained=trained)
    assert caught[0].filename == __file__


def test_a_copied_start_is_kept_apart_from_the_trained_weights(tmp_path: Any) -> None:
    model = network()
    early = copied(model.state_dict())
    expected = copied(early)
    mask = tk.prune(model, 0.5)
    train(model, mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ticket = tk.Ticket(mask, early, {}, trained=model.state_dict())
    for tensor in (*early.values(), *model.parameters()):
        tensor.data.zero_()
    assert all(torch.equal(ticket.start[name], value) for name, value in expected.items())
    assert ticket.trained is not None
    assert not any(share_memory(ticket.start[name], ticket.trained[name]) for name in expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tk.Ticket.load(ticket.save(tmp_path / "ticket"))


def test_a_ticket_of_before_training_follows_nothing() -> None:
    model = network()
    before = copied(model.state_dict())
    ticket = tk.Ticket(tk.prune(model, 0.5), model.state_dict(), {})
    train(model, ticket.mask)
    assert all(torch.equal(ticket.start[name], value) for name, value in before.items())
    again = ticket.apply(network())
    train(again, ticket.mask)
    assert all(torch.equal(ticket.start[name], value) for name, value in before.items())


def test_distance_of_a_state_dict_from_its_own_model() -> None:
    model = network()
    early = model.state_dict()
    with pytest.warns(UserWarning, match="share memory"):
        tk.evidence.distance(early, model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tk.evidence.distance(copied(early), early).l2 == 0
        assert tk.evidence.distance(early, early).l2 == 0


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (slice(0, 4), slice(4, 8), False),
        (slice(0, 5), slice(4, 8), True),
        (slice(0, 0), slice(0, 8), False),
    ],
)
def test_which_tensors_share_memory(one: slice, other: slice, expected: bool) -> None:
    whole = torch.zeros(8)
    assert share_memory(whole[one], whole[other]) is expected
    assert not share_memory(whole[one], whole.clone()[other])
    assert not share_memory(whole, torch.zeros(8, device="meta"))


def test_a_shrunk_optimiser_shares_no_history() -> None:
    model, x = network(), torch.randn(4, 6)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(x).pow(2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    plan = tk.structure.shrink_plan(model, tk.structure.channels(model, x, density=1.0), x)
    small = tk.structure.rebuild(model, plan)
    smaller = tk.structure.shrink_optimizer(optimizer, model, small, plan)
    before, after = (next(iter(each.state.values()))["old_dirs"] for each in (optimizer, smaller))
    assert before
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)
        assert not share_memory(one, other)
