"""Training in bfloat16, also by tiles (AMX): kernels against float64 of the same numbers, networks beside autocast."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from engine.training.regions import layer, max_pool, region
from engine.training.test_region_step import Residual, convolutions, library
from engine.training.test_sparse_training import MODELS, data, resnet
from samples import sample
from ticketry.errors import EngineError, UsageError
from ticketry_engine.kernels.target import target
from ticketry_engine.kernels.training import amx, convolution
from ticketry_engine.kernels.training.amx import build_spread_tables
from ticketry_engine.kernels.training.layer import Batch
from ticketry_engine.training.region_step import RegionStep

pytest.importorskip("llvmlite")

needs_bfloat16 = pytest.mark.skipif(not target().bf16, reason="the processor does not multiply bfloat16")


def rounded(tensor: Tensor) -> Tensor:
    """The nearest bfloat16, as float64."""
    return tensor.detach().bfloat16().double()


def near(found: Tensor | None, exact: Tensor | None, what: str, *, roundings: int) -> None:
    """As near as so many roundings to bfloat16 of each number, and sums in float32, allow."""
    assert found is not None, what
    assert exact is not None, what
    found, exact = found.detach().double(), exact.detach().double()
    assert found.shape == exact.shape, what
    scale = float(exact.abs().max()) if exact.numel() else 0.0
    assert bool(((found - exact).abs() <= roundings * exact.abs() / 256 + 1e-4 * scale + 1e-7).all()), what


def check_layer(conv: nn.Conv2d, kept: Any, x: Tensor) -> None:
    """Outputs and gradients of a layer against those of the same numbers in float64."""
    with torch.no_grad():
        conv.weight.mul_(torch.from_numpy(kept))
    model = nn.Sequential(conv)
    whole = region(model, layer("x", "y", "0", conv))
    step = RegionStep(whole, dict(model.named_modules()), {"0": kept}, library("host"), half=True)
    mine, theirs = x.clone().requires_grad_(), rounded(x).requires_grad_()
    (y,) = step([mine])
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert y.dtype == torch.bfloat16
    y.backward(gradient)
    twin = copy.deepcopy(conv).double()
    with torch.no_grad():
        twin.weight.copy_(rounded(conv.weight))
    truth = twin(theirs)
    truth.backward(gradient.double())
    near(y, truth, "output", roundings=1)
    assert mine.grad is not None
    assert mine.grad.dtype == torch.float32
    # With a stride that leaves pixels out, what is there is rounded, then added to.
    near(mine.grad, theirs.grad, "gradient of the input", roundings=1 if conv.stride == (1, 1) else 4)
    assert conv.weight.grad is not None
    assert twin.weight.grad is not None
    near(conv.weight.grad, twin.weight.grad * torch.from_numpy(kept), "gradient of the weight", roundings=0)
    assert not conv.weight.grad[torch.from_numpy(~kept)].any()
    if conv.bias is not None:
        assert twin.bias is not None
        near(conv.bias.grad, twin.bias.grad, "gradient of the bias", roundings=0)


@needs_bfloat16
@given(convolutions((1, 4, 5, 6, 16), (1, 5, 32, 70)))
def test_any_layer_of_single_weights_or_of_groups(drawn: tuple) -> None:
    check_layer(*drawn)


@needs_bfloat16
@pytest.mark.parametrize(("inputs", "outputs", "images"), [(70, 33, 20), (1, 1, 1), (300, 12, 128)])
def test_linear(inputs: int, outputs: int, images: int) -> None:
    """As a convolution over one pixel."""
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, 1)
    check_layer(conv, np.random.default_rng(0).random(conv.weight.shape) < 0.2, torch.randn(images, inputs, 1, 1))


TILED = {"TileSums", "TileSpread", "TileProducts"}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels on tiles that are used."""
    found: list[str] = []

    def watched(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any) -> Any:
            found.append(name)
            return make(*args)

        return made

    for name in sorted(TILED):
        monkeypatch.setattr(amx, name, watched(name, getattr(amx, name)))
    return found


def error(found: Tensor | None, exact: Tensor) -> float:
    """The norm of the difference / that of the truth."""
    assert found is not None
    exact = exact.detach().double()
    return float((found.detach().double() - exact).norm() / exact.norm().clamp_min(1e-12))


def no_worse(mine: dict[str, Tensor], theirs: dict[str, Tensor], exact: dict[str, Tensor], more: float) -> None:
    """Errors beside autocast's. Of a few numbers chance has the word: so of each at most a few times theirs."""
    errors = {name: (error(mine[name], one), error(theirs[name], one)) for name, one in exact.items()}
    for name, (one, other) in errors.items():
        assert one <= 3 * other + 0.01, (name, one, other)
    ours, torchs = (float(np.median([pair[side] for pair in errors.values()])) for side in range(2))
    assert ours <= more * torchs, (ours, torchs)


