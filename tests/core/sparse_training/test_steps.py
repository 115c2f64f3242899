"""Masks are held and let go while other threads take steps."""

from __future__ import annotations

import threading
import time

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import ticketry as tk
from ticketry.core.sparse_training._steps import Stepping


def _optimizer() -> torch.optim.SGD:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return torch.optim.SGD([parameter], lr=0.1)


def test_whoever_listens_is_told_until_removed() -> None:
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


def test_steps_are_taken_while_masks_come_and_go() -> None:
    """Torch fails where one of its hooks is added or removed while it goes through them."""
    ended, failed = threading.Event(), list[BaseException]()

    def step() -> None:
        optimizer = _optimizer()
        try:
            while not ended.is_set():
                optimizer.step()
        except BaseException as error:
            failed.append(error)

    model = nn.Linear(4, 4)
    mask = tk.prune(model, 0.5)
    tk.hold(model, mask).release()
    slow = register_optimizer_step_post_hook(lambda *_: time.sleep(1e-3))
    thread = threading.Thread(target=step)
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
