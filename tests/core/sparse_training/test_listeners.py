"""Masks are held and let go while other threads build modules and take steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

import ticketry as tk
from ticketry.core.sparse_training._registrations import Listening
from ticketry_engine.support.optimizer_steps import Stepping


def _optimizer() -> torch.optim.SGD:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return torch.optim.SGD([parameter], lr=0.1)


def test_registrations_are_told_until_removed() -> None:
    told: list[tuple[str, str]] = []
    one = Listening(lambda module, name, value: told.append(("one", name)))
    other = Listening(lambda module, name, value: told.append(("other", name)))
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(1))
    one.remove()
    one.remove()
    model.child = nn.ReLU()
    other.remove()
    model.bias = nn.Parameter(torch.ones(1))
    assert told == [("one", "weight"), ("other", "weight"), ("other", "child")]


def test_steps_are_told_until_removed() -> None:
    told: list[str] = []
    optimizer = _optimizer()
    one = Stepping(before=lambda *_: told.append("before"), after=lambda *_: told.append("after"))
    other = Stepping(after=lambda of, *_: told.append(f"after {of is optimizer}"))
    optimizer.step()
    one.remove()
    one.remove()
    optimizer.step()
    other.remove()
    optimizer.step()
    assert told == ["before", "after", "after True", "after True"]


@pytest.mark.parametrize(
    ("busy", "hooked"),
    [
        (lambda: nn.Linear(2, 2), register_module_parameter_registration_hook),
        (lambda: _optimizer().step(), register_optimizer_step_post_hook),
    ],
    ids=["building", "stepping"],
)
def test_masks_come_and_go_while_another_thread_is(busy: Callable[[], object], hooked: Callable[..., Any]) -> None:
    """Torch fails where one of its hooks is added or removed while it goes through them."""
    ended, failed = threading.Event(), list[BaseException]()

    def repeat() -> None:
        try:
            while not ended.is_set():
                busy()
        except BaseException as error:
            failed.append(error)

    model = nn.Linear(4, 4)
    mask = tk.prune(model, 0.5)
    tk.hold(model, mask).release()
    slow = hooked(lambda *_: time.sleep(1e-3))
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
