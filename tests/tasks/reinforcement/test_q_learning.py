"""Deep Q-learning: the loss written out, the target network, the replay memory, and resuming bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ticketry.lab.training.precision import Arithmetic
from ticketry.tasks import models
from ticketry.tasks.facts import Learning
from ticketry.tasks.reinforcement import Learner, Memory

QUICK = Learning(copies=4, memory=64, warmup=16, period=5, explore_for=0.5)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.build("mlp-12", shape=(4, 1, 1), classes=2)


def learner(learning: Learning = QUICK, **changes: Any) -> Learner:
    settings: dict[str, Any] = {"batch": 16, "total": 40, "seed": 1, "arithmetic": Arithmetic(), **changes}
    return Learner("CartPole-v1", (4, 2), learning, **settings)


def trained(session: Learner, model: nn.Module, steps: range) -> list[float]:
    """Train as the lab does, with torch's generator seeded by the step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for step in steps:
        torch.manual_seed(step)
        loss = session.loss(model, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(("double", "kind"), [(False, "huber"), (True, "squared")])
def test_the_loss_written_out(monkeypatch: pytest.MonkeyPatch, double: bool, kind: str) -> None:
    """For the sampled batch, with a second network as the target."""
    taken = []
    original = Memory.select_rows

    def take(memory: Memory, rows: Tensor) -> Any:
        taken.append(original(memory, rows))
        return taken[-1]

    monkeypatch.setattr(Memory, "select_rows", take)
    session, model = learner(replace(QUICK, double=double, loss=kind, gamma=0.9, period=3)), network()
    target = network()
    for step in range(8):
        if step % 3 == 0:
            target.load_state_dict(model.state_dict())
        torch.manual_seed(step)
        loss = session.loss(model, step)
        batch = taken[-1]
        with torch.no_grad():
            best = (model if double else target)(batch.after).argmax(1)
            values = target(batch.after)[range(16), best]
            wanted = batch.rewards + 0.9 * values * (1 - batch.ended)
        guess = model(batch.seen)[range(16), batch.actions]
        difference = (guess - wanted).abs()
        each = torch.where(difference < 1, difference**2 / 2, difference - 0.5) if kind == "huber" else difference**2
        assert float(loss.detach()) == pytest.approx(each.mean().item(), rel=1e-5)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        expected = torch.autograd.grad(each.mean(), list(model.parameters()))
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients, expected, strict=True))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.05 * gradient


def test_transitions_follow_the_equations_of_the_pole() -> None:
    """The equations of the pole give the next state; the reward is 1."""
    session = learner(replace(QUICK, memory=400, warmup=200))
    trained(session, network(), range(30))
    state = session.state()
    count = 200 + 30 * 4
    assert len(state["memory/actions"]) == count
    x, v, angle, speed = state["memory/seen"].double().T
    force = torch.where(state["memory/actions"] == 1, 10.0, -10.0)
    part = (force + 0.05 * speed**2 * angle.sin()) / 1.1
    turning = (9.8 * angle.sin() - angle.cos() * part) / (0.5 * (4 / 3 - 0.1 * angle.cos() ** 2 / 1.1))
    pushed = part - 0.05 * turning * angle.cos() / 1.1
    after = torch.stack([x + 0.02 * v, v + 0.02 * pushed, angle + 0.02 * speed, speed + 0.02 * turning], 1)
    assert torch.allclose(after.float(), state["memory/after"], atol=1e-5)
    assert bool((state["memory/rewards"] == 1).all())
    over = (after[:, 0].abs() > 2.4) | (after[:, 2].abs() > 12 * 2 * np.pi / 360)
    assert torch.equal(over.float(), state["memory/ended"])
    assert over.any()


def test_the_oldest_transitions_are_overwritten() -> None:
    memory = Memory(8, 1)
    for number in range(5):
        values = np.full((4, 1), number, np.float32)
        memory.add(values, [0] * 4, values[:, 0], values, np.zeros(4, np.bool_))
    assert memory.select_rows(torch.arange(8)).rewards.tolist() == [4.0] * 4 + [3.0] * 4
    assert memory.count == 8


def test_exploration_falls_linearly() -> None:
    """The network always prefers action 1, so that half of the exploring actions are 0."""
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.layers[-1].bias[1] = 1.0  # type: ignore[index, union-attr]
    session = learner(Learning(copies=100, memory=4000, warmup=100, explore=0.1, explore_for=0.5))
    for step in range(39):
        torch.manual_seed(step)
        session.loss(model, step)
    others = 1 - session.state()["memory/actions"][100:].view(39, 100).double().mean(1)
    expected = torch.tensor([max(0.1, 1 - 0.9 * step / 20) / 2 for step in range(39)]).double()
    assert float((others - expected).abs().max()) < 0.16
    assert float((others - expected).mean().abs()) < 0.02


@pytest.mark.parametrize("period", [5, 1])
def test_the_target_network_follows(period: int) -> None:
    blend = 1.0 if period == 5 else 0.25
    session, model = learner(replace(QUICK, period=period, blend=blend)), network()
    expected = weights(model)
    for step in range(7):
        if step % period == 0:
            expected = {name: old + blend * (weights(model)[name] - old) for name, old in expected.items()}
        trained(session, model, range(step, step + 1))
    found = {name[7:]: value for name, value in session.state().items() if name.startswith(session.copies)}
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-7) for name in found)
    assert not any(torch.equal(found[name], value) for name, value in weights(model).items())


def test_training_resumes_bit_for_bit() -> None:
    one, model = learner(), network()
    assert one.state() == {}
    trained(one, model, range(13))
    other, copy = learner(), network(1)
    copy.load_state_dict(model.state_dict())
    other.load_state({name: value.clone() for name, value in one.state().items()})
    assert trained(one, model, range(13, 40)) == trained(other, copy, range(13, 40))
    assert all(torch.equal(value, weights(copy)[name]) for name, value in weights(model).items())
    assert all(torch.equal(value, other.state()[name]) for name, value in one.state().items())


def test_other_seeds_are_other_episodes() -> None:
    one, other = learner(), learner(seed=2)
    trained(one, network(), range(1))
    trained(other, network(), range(1))
    assert not torch.equal(one.state()["memory/seen"], other.state()["memory/seen"])
