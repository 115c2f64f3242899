"""Random numbers and the thread count belong to the process: two of its threads do not mix theirs up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from ticketry.core.model_calls import call_in_evaluation
from ticketry.lab.training.precision import Arithmetic
from ticketry.lab.training.state import initial_state
from ticketry_engine.support.process_state import Turns, default_dtype, private_random_state

Hook = Callable[[], None]
"""What is called in the midst of some work."""


def interleaved(work: Callable[[Hook], Any], other: Callable[[Hook], object]) -> Any:
    """What `work` gives if it begins in the midst of `other`, in another thread, and that ends in its midst.

    Where one has to wait for the other to end, the other goes on after a while.
    """
    begun, inside = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        inside.wait(0.1)

    def second() -> None:
        inside.set()
        wait([ended], 10)

    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(other, first)
        assert begun.wait(10)
        return work(second)


def made(midst: Hook, seed: int = 0) -> dict[str, Tensor]:
    """The weights of two layers, of which the second is drawn some time after the first."""

    def build() -> nn.Module:
        first = nn.Linear(3, 4)
        midst()
        return nn.Sequential(first, nn.Linear(4, 5))

    return initial_state(SimpleNamespace(build=build), seed)  # type: ignore[arg-type]


class Stopping(nn.Sequential):
    """A network that calls a hook when it is called first."""

    def __init__(self, hook: Hook) -> None:
        with private_random_state():
            super().__init__(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        self.hooks = [hook]

    def forward(self, x: Tensor) -> Tensor:
        if self.hooks:
            self.hooks.pop()()
        return super().forward(x)


def pruned(midst: Hook) -> object:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    return tk.prune(Stopping(midst), density=0.5, score="snip", batches=[torch.ones(2, 3)], loss=loss)


def made_in_float64(midst: Hook) -> None:
    with default_dtype(torch.float64):
        midst()


OTHERS: dict[str, Callable[[Hook], object]] = {
    "made": lambda midst: made(midst, 1),
    "called": lambda midst: call_in_evaluation(Stopping(midst), torch.ones(2, 3)),
    "pruned": pruned,
    "made in float64": made_in_float64,
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_network_is_the_same_while_in_another_thread_one_is(other: Callable[[Hook], object]) -> None:
    alone = made(lambda: None)
    before = torch.get_rng_state()
    together = interleaved(made, other)
    assert all(torch.equal(together[name], tensor) for name, tensor in alone.items())
    assert torch.equal(torch.get_rng_state(), before)


def threads_inside(midst: Hook, threads: int = 2) -> int:
    """The process' count of threads, as a new one has it, in a training with so many."""
    with Arithmetic(threads=threads).active(), ThreadPoolExecutor(1) as fresh:
        midst()
        return fresh.submit(torch.get_num_threads).result()


def test_the_thread_count_stays_while_another_thread_trains() -> None:
    before = torch.get_num_threads()
    assert interleaved(threads_inside, lambda midst: threads_inside(midst, 3)) == 2
    assert torch.get_num_threads() == before


def test_a_block_may_lie_in_another_and_end_with_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="size"), private_random_state([]), private_random_state([]):
        torch.rand(3) @ torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    thread = threading.Thread(target=made, args=[lambda: None], daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "the lock was left"


def test_the_type_of_tensors_is_as_before_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="3 doubles"), default_dtype(torch.float64):
        raise RuntimeError("3 doubles" if torch.zeros(3).dtype == torch.float64 else "3 of another type")
    assert torch.zeros(3).dtype == torch.float32


def test_a_thread_knows_how_long_it_has_waited() -> None:
    turns, held = Turns(), threading.Event()

    def second() -> tuple[float, float]:
        held.wait(10)
        began = time.perf_counter()
        with turns:
            by_the_clock = time.perf_counter() - began
            with turns:  # again: at once
                return turns.waited, by_the_clock

    with ThreadPoolExecutor(1) as threads:
        with turns:
            waiting = threads.submit(second)
            held.set()
            time.sleep(0.2)
        waited, by_the_clock = waiting.result()
    assert waited == pytest.approx(by_the_clock, abs=0.05)
    assert waited > 0.15
    assert turns.waited == 0  # of this thread
