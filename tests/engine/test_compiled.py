"""Compiled models against the models they were made of, in double precision."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import ticketry as tk
from arenas import targets
from engine.models import assert_exact, in_layout
from ticketry.errors import EngineError
from ticketry_engine.capture import capture
from ticketry_engine.compiled import Compiled


class Small(nn.Module):
    """Convolutions with a residual, a stride and a pool: what regions are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.one = nn.Conv2d(12, 12, 3, padding=1)
        self.down = nn.Conv2d(12, 20, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.one(x)).relu()
        x = self.pool(self.down(x).relu())
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module", autouse=True)
def _cores() -> Iterator[None]:
    """As many as the tests have threads, on every machine."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ticketry_engine.compiled.count_cores", lambda: 8)
        yield


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    model = Small()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def mask(model):
    return tk.prune(model, density=0.3)


@pytest.fixture(scope="module")
def fast(model, mask):
    return tk.compile(model, mask, X, threads=1)


X = torch.randn(2, 3, 10, 10)


def expected(model: nn.Module, mask: tk.Mask, x: torch.Tensor) -> torch.Tensor:
    exact = copy.deepcopy(model)
    mask.apply_(exact)
    with torch.no_grad():
        return exact.double()(x.double())


def close(made: torch.Tensor, wanted: torch.Tensor, bound: float = 1e-5) -> None:
    assert made.shape == wanted.shape
    assert made.dtype == torch.float32
    assert float((made.double() - wanted).abs().max() / wanted.abs().max()) < bound


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("layout", ["planes", "pixels"])
def test_outputs_equal_the_masked_model_for_any_batch_strides_and_threads(model, mask, layout, target):
    for threads, batches in ((1, (1, 17)), (3, (2, 33))):
        fast = in_layout(tk.compile(model, mask, X, threads=threads, target=target), layout)
        for batch in batches:
            x = torch.randn(batch, 3, 10, 10)
            wanted = expected(model, mask, x)
            for given in (x, x.to(memory_format=torch.channels_last), x.repeat_interleave(2, 3)[..., ::2]):
                close(fast(given), wanted)
        assert fast(x[:0]).shape == (0, 5)
        assert {plan.layout for plan in fast._natives[0].programs} == {layout}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            close(fast(x), wanted)


@pytest.mark.parametrize("layout", ["planes", "pixels"])
def test_channels_last_is_read_without_a_copy(model, mask, layout, monkeypatch):
    fast = in_layout(tk.compile(model, mask, X, threads=1), layout)
    (native,) = fast._natives
    x = torch.randn(5, 3, 10, 10)
    last = x.to(memory_format=torch.channels_last)
    wanted = fast(x)
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "contiguous", None, raising=False)
        assert torch.equal(fast(last), wanted)
    assert {plan.last for plan in native.programs} == {(), (0,)}
    again = in_layout(tk.compile(model, mask, X, threads=1), layout)  # from kept plans
    assert torch.equal(again(last), wanted)
    fast.tune(last)
    assert native.choose_plan(5, 1, (0,)).last == (0,)
    close(fast(last), expected(model, mask, x))


@pytest.mark.parametrize("shape", [(2, 1, 4, 6), (2, 6, 1, 1), (3, 6, 1, 4)])
def test_channels_last_of_sizes_of_one(shape):
    model, x = nn.Conv2d(shape[1], 5, 1), torch.randn(shape).to(memory_format=torch.channels_last)
    assert_exact(tk.compile(model, None, x, threads=1), model, x, rtol=1e-5)


def test_everything_of_a_convolutional_network_runs_in_the_engine(fast):
    assert not fast.reasons
    layers = {layer.name: layer for layer in fast.profile(torch.randn(3, 3, 10, 10))}
    assert {"stem", "one", "down", "head"} <= set(layers)
    assert {layer.where for layer in layers.values()} == {"engine"}
    assert sum(layer.share for layer in layers.values()) == pytest.approx(1)
    assert 0 < layers["one"].density < 1
    assert "one" in str(fast)


def test_random_numbers_are_left_as_they_were(model, mask):
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    tk.compile(model, mask, X)
    assert torch.equal(torch.rand(4), wanted)


def test_it_is_for_inference_and_says_so(fast):
    with pytest.raises(EngineError, match="inference"):
        fast.train()
    assert fast.eval() is fast
    assert not fast.training
    x = torch.randn(2, 3, 10, 10, requires_grad=True)
    assert not fast(x).requires_grad
    assert fast.state_dict() == {}
    assert list(fast.parameters()) == []
    for dtype in (torch.half, torch.double, torch.bfloat16):
        with pytest.raises(EngineError, match="float32"):
            fast.to(dtype)
    for wrong in ((x[..., :9],), (x.double(),), (x[0],), ()):
        with pytest.raises(EngineError):
            fast(*wrong)


def test_copies_and_pickles_compute_the_same(fast, tmp_path):
    x = torch.randn(3, 3, 10, 10)
    wanted = fast(x)
    assert torch.equal(copy.deepcopy(fast)(x), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(fast))(x), wanted)
    path = fast.save(tmp_path / "model.tk")
    assert torch.equal(tk.engine.load(path, threads=1)(x), wanted)


def test_no_more_threads_than_cores(model, mask, monkeypatch):
    fast = tk.compile(model, mask, X, threads=64)
    x = torch.randn(3, 3, 10, 10)
    for count in (1, 2):
        monkeypatch.setattr("ticketry_engine.compiled.count_cores", lambda count=count: count)
        close(fast(x), expected(model, mask, x))
    (native,) = fast._natives
    taken = {threads for program in native.programs.values() for _, threads in program._free}
    assert taken == {1, 2}


def test_threads_end_with_the_module(model, mask):
    def engines() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "ticketry-engine"}

    before = engines()
    fast = tk.compile(model, mask, X, threads=3)
    fast(torch.randn(9, 3, 10, 10))
    ours = engines() - before
    assert len(ours) == 2
    del fast
    gc.collect()
    for thread in ours:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in ours)


def test_tuning_keeps_the_fastest_plan_and_the_numbers(model, mask):
    x = torch.randn(9, 3, 10, 10)
    fast = tk.compile(model, mask, x, threads=2, tune=True)
    (native,) = fast._natives
    seconds = native.tune([x], 2)
    assert {plan.layout for plan in seconds} == {"planes", "pixels"}
    assert native.choose_plan(9, 2) == min(seconds, key=seconds.get)
    close(fast(x), expected(model, mask, x))


def test_print_says_what_was_measured_beside_eager(model, mask):
    assert "Not timed beside eager torch" in str(Compiled(capture(model, mask, X)))
    for tune in (False, True):
        said = str(tk.compile(model, mask, X, threads=1, tune=tune)).splitlines()[-1]
        found = re.fullmatch(
            r"On the example inputs (\S+) times (as fast as|SLOWER than) eager torch: (\S+) ms on 1 thread,"
            r" (\S+) ms on \d+" + ("" if tune else r" \(at a glance: .*\)"),
            said,
        )
        assert found, said
        ours, theirs = float(found[3]), float(found[4])
        assert (found[2] == "as fast as") == (ours <= theirs) or ours == theirs


def test_several_python_threads_call_one_module(model, mask):
    fast = tk.compile(model, mask, X, threads=2)
    inputs = [torch.randn(batch, 3, 10, 10) for batch in (1, 5, 16, 33)]
    wanted = [expected(model, mask, x) for x in inputs]

    def call(x: torch.Tensor, exact: torch.Tensor) -> None:
        for _ in range(20):
            close(fast(x), exact)

    with ThreadPoolExecutor(len(inputs)) as workers:
        for done in [workers.submit(call, *pair) for pair in zip(inputs, wanted, strict=True)]:
            done.result()
