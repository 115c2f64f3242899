"""Masks are held and let go while other threads build modules."""

from __future__ import annotations

import threading
import time

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

import ticketry as tk
from ticketry.core.sparse_training._registrations import Listening


def test_whoever_listens_is_told_until_removed() -> None:
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


def test_modules_are_built_while_masks_come_and_go() -> None:
    """Torch fails where one of its hooks is added or removed while it goes through them."""
    ended, failed = threading.Event(), list[BaseException]()

    def build() -> None:
        try:
            while not ended.is_set():
                nn.Linear(2, 2)
        except BaseException as error:
            failed.append(error)

    model = nn.Linear(4, 4)
    mask = tk.prune(model, 0.5)
    tk.hold(model, mask).release()
    slow = register_module_parameter_registration_hook(lambda *_: time.sleep(1e-3))
    thread = threading.Thread(target=build)
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
