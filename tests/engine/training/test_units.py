"""Calls of a module in kernels: of other shapes than its graph was made with, in part in torch, in checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import ticketry as tk
from ticketry_engine.training.sparse_training import SparseTraining


class Strided(nn.Module):
    """Makes a sixteenth of an image's height and width; then something that depends on how much that is."""

    def __init__(self, end: Callable[[Tensor], Tensor], last: nn.Module) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, 4, 1), nn.Conv2d(16, 16, 3, 4, 1)
        self.end, self.last = end, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.end(self.two(F.silu(self.one(x)))))


def flat(x: Tensor) -> Tensor:
    return x.flatten(1)


def plus_its_mean(x: Tensor) -> Tensor:
    return x + F.adaptive_avg_pool2d(x, 1)


def trained(model: nn.Module, size: int, *, kept: bool = False) -> tuple[SparseTraining, nn.Module]:
    """In kernels, with a graph of images of this size, and a twin that is trained in torch."""
    mask = tk.prune(model, density=0.2, distribution="uniform")
    mask.apply_(model)
    twin = copy.deepcopy(model)
    tk.hold(twin, mask)
    fast = tk.sparse_training(model, mask, torch.randn(16, 3, size, size))
    assert any(layer.where == "engine" for layer in fast.layers())
    if kept:
        fast.kept_parameters()
    return fast, twin


def agree(fast: nn.Module, twin: nn.Module, x: Tensor) -> None:
    found, wanted = fast(x), twin(x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    for made in (found, wanted):
        made.square().mean().backward()
    for (name, one), other in zip(fast.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(
            one.grad, other.grad, rtol=1e-4, atol=1e-5, msg=lambda text, of=name: f"{of}: {text}"
        )


@pytest.mark.parametrize("last", [nn.Linear(16, 5), nn.BatchNorm1d(16)], ids=["linear", "norm"])
def test_pixels_that_were_one_are_not_taken_for_images_of_features(last: nn.Module) -> None:
    """Of images of 16 x 16 there are 16 features, of 32 x 32 there are 64, which the model's last layer refuses."""
    fast, twin = trained(Strided(flat, last), 16)
    agree(fast, twin, torch.randn(16, 3, 16, 16))
    with pytest.raises((RuntimeError, ValueError)) as of_torch:
        twin(torch.randn(16, 3, 32, 32))
    with pytest.raises(of_torch.type) as raised:
        fast(torch.randn(16, 3, 32, 32))
    assert str(raised.value) == str(of_torch.value)


@pytest.mark.parametrize(("end", "first"), [(flat, 16), (plus_its_mean, 16), (plus_its_mean, 32)])
def test_images_of_another_size_than_at_first(end: Callable[[Tensor], Tensor], first: int) -> None:
    """What is added there has one shape for images of 16 x 16, and is broadcast for those of 32 x 32."""
    fast, twin = trained(Strided(end, nn.SiLU()), first)
    for size in (16, 32, 16):
        agree(fast, twin, torch.randn(16, 3, size, size))


def test_kept_weights_of_images_of_another_size() -> None:
    """Those of layers that run in torch then: their gradients reach the rows."""
    fast, twin = trained(Strided(plus_its_mean, nn.SiLU()), 16, kept=True)
    for made, parameters in ((fast, fast.kept_parameters()), (twin, [*twin.parameters()])):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        for step, size in enumerate((16, 32, 16)):
            optimizer.zero_grad()
            made(
                torch.randn(16, 3, size, size, generator=torch.Generator().manual_seed(step))
            ).square().mean().backward()
            optimizer.step()
    for one, other in zip(fast.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class Shared(nn.Module):
    """A norm that torch computes first, before there is anything for kernels, and that is called in a region again."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.norm(x)))


def test_a_norm_in_torch_and_in_kernels_in_one_call() -> None:
    """Autograd keeps the statistics of torch's call; kernels update them, as torch does, without its objection."""
    fast, twin = trained(Shared(), 8)
    for _ in range(2):
        agree(fast, twin, torch.randn(16, 3, 8, 8))
    for one, other in zip(fast.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant: bool) -> None:
    fast, twin = trained(nn.Sequential(nn.Conv2d(3, 16, 3), nn.SiLU(), nn.Conv2d(16, 8, 3)), 8)
    x = torch.randn(16, 3, 8, 8, requires_grad=True)
    checkpoint(fast, x, use_reentrant=reentrant).square().mean().backward()
    twin(x).square().mean().backward()
    for one, other in zip(fast.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
