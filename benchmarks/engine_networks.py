"""The networks of `engine.py`: how they are made, and what they look like under masks."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.core.mask import Mask
from ticketry.core.structure import channels
from ticketry.core.synthetic_masks import synthetic
from ticketry.tasks import models
from ticketry_engine.example_inputs import resize_batch

SEED = 0


class Block(nn.Module):
    """A transformer's block, norms first: 12 heads, four times as wide inside."""

    def __init__(self, width: int = 768, heads: int = 12) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def _double(before: int, after: int) -> list[nn.Module]:
    parts: list[nn.Module] = []
    for inputs in (before, after):
        parts += [nn.Conv2d(inputs, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return parts


class UNet(nn.Module):
    """Three levels down and up (Ronneberger et al. 2015), up by transposed convolutions or by interpolation."""

    def __init__(self, width: int = 32, interpolated: bool = False) -> None:
        super().__init__()
        widths = [width << level for level in range(4)]
        self.down = nn.ModuleList(nn.Sequential(*_double(a, b)) for a, b in pairwise([3, *widths]))
        self.rise, self.up = nn.ModuleList(), nn.ModuleList()
        for wide, narrow in pairwise(reversed(widths)):
            smooth = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(wide, narrow, 1))
            self.rise.append(smooth if interpolated else nn.ConvTranspose2d(wide, narrow, 2, stride=2))
            self.up.append(nn.Sequential(*_double(wide, narrow)))
        self.last = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for rise, up, beside in zip(self.rise, self.up, kept[-2::-1], strict=True):
            x = up(torch.cat([beside, rise(x)], 1))
        return self.last(x)


def generator(width: int = 64) -> nn.Module:
    """DCGAN's (Radford et al. 2016): images of 64 x 64 pixels from 100 numbers."""
    parts: list[nn.Module] = [nn.ConvTranspose2d(100, 8 * width, 4, bias=False)]
    for wide in (8 * width, 4 * width, 2 * width):
        parts += [nn.BatchNorm2d(wide), nn.ReLU(), nn.ConvTranspose2d(wide, wide // 2, 4, 2, 1, bias=False)]
    return nn.Sequential(*parts, nn.BatchNorm2d(width), nn.ReLU(), nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh())


@dataclass(frozen=True)
class Network:
    """How to make it, and what it takes."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    """Shape of one example."""


def _zoo(name: str, size: int, classes: int) -> Network:
    shape = (3, size, size)
    return Network(lambda: models.build(name, shape=shape, classes=classes), shape)


def _timm(name: str) -> Network:
    """A network of timm's, untrained, over 224 x 224 pixels."""

    def make() -> nn.Module:
        sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
        from tasks.models.library_support import import_or_skip

        made: nn.Module = import_or_skip("timm").create_model(name, pretrained=False)
        return made

    return Network(make, (3, 224, 224))


NETWORKS = {
    "resnet-18": _zoo("resnet-18", 32, 10),
    "vgg-16": _zoo("vgg-16", 32, 10),
    "resnet-18-64": _zoo("resnet-18", 64, 200),
    "resnet-50-224": _zoo("resnet-50-imagenet", 224, 1000),
    "block": Network(Block, (128, 768)),
    "mobilenetv3": _timm("mobilenetv3_large_100"),
    "efficientnet-b0": _timm("efficientnet_b0"),
    "convnext-atto": _timm("convnext_atto"),
    "vit-tiny": _timm("vit_tiny_patch16_224"),
    "unet": Network(UNet, (3, 128, 128)),
    "unet-bilinear": Network(partial(UNet, interpolated=True), (3, 128, 128)),
    "dcgan": Network(generator, (100, 1, 1)),
}


@dataclass
class Subject:
    """A network with random weights, and what it looks like under masks."""

    network: Network
    dense: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(SEED)
        self.dense = self.calibrated(self.network.make())

    def examples(self, batch: int) -> tuple[Any, ...]:
        return resize_batch(torch.randn(2, *self.network.shape, generator=torch.Generator().manual_seed(SEED)), batch)

    def masked(self, mask: Mask) -> nn.Module:
        return self.calibrated(mask.apply_(copy.deepcopy(self.dense)))

    def calibrated(self, model: nn.Module) -> nn.Module:
        """With norms' statistics of noise, so that every layer's outputs have a usual size."""
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None  # the mean over batches
        model.train()
        with torch.no_grad():
            for _ in range(2):
                model(torch.randn(8, *self.network.shape))
        return model.eval().requires_grad_(False)

    def mask(self, pattern: str, density: float) -> Mask:
        if pattern == "channels":
            return channels(self.dense, self.examples(2), density, score="l1", distribution="uniform")
        return synthetic(self.dense, pattern, density, seed=SEED)
