"""Listeners to optimiser steps, also while other threads take steps."""

from __future__ import annotations

import threading
import time

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import ticketry as tk
from ticketry_engine.support.training_hooks import Stepping


def _optimizer() -> torch.optim.SGD:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return torch.optim.SGD([parameter], lr=0.1)


def test_listeners_are_called_until_removed() -> None:
    calls: list[str] = []
    optimizer = _optimizer()
    one = Stepping(before=lambda *_: calls.append("before"), after=lambda *_: calls.append("after"))
    other = Stepping(after=lambda of, *_: calls.append(f"after {of is optimizer}"))
    optimizer.step()
    one.remove()
    one.remove()
    optimizer.step()
    other.remove()
    optimizer.step()
    assert calls == ["before", "after", "after True", "after True"]


def test_masks_are_held_and_released_while_another_thread_takes_steps() -> None:
    """Torch fails if a hook is added or removed while it iterates over them."""
    ended, failed = threading.Event(), list[BaseException]()

    def repeat() -> None:
        try:
            while not ended.is_set():
                _optimizer().step()
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
