"""Networks of many families, trained in kernels: gradients of all parameters against float64 torch under the mask."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import ticketry as tk
from engine.families import FAMILIES, TIMM, TORCHVISION, image, torchvision_size
from engine.test_families import doubled, other_batch, random_mask
from samples import sample
from tasks.models.library_support import import_or_skip, mend_torchvision
from ticketry.tasks.models import build
from ticketry_engine.training.sparse_training import SparseTraining

BATCH = 6
DRAWS = 5
"""Of weights and images, for the networks of libraries."""

LARGE = ("vgg11_bn", "alexnet")
"""Whose 100 million parameters take minutes, and whose layers others have."""


def without_dropout(model: nn.Module) -> nn.Module:
    """Whose random numbers are other ones in float64."""
    for holder in filter(None, (*model.modules(), getattr(model, "config", None))):
        dropping = "drop" in type(holder).__name__.lower() or type(holder).__name__ == "StochasticDepth"
        for name, value in vars(holder).items():
            if isinstance(value, float) and ("drop" in name or (name == "p" and dropping)):
                setattr(holder, name, 0.0)
    return model


def total(outputs: Any) -> Tensor:
    """One number of all outputs, each with a weight of its own."""
    generator = torch.Generator().manual_seed(5)
    plain = dict(outputs) if isinstance(outputs, dict) else outputs
    found = [leaf for leaf in tree_flatten(plain)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    weights = [torch.randn(leaf.shape, generator=generator, dtype=torch.float64) for leaf in found]
    return torch.stack([(leaf * weight).sum() for leaf, weight in zip(found, weights, strict=True)]).sum()


def gradients(model: nn.Module, inputs: Any) -> dict[str, Tensor | None]:
    model.zero_grad()
    total(model(**inputs) if isinstance(inputs, dict) else model(inputs)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def error(found: dict[str, Tensor | None], exact: dict[str, Tensor | None], mask: tk.Mask) -> float:
    """The largest of any parameter, relative to its gradient's norm, or to a part of the largest one if it is less."""
    wanted = {name: one * mask[name] if name in mask else one for name, one in exact.items() if one is not None}
    floor = 1e-3 * max(float(one.norm()) for one in wanted.values())
    worst = 0.0
    for name, one in wanted.items():
        mine = found[name]
        assert mine is not None, name
        if name in mask:
            mine = mine * mask[name]
        worst = max(worst, float((mine - one).norm()) / max(float(one.norm()), floor))
    return worst


def check(make: Callable[[], tuple[nn.Module, Any]], draws: int = 1) -> SparseTraining:
    """Torch itself in float32 is further from the truth than 1e-4 where norms have few values that differ little.

    Where a value is so near to 0 that rounding decides for a ReLU, no float32 is near the truth: with many of them, as
    in networks of a library, other weights and images are tried, which nothing but such a value can make right.
    """
    tried = []
    for seed in range(draws):
        torch.manual_seed(seed)
        model, example = make()
        torch.manual_seed(seed)
        model, inputs = without_dropout(model.train()), other_batch(example, BATCH)
        mask = random_mask(model, 0.2)
        mask.apply_(model)
        plain, exact = copy.deepcopy(model), copy.deepcopy(model).double()
        fast = tk.sparse_training(model, mask, inputs)
        truth = gradients(exact, doubled(inputs))
        found = gradients(fast, inputs)
        checked(fast, mask, found)
        tried.append((error(found, truth, mask), error(gradients(plain, inputs), truth, mask)))
        if tried[-1][0] <= max(1e-4, 4 * tried[-1][1]):
            return fast
    raise AssertionError(f"off by (torch in float32 by): {tried}")


def checked(fast: SparseTraining, mask: tk.Mask, found: dict[str, Tensor | None]) -> None:
    """Gradients of pruned weights are 0, and every layer says where it runs."""
    for name in mask:
        mine = found[name]
        assert mine is None or not mine[~mask[name]].any()
    layers = {layer.name: layer for layer in fast.layers()}
    assert all(layer.where == "engine" or layer.why for layer in layers.values())
    assert {name.rpartition(".")[0] for name in mask} <= set(layers)


@pytest.mark.parametrize("name", sample(FAMILIES, ["torch transformer"]))
def test_families(name: str) -> None:
    if name not in ("lstm tagger", "u-net", "torch transformer"):
        mend_torchvision()
    fast = check(FAMILIES[name])
    assert name == "lstm tagger" or any(layer.where == "engine" for layer in fast.layers())


class Channels(nn.Module):
    """Linear layers over the last of four dimensions, which are as many as rows and columns are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.gelu(self.conv(x))
        return self.two(nn.functional.gelu(self.one(x))) + x


def test_linear_layers_over_images() -> None:
    fast = check(lambda: (Channels(), torch.randn(1, 8, 8, 8)))
    assert {layer.where for layer in fast.layers()} == {"engine"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TORCHVISION if name not in LARGE])
def test_torchvision(name: str) -> None:
    torchvision = import_or_skip("torchvision")
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}

    def make() -> tuple[nn.Module, Tensor]:
        model = torchvision.models.get_model(name, weights=None, num_classes=7, **options)
        return model, image(1, torchvision_size(name))

    fast = check(make, DRAWS)
    assert any(layer.where == "engine" for layer in fast.layers())


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    import_or_skip("timm")
    size = 224 if name.endswith("224") else 64
    fast = check(lambda: (build(f"timm:{name}", shape=(3, size, size), classes=7), image(1, size)), DRAWS)
    assert any(layer.where == "engine" for layer in fast.layers())
