"""Layers in bfloat16 by tiles (AMX): groups of sixteen rows against float64, and which layers are computed so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from engine.training.test_bfloat16 import check_layer, no_worse
from engine.training.test_region_step import Residual, library
from ticketry_engine.kernels.target import target
from ticketry_engine.kernels.training import tiled
from ticketry_engine.kernels.training.layout import Batch
from ticketry_engine.kernels.training.tile_spread import tables
from ticketry_engine.training.region_step import RegionStep

pytest.importorskip("llvmlite")

needs_tiles = pytest.mark.skipif(not target().tiles, reason="the processor has no tiles (AMX), or may not use them")


def by_sixteen(rng: np.random.Generator, shape: tuple[int, ...], density: float) -> Any:
    return np.repeat(rng.random((shape[0] // 16, *shape[1:])) < density, 16, axis=0)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which operations are made by tiles."""
    found: list[str] = []

    def watched(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any) -> Any:
            found.append(name)
            return make(*args)

        return made

    for name in ("sums", "spread", "products"):
        monkeypatch.setattr(tiled, name, watched(name, getattr(tiled, name)))
    return found


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
def test_a_layer(
    called: list[str],
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    groups: int,
    pixels: int,
    images: int,
    density: float,
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, 1, groups)
    kept = by_sixteen(np.random.default_rng(1), tuple(conv.weight.shape), density)
    check_layer(conv, kept, torch.randn(images, inputs, pixels, pixels))
    assert set(called) == {"sums", "spread", "products"}


@needs_tiles
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_layer(data: st.DataObject) -> None:
    draw = data.draw
    groups = draw(st.sampled_from([1, 1, 2]))
    inputs, outputs = groups * draw(st.integers(1, 40)), groups * 16 * draw(st.integers(1, 3))
    size = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride, dilation = (draw(st.tuples(st.integers(1, 2), st.integers(1, 2))) for _ in range(2))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, size, padding, strict=True)]
    height, width = (low + draw(st.integers(0, 9)) for low in least)
    conv = nn.Conv2d(inputs, outputs, size, stride, padding, dilation, groups, draw(st.booleans()))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kept = by_sixteen(rng, tuple(conv.weight.shape), draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])))
    check_layer(conv, kept, torch.randn(draw(st.sampled_from([1, 32, 70])), inputs, height, width))


@needs_tiles
def test_gradients_that_are_added_to_others(called: list[str]) -> None:
    """Values that several layers read, also with a stride: what is there is part of the sums."""
    torch.manual_seed(3)
    model, rng = Residual(32), np.random.default_rng(1)
    kept = {name: by_sixteen(rng, tuple(model.get_submodule(name).weight.shape), 0.4) for name in "ade"}
    with torch.no_grad():
        for name, mask in kept.items():
            model.get_submodule(name).weight.mul_(torch.from_numpy(mask))
    half, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    step = RegionStep(model.region, dict(model.named_modules()), kept, library("host"), half=True)
    x = torch.randn(45, 3, 10, 8)
    gradient = torch.randn(45, 32, 1, 1).bfloat16()
    mine = x.clone().requires_grad_()
    step([mine])[0].backward(gradient)
    theirs = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        half(theirs).backward(gradient)
    truth = x.double().requires_grad_()
    exact(truth).backward(gradient.double())
    assert {"sums", "spread", "products"} == set(called)

    def gradients(of: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
        found = {
            name: parameter.grad * torch.from_numpy(kept[name[0]]) if name[0] in kept else parameter.grad
            for name, parameter in of.named_parameters()
            if parameter.grad is not None
        }
        assert inputs.grad is not None
        return {**found, "x": inputs.grad}

    no_worse(gradients(model, mine), gradients(half, theirs), gradients(exact, truth), more=1.5)


@needs_tiles
@pytest.mark.parametrize("threads", [2, 3])
def test_several_threads_give_what_one_gives(threads: int) -> None:
    """But for the order in which their gradients of weights are added up."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
    rng = np.random.default_rng(0)
    mask = tk.Mask(
        {f"{n}.weight": torch.from_numpy(by_sixteen(rng, tuple(model[n].weight.shape), 0.3)) for n in (0, 2)}
    )
    x, found = torch.randn(96, 3, 8, 8), []
    before = torch.get_num_threads()
    for count in (1, threads):
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
    half, full = (Batch.of(8, (4, 4), 1, 1, item=item) for item in (2, 4))
    rng = np.random.default_rng(0)
    kept = by_sixteen(rng, (48, 40), 0.3).astype(np.int64)
    assert [rows.tolist() for rows in tiled.row_sets(kept, 1, half, able)] == [
        list(range(first, first + 16)) for first in (0, 16, 32)
    ]
    assert tiled.row_sets(kept, 1, full, able) == []  # float32
    assert tiled.row_sets(kept, 1, half, replace(here, tiles=False)) == []
    assert tiled.row_sets(np.repeat(kept[:6], 8, axis=0), 1, half, able) != []  # eight and eight are alike here
    assert tiled.row_sets((rng.random((48, 40)) < 0.3).astype(np.int64), 1, half, able) == []
    shuffled = kept[rng.permutation(48)]
    assert sorted(int(row) for rows in tiled.row_sets(shuffled, 1, half, able) for row in rows) == list(range(48))
    for rows in tiled.row_sets(shuffled, 1, half, able):
        assert len({shuffled[row].tobytes() for row in rows}) == 1


def test_blocks_have_each_weight_once() -> None:
    """Of a phase with two taps: sets and taps in turn, sixteen inputs a block."""
    rng = np.random.default_rng(0)
    kept = by_sixteen(rng, (32, 20, 2), 0.9)
    places = np.where(kept, 1 + np.arange(kept.size).reshape(kept.shape), 0)
    sets = [np.arange(16), np.arange(16, 32)]
    made = tables(places[None], 100 * np.arange(32), np.array([0, 64]), sets)
    assert sorted(made.weights[made.weights > 0].tolist()) == sorted(places[places > 0].tolist())
    for number, (of, shift, count, first, fresh, half) in enumerate(made.blocks.tolist()):
        block = made.weights.reshape(-1, 16, 16)[number]
        rows, tap = sets[of // 64], shift // 64
        assert (block[:count] == places[rows][:, made.inputs[first : first + count], tap].T).all()
        assert not block[count:].any()
        before = made.blocks[number - 1] if number else None
        assert fresh == (before is None or (int(before[0]), int(before[1])) != (of, shift))
        assert before is None or (half != int(before[5])) == bool(fresh)
