"""Models compiled for bf16 against the models they were made of, in double precision."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn

import ticketry as tk
from engine.models import in_layout
from ticketry.core.synthetic_masks import synthetic
from ticketry.errors import EngineError
from ticketry_engine.kernels.target import target

needs_bf16 = pytest.mark.skipif(not target().bf16, reason="the processor multiplies no bfloat16")
BOUND = 3e-2
"""Of the outputs, relative: a bfloat16 has 8 bits, and there are several layers."""


class Residual(nn.Module):
    """Convolutions with a stride and a residual, a pool, a depthwise layer, a gate and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.one = nn.Conv2d(32, 32, 3, padding=1)
        self.each = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.down = nn.Conv2d(32, 48, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.gate = nn.Linear(48, 48)
        self.head = nn.Linear(48, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.one(x)).relu()
        x = nn.functional.silu(self.each(x))
        x = self.pool(self.down(x).relu())
        x = x * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None]
        return self.head(x.mean((2, 3)))


def plain() -> nn.Module:
    """As a VGG: convolutions, pools, and a linear layer on what is flattened."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(48, 31, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(31 * 4, 9)),
    )


class Tokens(nn.Module):
    """A block of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(32), nn.LayerNorm(32)
        self.all, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.wide, self.narrow = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = [part.unflatten(-1, (2, 16)).transpose(1, 2) for part in self.all(self.first(x)).chunk(3, -1)]
        mixed = nn.functional.scaled_dot_product_attention(*heads)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.narrow(nn.functional.gelu(self.wide(self.second(x))))


CASES = {"residual": (Residual, (3, 10, 10)), "plain": (plain, (3, 8, 8)), "tokens": (Tokens, (12, 32))}


def made(name: str, pattern: str = "groups:16") -> tuple[nn.Module, tuple[int, ...]]:
    """A model whose pruned weights are zero, and the shape of an example."""
    torch.manual_seed(0)
    kind, shape = CASES[name]
    model = kind().eval()
    return synthetic(model, pattern, 0.4).apply_(model), shape


def compiled(model: nn.Module, shape: tuple[int, ...], **options: object) -> tk.engine.Compiled:
    return tk.compile(model, None, torch.randn(2, *shape), threads=1, precision="bf16", **options)


def over_pixels(fast: tk.engine.Compiled) -> tk.engine.Compiled:
    return in_layout(fast, "pixels")


def error(result: torch.Tensor, model: nn.Module, x: torch.Tensor) -> float:
    assert result.dtype == torch.float32
    with torch.no_grad():
        wanted = copy.deepcopy(model).double()(x.double())
    assert result.shape == wanted.shape
    return float((result.double() - wanted).abs().max() / wanted.abs().max())


@needs_bf16
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pattern", ["groups:16", "groups:16:pairs", "groups:16:any", "unstructured"])
def test_outputs_are_those_of_the_model_but_for_rounding(name: str, pattern: str) -> None:
    model, shape = made(name, pattern)
    fast = over_pixels(compiled(model, shape))
    for batch in (1, 3, 8, 19):
        x = torch.randn(batch, *shape)
        found = error(fast(x), model, x)
        assert 1e-4 < found < BOUND, "in bf16, and no worse"
    assert {plan.precision for native in fast._natives for plan in native.programs} == {"bf16"}


@needs_bf16
@pytest.mark.parametrize("threads", [2, 3])
def test_threads(threads: int) -> None:
    model, shape = made("residual")
    one, several = (over_pixels(compiled(model, shape)) for _ in range(2))
    several.threads = threads
    for batch in (1, 2, 33):
        x = torch.randn(batch, *shape)
        assert torch.equal(one(x), several(x))


@needs_bf16
def test_what_runs_over_planes_stays_float32_and_says_so() -> None:
    model, shape = made("residual", "unstructured")
    fast = in_layout(compiled(model, shape), "planes")
    x = torch.randn(4, *shape)
    assert error(fast(x), model, x) < 1e-5
    why = {layer.name: layer.why for layer in fast.layers()}
    assert why["one"].startswith("fp32: ")
    assert "fp32: " in str(fast)
    grouped = over_pixels(compiled(*made("residual")))
    grouped(x)
    assert not any(layer.why for layer in grouped.layers())


