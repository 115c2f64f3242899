"""Tracing while other threads of the process call modules, or trace too."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import fx, nn

import ticketry as tk


class Waiting(nn.Module):
    """Says that it is being traced, and goes on when another thread has called a module of its own."""

    def __init__(self, reached: threading.Event, go_on: threading.Event) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3)
        self._events = reached, go_on

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x).relu()
        if isinstance(x, fx.Proxy):
            reached, go_on = self._events
            reached.set()
            assert go_on.wait(20)
        return self.second(y)

    def __deepcopy__(self, memo: object) -> Waiting:
        made = Waiting(*self._events)
        made.load_state_dict(self.state_dict())
        return made


def test_a_module_that_another_thread_calls_is_not_part_of_the_trace() -> None:
    reached, go_on = threading.Event(), threading.Event()
    torch.manual_seed(0)
    model, other, x = Waiting(reached, go_on), nn.Sequential(nn.Linear(5, 6), nn.ReLU()), torch.randn(16, 4, 9, 9)
    mask = tk.prune(model, 0.2)
    wanted = mask.apply_(Waiting(reached, go_on).train())
    given = torch.randn(3, 5)
    expected = other(given)
    with ThreadPoolExecutor(1) as pool:
        fast = pool.submit(lambda: tk.sparse_training(model, mask, x))
        assert reached.wait(20)
        found = other(given)  # torch.fx has changed nn.Module by now
        go_on.set()
        made = fast.result()
    assert torch.equal(found, expected)
    wanted.load_state_dict(model.state_dict())
    reached.clear()
    assert torch.allclose(made(x), wanted(x), atol=1e-5)
    assert "sums, products" in str(made)


def test_models_are_traced_and_compiled_in_several_threads_at_once() -> None:
    def one(seed: int) -> float:
        source = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 8 + seed, 3), nn.ReLU(), nn.Conv2d(8 + seed, 8, 3), nn.ReLU())
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=source) / 10
        mask, x = tk.prune(model, 0.3), torch.randn(16, 3, 12, 12, generator=source)
        mask.apply_(model)
        fast, still = tk.sparse_training(model, mask, x), tk.compile(model.eval(), mask, x, threads=1)
        expected = model(x)
        errors = [float((found(x) - expected).abs().max()) for found in (fast.train(), still)]
        assert "torch" not in {layer.where for layer in still.layers()}
        return max(errors)

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(one, range(4))) < 1e-5
    assert nn.Module.__call__.__name__ == nn.Sequential.__call__.__name__ == "_wrapped_call_impl"
