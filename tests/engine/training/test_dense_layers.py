"""Convolutions with all their weights, or nearly all, take part in regions where kernels do them as fast as torch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ticketry as tk
from engine.training.test_sparse_training import data, resnet
from ticketry_engine.kernels.target import target
from ticketry_engine.training.capture import LIMITS, SHORT
from ticketry_engine.training.sparse_training import ALL_WEIGHTS

FAST = target().registers >= 32
"""Whether kernels of this processor are fast enough."""


def where(fast: nn.Module) -> set[str]:
    return {layer.where for layer in fast.layers() if layer.kind == "conv2d"}  # type: ignore[operator]


@pytest.mark.skipif(not FAST, reason="few registers: dense convolutions run in torch")
@pytest.mark.parametrize("density", [None, 0.8])
def test_gradients_are_those_of_the_masked_model(density: float | None) -> None:
    torch.manual_seed(0)
    model = resnet().train()
    twin = copy.deepcopy(model).double()
    mask = None if density is None else tk.prune(model, density=density, score="random")
    x, y = data((3, 16, 16), 31)
    fast = tk.sparse_training(model, mask, x)
    if mask is not None:
        mask.apply_(twin)
    loss, expected = F.cross_entropy(fast(x), y), F.cross_entropy(twin(x.double()), y)
    assert where(fast) == {"engine"}
    loss.backward()
    expected.backward()
    assert abs(float(loss) - float(expected)) <= 1e-5
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        truth = theirs.grad
        assert truth is not None
        assert mine.grad is not None
        if mask is not None and name in mask:
            truth = truth * mask[name]
            assert not mine.grad[~mask[name]].any(), name
        assert float((mine.grad - truth).abs().max()) <= 1e-4 * max(float(truth.abs().max()), 1e-3), name


@pytest.mark.skipif(target().name not in LIMITS, reason="the limit of density is that of all processors")
@pytest.mark.parametrize(
    ("images", "density", "found"), [(32, 0.65, "sums, products"), (32, 0.75, ALL_WEIGHTS), (8, 0.65, "")]
)
def test_the_limit_of_density_is_higher_where_blocks_are_full(images: int, density: float, found: str) -> None:
    model = resnet().train()
    names = [name for name, one in model.named_parameters() if one.dim() == 4 and one[0].numel() > SHORT]
    mask = tk.Mask({name: torch.rand(model.get_parameter(name).shape) < density for name in names})
    fast = tk.sparse_training(model, mask, data((3, 16, 16), images)[0])
    assert {layer.kernel for layer in fast.layers() if f"{layer.name}.weight" in names} == {found}


def test_half_a_block_of_images_and_a_dense_convolution_or_two_run_in_torch() -> None:
    model = resnet().train()
    x, _ = data((3, 16, 16), 8)
    assert where(tk.sparse_training(model, None, x)) <= {"torch"}
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3)).train()
    fast = tk.sparse_training(model, None, torch.randn(32, 16, 9, 9))
    assert where(fast) == {"torch"}
    assert repr(fast).endswith("Nothing runs in kernels.")


@pytest.mark.skipif(not FAST, reason="few registers: dense convolutions run in torch")
def test_masks_come_and_go() -> None:
    torch.manual_seed(0)
    model = resnet().train()
    x, y = data((3, 16, 16))
    fast = tk.sparse_training(model, None, x)
    mask = tk.prune(model, density=0.6, score="random")
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.01, momentum=0.9)
    for held in (None, mask, None):
        fast.update(held)
        optimizer.zero_grad()
        F.cross_entropy(fast(x), y).backward()
        optimizer.step()
        pruned = [bool(model.get_parameter(name)[~kept].any()) for name, kept in mask.items()]
        assert any(pruned) == (held is None)
