"""Attachments of interrupted trainings are released before anything new; those of running trainings stay."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import ticketry as tk
from ticketry.core.sparse_training.hold import Attachment
from ticketry.errors import HoldError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


class Training:
    """Holds a mask, like the callback of a trainer that does not report an interruption."""

    def __init__(self, model: nn.Module, mask: tk.Mask, *, acts: bool = True) -> None:
        self.runs, self.held = True, tk.hold(model, mask)
        self.attachment = Attachment(
            model, "hold", is_running=lambda: self.runs, is_active=lambda: acts, release=self.release
        )

    def release(self) -> None:
        self.held.release()
        self.attachment.unregister()


def steps(model: nn.Module, count: int = 3) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    inputs = torch.linspace(-1, 1, 30).reshape(5, 6)
    for _ in range(count):
        optimizer.zero_grad()
        (model(inputs) - 1).square().mean().backward()
        optimizer.step()
    return model


def require_same(one: nn.Module, other: nn.Module) -> None:
    assert all(map(torch.equal, one.parameters(), other.parameters()))


def with_hold(model: nn.Module) -> nn.Module:
    with tk.hold(model, tk.prune(model, density=0.5, score="random", seed=4)):
        return steps(model)


def with_gradual(model: nn.Module) -> nn.Module:
    with tk.gradual(model, density=0.5, steps=6, begin="2it", end="3it", frequency="1it") as pruning:
        steps(model, 2)
        for _ in range(6):
            pruning.step()
        return steps(model)


def with_gates(model: nn.Module) -> nn.Module:
    gates = tk.gates.attach(model, init=1.0)
    found = steps(model)
    gates.detach()
    return found


@pytest.mark.parametrize("train", [with_hold, with_gradual, with_gates])
def test_the_next_training_equals_one_on_a_fresh_model(train: Callable[[nn.Module], nn.Module]) -> None:
    model, start = network(), network().state_dict()
    training = Training(model, tk.prune(model, density=0.3))
    training.runs = False
    model.load_state_dict(start)
    require_same(train(model), train(network()))


def test_a_training_that_still_runs_keeps_its_mask() -> None:
    for part in ("", "0"):
        model = network()
        first = tk.prune(model, density=0.6, score="random", seed=1)
        training = Training(model, first)
        inner = model.get_submodule(part)
        second = tk.prune(inner, density=0.6, score="random", seed=2)
        with tk.hold(inner, second):
            steps(model)
            training.held.check()
        training.release()


def test_leftovers_on_other_models_stay() -> None:
    one, other = network(), network()
    training = Training(one, tk.prune(one, density=0.3))
    training.runs = False
    with_hold(other)
    assert one[0].weight._backward_hooks
    wrapper = nn.ModuleList([other, one[0]])  # which shares a layer
    with tk.hold(wrapper, tk.prune(wrapper, density=0.5)):
        pass
    assert not one[0].weight._backward_hooks
    assert not one[2].weight._backward_hooks


def test_a_plain_loop_raises_once() -> None:
    model, start = network(), network().state_dict()
    training = Training(model, tk.prune(model, density=0.3))
    steps(model)  # as the trainer does it
    training.runs = False
    steps(network())  # another model
    with pytest.raises(HoldError, match=r"broke off, and what its callback put on it \(hold\).*callback\.release\(\)"):
        steps(model)
    model.load_state_dict(start)
    require_same(steps(model), steps(network()))


def test_an_inactive_leftover_is_released_silently() -> None:
    model = network()
    training = Training(model, tk.Mask.ones(tk.scope(model)), acts=False)
    training.runs = False
    steps(model)
    assert not model[0].weight._backward_hooks


def test_masks_are_held_and_released_while_another_thread_takes_steps() -> None:
    """Torch fails if a hook is added or removed while it iterates over them."""
    ended, failed = threading.Event(), list[BaseException]()

    def repeat() -> None:
        try:
            while not ended.is_set():
                parameter = nn.Parameter(torch.ones(2))
                parameter.grad = torch.ones(2)
                torch.optim.SGD([parameter], lr=0.1).step()
        except BaseException as error:
            failed.append(error)

    model = nn.Linear(4, 4)
    mask = tk.prune(model, 0.5)
    tk.hold(model, mask).release()
    slow = register_optimizer_step_post_hook(lambda *_: time.sleep(1e-3))
    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        for _ in range(20):
            with tk.hold(model, mask):
                time.sleep(1e-3)
    finally:
        ended.set()
        thread.join()
        slow.remove()
    assert not failed