@needs_bf16
@pytest.mark.parametrize(("density", "layout"), [(0.05, "planes"), (0.9, "pixels")])
def test_few_single_weights_stay_float32_and_many_run_as_if_dense(density: float, layout: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)).eval()
    synthetic(model, "unstructured", density).apply_(model)
    x = torch.randn(16, 64, 8, 8)
    fast = tk.compile(model, None, x, threads=1, precision="bf16")
    fast(x)
    assert {plan.layout for plan in fast._natives[0].programs} == {layout}


@needs_bf16
def test_tuning_tries_both() -> None:
    model, shape = made("plain")
    fast = compiled(model, shape)
    x = torch.randn(8, *shape)
    seconds = fast._natives[0].tune([x], 1)
    assert {(plan.layout, plan.precision) for plan in seconds} == {("planes", "fp32"), ("pixels", "bf16")}


@needs_bf16
def test_copies_files_and_pickles_keep_the_precision(tmp_path) -> None:
    model, shape = made("plain", "groups:16:pairs")
    fast = over_pixels(compiled(model, shape))
    x = torch.randn(3, *shape)
    wanted = fast(x)
    path = fast.save(tmp_path / "model.tk")
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), tk.engine.load(path, threads=1)):
        assert again.precision == "bf16"
        assert torch.equal(over_pixels(again)(x), wanted)
    exact = tk.engine.load(path, threads=1, precision="fp32")
    assert error(exact(x), model, x) < 1e-5, "the file's weights are not rounded"


@pytest.mark.slow
@needs_bf16
def test_kept_plans_are_of_one_precision(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path))
    model, shape = made("plain")
    x = torch.randn(8, *shape)
    results = {}
    for precision in ("bf16", "fp32", "bf16", "fp32"):
        fast = over_pixels(tk.compile(model, None, x, threads=1, precision=precision))
        results.setdefault(precision, []).append(fast(x))
    assert all(torch.equal(first, second) for first, second in results.values())
    assert not torch.equal(results["bf16"][0], results["fp32"][0])
    assert error(results["fp32"][0], model, x) < 1e-5


@needs_bf16
def test_weights_take_half_the_memory() -> None:
    model, shape = made("plain", "groups:16:pairs")
    x = torch.randn(8, *shape)
    sizes = []
    for precision in ("bf16", "fp32"):
        fast = over_pixels(tk.compile(model, None, x, threads=1, precision=precision))
        fast(x)
        tables = [arg for op in fast._natives[0].programs.popitem()[1].ops for arg in op.args if hasattr(arg, "nbytes")]
        sizes.append(max(table.nbytes for table in tables))
    assert sizes[0] < 0.6 * sizes[1]


def test_a_precision_that_there_is_not() -> None:
    model, shape = made("plain")
    with pytest.raises(EngineError, match="fp32 or bf16, not in 'fp16'"):
        tk.compile(model, None, torch.randn(2, *shape), precision="fp16")


def test_a_target_without_bf16_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("ticketry_engine.compiled.find_target", lambda name: dataclasses.replace(target(), bf16=False))
    model, shape = made("plain")
    with pytest.raises(EngineError, match=r"AVX512-BF16.*precision='fp32'"):
        compiled(model, shape)


@needs_bf16
def test_a_file_of_bf16_on_a_target_without(tmp_path) -> None:
    model, shape = made("plain")
    path = compiled(model, shape).save(tmp_path / "model.tk")
    with pytest.raises(EngineError, match=r"avx2.*precision='fp32'"):
        tk.engine.load(path, target="avx2")
    x = torch.randn(2, *shape)
    assert error(tk.engine.load(path, target="avx2", precision="fp32")(x), model, x) < 1e-5
