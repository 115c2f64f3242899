"""What compiled models read: every kind of tensor, arguments that share memory, and torch's modes and defaults."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import ticketry as tk
from engine.input_kinds import READ, REFUSED, SHAPE, Images, compiled
from ticketry.errors import EngineError, UsageError
from ticketry_engine.kernels.target import target

PROGRAMS = [
    ("images", "planes", "fp32"),
    *(
        pytest.param(model, layout, precision, marks=pytest.mark.slow)
        for model, layout, precision in (
            ("images", "pixels", "fp32"),
            ("images", "pixels", "bf16"),
            ("mixed", "planes", "fp32"),
            ("mixed", "pixels", "bf16"),
            ("torch", "planes", "fp32"),
        )
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "layout", "precision"), PROGRAMS)
def test_every_kind_of_tensor_is_read_or_refused(model: str, layout: str, precision: str) -> None:
    if precision == "bf16" and not target("host").bf16:
        pytest.skip("this processor multiplies no bfloat16")
    script = Path(__file__).with_name("input_kinds.py")
    done = subprocess.run(
        [sys.executable, str(script), model, layout, precision], capture_output=True, text=True, check=False
    )
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert done.returncode == 0, f"it ended with {done.returncode} at {done.stdout[-300:]} {done.stderr[-2000:]}"
    for threads in (1, 2):
        for kind in (*READ, *REFUSED):
            said = found[f"{threads} threads, {kind}"]
            assert said == "equal" if kind in READ else said.startswith("refused: the input 'x' "), f"{kind}: {said}"


@pytest.fixture(scope="module")
def images() -> tuple[nn.Module, nn.Module]:
    return compiled("images", "planes", "fp32", 1)


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["float64", "meta"])
def test_defaults_of_torch_do_not_change_what_is_made(images, change):
    model, fast = images
    x = torch.randn(SHAPE)
    with torch.no_grad():
        wanted = model(x)
    if change == "meta":
        with torch.device("meta"):
            found = fast(x)
    else:
        torch.set_default_dtype(torch.float64)
        try:
            found = fast(x)
        finally:
            torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert close(found, wanted)


def test_modes_without_memory_are_refused(images):
    from torch._subclasses import FakeTensorMode

    _, fast = images
    x = torch.randn(SHAPE)
    with FakeTensorMode(), pytest.raises(EngineError, match="mode of torch"):
        fast(x)
    with pytest.raises(EngineError, match=r"torch\.vmap"):
        torch.vmap(fast)(x[:, None])
    with pytest.raises(EngineError, match=r"torch\.func"):
        torch.func.grad(lambda given: fast(given).sum())(x)
    with pytest.raises(EngineError, match=r"mode of torch|torch\.func"):
        torch.func.grad(lambda other: fast(x).sum() * other)(torch.ones(()))
    with pytest.raises(EngineError, match="trace the model itself"):
        torch.jit.trace(fast, x)


def test_one_tensor_in_several_places_and_views_of_one_memory():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(8, 16), nn.Linear(8, 16)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.one(x) + self.other(y), y

    model = Two().eval()
    fast = tk.compile(model, None, (torch.randn(3, 8), torch.randn(3, 8)), threads=1)
    wide = torch.randn(4, 8)
    for x, y in ((wide, wide), (wide[1:], wide[:-1]), (wide[:2].flip(0), wide[:1].expand(2, 8)), (wide[:0], wide[:0])):
        with torch.no_grad():
            wanted = model(x, y)
        for found, expected in zip(fast(x, y), wanted, strict=True):
            assert close(found, expected)
    with pytest.raises(EngineError, match="examples"):
        fast(wide, wide[1:])


@pytest.mark.parametrize("kind", ["meta", "sparse", "freed", "fake", "wrapper", "zero tensor"])
def test_examples_are_checked_too(kind):
    with pytest.raises(EngineError, match="an example input"):
        tk.compile(Images().eval(), None, REFUSED[kind](torch.randn(SHAPE)))


def test_weights_without_memory_are_refused():
    with pytest.raises(UsageError, match="meta device"):
        tk.compile(nn.Linear(4, 4, device="meta"), None, torch.randn(2, 4))
    model = nn.Linear(4, 4)
    model.weight.untyped_storage().resize_(0)
    with pytest.raises(EngineError):
        tk.compile(model, None, torch.randn(2, 4))


class Pools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1, groups=4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.first(x)
        max_pool, avg_pool = nn.functional.max_pool2d, nn.functional.avg_pool2d
        return max_pool(x, 2), max_pool(x, 3, 2, 1), max_pool(x, 3, 1, 1), avg_pool(x, 2), avg_pool(x, 3, 2, 1)


@pytest.mark.parametrize("layout", ["planes", "pixels"])
def test_pools_pass_on_what_is_no_number(layout):
    model = Pools().eval()
    fast = tk.compile(model, None, torch.randn(SHAPE), threads=1)
    fast._natives[0].layout = layout
    for batch in (1, 16):
        for number in (torch.nan, torch.inf, -torch.inf):
            x = torch.randn(batch, *SHAPE[1:])
            x.view(batch, -1)[:, ::11] = number
            with torch.no_grad():
                wanted = model(x)
            for found, expected in zip(fast(x), wanted, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("layout", ["planes", "pixels"])
def test_numbers_of_one_call_are_gone_in_the_next(layout):
    """Working memory is used again: what is multiplied by the zeros at its edges has to be finite."""
    model, fast = compiled("mixed", layout, "fp32", 1)
    for number in (float("nan"), float("inf"), -float("inf"), 3e38):
        for batch in (3, 1, 5):
            fast(torch.full((8, *SHAPE[1:]), number))
            fast(torch.full((batch, *SHAPE[1:]), number))
            x = torch.randn(batch, *SHAPE[1:])
            with torch.no_grad():
                assert close(fast(x), model(x))


def test_inputs_that_another_thread_writes_to_end_nothing(images):
    _, fast = images
    x, stop = torch.randn(SHAPE), threading.Event()

    def write() -> None:
        while not stop.is_set():
            x.uniform_()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        made = [fast(x) for _ in range(200)]
    finally:
        stop.set()
        writer.join()
    assert all(torch.isfinite(one).all() for one in made)