@needs_bfloat16
@pytest.mark.parametrize("rows", [1, 16])
def test_everything_that_regions_know(called: list[str], rows: int) -> None:
    """Norms, sums, pools, and values that several layers read. The last block of 45 images is not full."""
    torch.manual_seed(3)
    model, rng = Residual(8 if rows == 1 else 32), np.random.default_rng(1)
    shapes = {name: model.get_submodule(name).weight.shape for name in "ade"}
    kept = {
        name: np.repeat(rng.random((shape[0] // rows, *shape[1:])) < 0.4, rows, axis=0)
        for name, shape in shapes.items()
    }
    with torch.no_grad():
        for name, mask in kept.items():
            model.get_submodule(name).weight.mul_(torch.from_numpy(mask))
    half, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    step = RegionStep(model.region, dict(model.named_modules()), kept, library("host"), half=True)
    x = 1 + torch.randn(45, 3, 10, 8)
    found: list[dict[str, Tensor]] = []
    for kind in (model, half, exact):
        given = (x.double() if kind is exact else x.clone()).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind is half):
            y = step([given])[0] if kind is model else kind(given)
        gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
        y.backward(gradient.to(y.dtype))
        named = {name: one.grad for name, one in kind.named_parameters()}
        masks = {f"{name}.weight": torch.from_numpy(mask) for name, mask in kept.items()}
        named = {name: one * masks[name] if name in masks else one for name, one in named.items() if one is not None}
        found.append({"output": y.detach(), "input": given.grad, **named, **dict(kind.named_buffers())})
    no_worse(*found, more=1.25 if rows == 1 else 1.5)
    assert set(called) == (TILED if rows == 16 and target().tiles else set())


@needs_bfloat16
def test_a_max_pool_whose_windows_overlap() -> None:
    x = torch.randint(-3, 4, (40, 3, 9, 7)).float()
    pool = region(nn.Module(), max_pool("x", "y", (3, 3), (2, 2), (1, 1)))
    step = RegionStep(pool, {}, {}, library("host"), half=True)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    (y,) = step([mine])
    expected = F.max_pool2d(theirs, 3, 2, 1)
    assert torch.equal(y.float(), expected)
    y.sum().backward()
    expected.sum().backward()
    assert torch.equal(mine.grad, theirs.grad)  # type: ignore[arg-type]


def steps(model: nn.Module, x: Tensor, y: Tensor, count: int, *, cast: bool = True) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9, weight_decay=1e-3)
    found = []
    for _ in range(count):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@needs_bfloat16
@pytest.mark.parametrize("name", sample([name for name in MODELS if name != "lenet-300-100"], ["resnet"]))
def test_thirty_steps_as_under_autocast(name: str) -> None:
    """As far from float32 as autocast is, and pruned weights exactly 0."""
    build: Callable[[], nn.Module]
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model = build().train()
    twins = [copy.deepcopy(model) for _ in range(2)]
    mask = tk.prune(model, density=0.2)
    x, y = data(shape, 64)
    fast = tk.sparse_training(model, mask, x, precision="bf16")
    assert "in bfloat16" in repr(fast)
    found = steps(fast, x, y, 30)
    autocast, plain = [], []
    for twin, made, cast in ((twins[0], autocast, True), (twins[1], plain, False)):
        with tk.hold(twin, mask):
            made += steps(twin, x, y, 30, cast=cast)
    far = max(abs(a - b) for a, b in zip(autocast, plain, strict=True))
    assert 0 < max(abs(a - b) for a, b in zip(found, plain, strict=True)) <= max(2 * far, 0.02)
    assert found[-1] < 0.75 * found[0]
    assert {layer.where for layer in fast.layers()} == {"engine"} or "faster dense" in repr(fast)
    for parameter, kept in zip(mask.parameters(model).values(), mask.values(), strict=True):
        assert parameter.dtype == torch.float32
        assert not parameter[~kept].any()


@needs_bfloat16
@pytest.mark.parametrize("density", [0.2, 0.1])
def test_gradients_beside_those_of_autocast(density: float) -> None:
    """Of a whole network against float64 under the mask: no larger an error than autocast's own."""
    torch.manual_seed(0)
    model = resnet(32).train()
    mask = tk.prune(model, density=density, distribution="layerwise")
    with torch.no_grad():
        for parameter, kept in zip(mask.parameters(model).values(), mask.values(), strict=True):
            parameter.mul_(kept)
    half, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    x, y = data((3, 16, 16), 64)
    fast = tk.sparse_training(model, mask, x, precision="bf16")
    found: list[dict[str, Tensor]] = []
    for kind, call in ((model, fast), (half, half), (exact, exact)):
        with torch.autocast("cpu", torch.bfloat16, enabled=kind is not exact):
            loss = F.cross_entropy(call(x.double() if kind is exact else x), y)
        loss.backward()
        named = {name: one.grad for name, one in kind.named_parameters() if one.grad is not None}
        found.append({name: one * mask[name] if name in mask else one for name, one in named.items()})
    no_worse(*found, more=1.1)


@needs_bfloat16
def test_the_same_bits_twice_with_packed_weights_and_a_mask_that_moves_and_nearly_in_several_threads() -> None:
    states, before = [], torch.get_num_threads()
    for threads, rows in ((1, True), (1, False), (3, True), (3, False)):
        torch.set_num_threads(threads)
        try:
            torch.manual_seed(0)
            model = resnet()
            x, y = data((3, 16, 16), 40)
            fast = tk.sparse_training(model, tk.prune(model, density=0.2, score="random"), x, precision="bf16")
            parameters = fast.kept_parameters() if rows else list(fast.parameters())
            optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)
            for density in (0.2, 0.1, 0.3):
                fast.update(tk.prune(model, density=density, score="random"))
                optimizer.zero_grad()
                F.cross_entropy(fast(x), y).backward()
                optimizer.step()
        finally:
            torch.set_num_threads(before)
        states.append(model.state_dict())
    for name, one in states[0].items():
        assert torch.equal(one, states[1][name])
        assert torch.equal(states[2][name], states[3][name])
        torch.testing.assert_close(one, states[2][name], rtol=0.02, atol=0.02)


