"""Hooks for masked training: functions called at optimiser steps, marks on masked gradients, and an autograd guard.

A global hook of torch is registered once and never removed; it calls the current listeners. Torch iterates over its
global hooks whenever a thread builds a module or takes an optimiser step, and fails if another
thread adds or removes a hook meanwhile.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

Listener = TypeVar("Listener")


class Listeners(Generic[Listener]):
    """The functions that a global torch hook calls.

    Threads may iterate over the functions while others are added or removed.

    When the first function is added, `hook` is called, which registers torch's hooks. These hooks call the functions in
    `present`.
    """

    def __init__(self, hook: Callable[[], object]) -> None:
        self.present: tuple[Listener, ...] = ()
        """Current listeners; a change replaces the tuple, so that iterating over it needs no lock."""
        self._hook, self._hooked, self._guard = hook, False, threading.Lock()

    def add(self, one: Listener) -> None:
        with self._guard:
            if not self._hooked:
                self._hook()
                self._hooked = True
            self.present = (*self.present, one)

    def remove(self, gone: Listener) -> None:
        """Remove a listener; do nothing if it is not in the list."""
        with self._guard:
            self.present = tuple(one for one in self.present if one is not gone)


# -- listeners for steps of optimisers ---------------------------------------------------------------------------------


Told = Callable[[Optimizer, object, object], None]


class Stepping:
    """Calls functions before and after each step of every torch optimiser, until `remove` is called."""

    def __init__(self, *, before: Told | None = None, after: Told | None = None) -> None:
        self.before, self.after = before, after
        _listening.add(self)

    def remove(self) -> None:
        """Stop calling the functions; do nothing if that was done before."""
        _listening.remove(self)


def _register_optimizer_hooks() -> None:
    register_optimizer_step_pre_hook(_call_before_step)
    register_optimizer_step_post_hook(_call_after_step)


def _call_before_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    for one in _listening.present:
        if one.before is not None:
            one.before(optimizer, args, kwargs)


def _call_after_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    for one in _listening.present:
        if one.after is not None:
            one.after(optimizer, args, kwargs)


_listening = Listeners[Stepping](_register_optimizer_hooks)


# -- an error for second derivatives of kernels -----------------------------------------------------------------------


def first_derivative_only(
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., tuple[Tensor | None, ...]]:
    """Return a function that computes `backward`, and raises an error if its result is differentiated again.

    Torch's `once_differentiable` raises no error if the incoming gradients require no gradients, as for a plain sum. A
    penalty on gradients would then silently count as a constant.
    """
    marked = once_differentiable(backward)

    @functools.wraps(backward)
    def refuse_second_derivative(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = marked(ctx, *gradients)
        if not torch.is_grad_enabled():
            return found
        return tuple(None if one is None else _Refusal.apply(one.detach().requires_grad_()) for one in found)  # type: ignore[no-untyped-call]

    return refuse_second_derivative


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError(
            "trying to differentiate twice: kernels of ticketry have first derivatives alone (a penalty on gradients,"
            " or a product with the Hessian, needs the model itself, without them)"
        )


_MARK = "_ticketry_masked"


def mark_masked(gradient: Tensor, mask: Tensor) -> None:
    """Record in the tensor `gradient` that it is 0 wherever `mask` is False."""
    setattr(gradient, _MARK, (mask, gradient._version))


def is_masked(gradient: Tensor, mask: Tensor) -> bool:
    """Return whether `mark_masked` marked the gradient for this mask, and the gradient was not changed since."""
    marked = getattr(gradient, _MARK, None)
    return marked is not None and marked[0] is mask and marked[1] == gradient._version