class Mixed(nn.Module):
    """Regions with a layer between them that kernels do not know."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.c(self.b(self.a(x))))
        return self.head(x.mean((2, 3)))

    def read(self, x: Tensor) -> Tensor:
        return self.forward(x) * 2


@needs_bfloat16
def test_what_autocast_does_around_kernels() -> None:
    """Calls compute as under autocast, whether it is there or not; outside of it they give float32."""
    torch.manual_seed(0)
    model = Mixed().train()
    mask = tk.prune(model, density=0.3, distribution="layerwise", scope=tk.scope(model, spare=["head"]))
    x = torch.randn(40, 3, 8, 8)
    fast = tk.sparse_training(model, mask, x, precision="bf16")
    with torch.autocast("cpu", torch.bfloat16):
        inside, expected = fast(x), model(x)
    outside = fast(x)
    assert (inside.dtype, outside.dtype, expected.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert torch.equal(inside.float(), outside)
    torch.testing.assert_close(inside, expected, rtol=0.05, atol=0.02)
    outside.sum().backward()
    assert all(one.grad is not None and one.grad.dtype == torch.float32 for one in model.parameters())
    with fast.running():
        assert torch.equal(model.read(x), 2 * outside)
    assert torch.equal(fast.eval()(x), model(x))  # the model itself, in float32


@needs_bfloat16
def test_layers_over_tokens_run_in_torch() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)).train()
    mask = tk.prune(model, density=0.1, distribution="layerwise")
    x = torch.randn(4, 32, 64)
    fast = tk.sparse_training(model, mask, x, precision="bf16")
    fast(x).sum().backward()
    assert {(layer.where, layer.why) for layer in fast.layers()} == {("torch", "over tokens: no kernels in bfloat16")}


def test_clear_errors() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).train()
    mask, x = tk.prune(model, density=0.2), torch.randn(2, 3, 8, 8)
    with pytest.raises(UsageError, match="precision 'fp16' is not known: choose from fp32, bf16"):
        tk.sparse_training(model, mask, x, precision="fp16")
    with pytest.raises(EngineError, match=r"do not multiply bfloat16.*AVX512-BF16.*precision='fp32'"):
        tk.sparse_training(model, mask, x, target="generic", precision="bf16")
    fast = tk.sparse_training(model, mask, x)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(EngineError, match=r"bfloat16.*precision='bf16'"):
        fast(x.bfloat16())


# -- tiles (AMX): groups of sixteen rows -------------------------------------------------------------------------------

needs_tiles = pytest.mark.skipif(not target().tiles, reason="the processor has no tiles (AMX), or may not use them")


def by_sixteen(rng: np.random.Generator, shape: tuple[int, ...], density: float) -> Any:
    return np.repeat(rng.random((shape[0] // 16, *shape[1:])) < density, 16, axis=0)


@needs_tiles
@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "stride", "groups", "pixels", "images", "density"),
    [
        (20, 32, 3, 1, 1, 9, 40, 0.2),
        (33, 48, 3, 2, 1, 11, 70, 0.3),  # four phases of the stride
        (64, 128, 1, 2, 1, 8, 33, 0.2),  # pixels that nothing reads
        (32, 64, 3, 1, 2, 6, 32, 0.5),  # conv groups
        (24, 16, 3, 1, 1, 5, 32, 1.0),  # one set that keeps all
        (128, 64, 3, 1, 1, 4, 128, 0.002),  # sets that keep nothing
        (300, 16, 1, 1, 1, 1, 64, 0.5),  # a linear layer
        (512, 512, 3, 1, 1, 4, 64, 0.1),
    ],
)
def test_a_layer_by_tiles(called, inputs, outputs, kernel, stride, groups, pixels, images, density) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, 1, groups)
    kept = by_sixteen(np.random.default_rng(1), tuple(conv.weight.shape), density)
    check_layer(conv, kept, torch.randn(images, inputs, pixels, pixels))
    assert set(called) == TILED


@needs_tiles
@given(convolutions((16,), (1, 32, 70)))
def test_any_layer_by_tiles(drawn: tuple) -> None:
    check_layer(*drawn)


@needs_tiles
def test_several_threads_give_what_one_gives() -> None:
    """But for the order in which their gradients of weights are added up."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
    rng = np.random.default_rng(0)
    mask = tk.Mask(
        {f"{n}.weight": torch.from_numpy(by_sixteen(rng, tuple(model[n].weight.shape), 0.3)) for n in (0, 2)}
    )
    x, found = torch.randn(96, 3, 8, 8), []
    before = torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        try:
            one = copy.deepcopy(model)
            fast = tk.sparse_training(one, mask, x, precision="bf16")
            with torch.autocast("cpu", torch.bfloat16):
                out = fast(x)
                F.mse_loss(out.float(), torch.zeros_like(out, dtype=torch.float32)).backward()
            found.append((out, [parameter.grad for parameter in one.parameters()]))
        finally:
            torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    for mine, theirs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_which_layers_have_sets_of_sixteen_rows() -> None:
    """Whatever the processor: it is a matter of the mask."""
    here = target()
    if here.lanes != 16:
        pytest.skip("planes are laid out for AVX-512")
    able = replace(here, tiles=True)
    half, full = (Batch.build(8, (4, 4), 1, 1, item=item) for item in (2, 4))
    rng = np.random.default_rng(0)
    kept = by_sixteen(rng, (48, 40), 0.3).astype(np.int64)
    assert [rows.tolist() for rows in convolution.find_tile_row_sets(kept, 1, half, able)] == [
        list(range(first, first + 16)) for first in (0, 16, 32)
    ]
    assert convolution.find_tile_row_sets(kept, 1, full, able) == []  # float32
    assert convolution.find_tile_row_sets(kept, 1, half, replace(here, tiles=False)) == []
    assert (
        convolution.find_tile_row_sets(np.repeat(kept[:6], 8, axis=0), 1, half, able) != []
    )  # eight and eight are alike here
    assert convolution.find_tile_row_sets((rng.random((48, 40)) < 0.3).astype(np.int64), 1, half, able) == []
    shuffled = kept[rng.permutation(48)]
    assert sorted(int(row) for rows in convolution.find_tile_row_sets(shuffled, 1, half, able) for row in rows) == list(
        range(48)
    )
    for rows in convolution.find_tile_row_sets(shuffled, 1, half, able):
        assert len({shuffled[row].tobytes() for row in rows}) == 1


def test_blocks_have_each_weight_once() -> None:
    """Of a phase with two taps: sets and taps in turn, sixteen inputs a block."""
    rng = np.random.default_rng(0)
    kept = by_sixteen(rng, (32, 20, 2), 0.9)
    places = np.where(kept, 1 + np.arange(kept.size).reshape(kept.shape), 0)
    sets = [np.arange(16), np.arange(16, 32)]
    made = build_spread_tables(places[None], 100 * np.arange(32), np.array([0, 64]), sets)
    assert sorted(made.weights[made.weights > 0].tolist()) == sorted(places[places > 0].tolist())
    for number, (of, shift, count, first, fresh, half) in enumerate(made.blocks.tolist()):
        block = made.weights.reshape(-1, 16, 16)[number]
        rows, tap = sets[of // 64], shift // 64
        assert (block[:count] == places[rows][:, made.inputs[first : first + count], tap].T).all()
        assert not block[count:].any()
        before = made.blocks[number - 1] if number else None
        assert fresh == (before is None or (int(before[0]), int(before[1])) != (of, shift))
        assert before is None or (half != int(before[5])) == bool(fresh)
