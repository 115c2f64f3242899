"""Networks that a machine is calibrated with: of sizes that spread over what networks have, and of no one's in use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ticketry_engine.support.seeds import generator

_LEAST, _MOST = 0.003, 0.95
"""Densities of layers, between which they are drawn evenly by their logarithms."""


class _Residual(nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.two = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.other = nn.BatchNorm2d(channels)
        self.short = nn.Conv2d(inputs, channels, 1, stride, bias=False) if stride > 1 or inputs != channels else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.other(self.two(self.norm(self.one(x)).relu()))
        return torch.relu(y + (x if self.short is None else self.short(x)))


class _Inverted(nn.Module):
    """A depthwise convolution between two of single pixels, with a gate."""

    def __init__(self, inputs: int, channels: int, kernel: int, stride: int, act: type[nn.Module]) -> None:
        super().__init__()
        wide = 4 * inputs
        self.up = nn.Sequential(nn.Conv2d(inputs, wide, 1), act())
        self.depthwise = nn.Sequential(nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide), act())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(nn.Conv2d(wide, inputs, 1), nn.ReLU(), nn.Conv2d(inputs, wide, 1), nn.Hardsigmoid())
        self.down = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.up(x))
        found: Tensor = self.down(y * self.gate(self.pool(y)))
        return found


class _Tokens(nn.Module):
    """Pixels as tokens, with attention and two linear layers."""

    def __init__(self, channels: int, width: int, heads: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 4, 4)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.inside = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = self.inside(self.norms[0](x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        found: Tensor = x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))
        return found


def _stages(
    channels: int, *widths: int, kernel: int = 3, pool: type[nn.Module] = nn.MaxPool2d, head: int = 0
) -> nn.Module:
    """Convolutions with norms, after every second one a pooling; then linear layers if there is a head."""
    layers: list[nn.Module] = []
    for number, width in enumerate(widths):
        layers += [nn.Conv2d(channels, width, kernel, 1, kernel // 2), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
        if number % 2:
            layers.append(pool(2))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers += [nn.Linear(channels, head), nn.ReLU(), nn.Linear(head, 20)] if head else [nn.Linear(channels, 20)]
    return nn.Sequential(*layers)


def _residuals(channels: int, *widths: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, 1, 1), nn.ReLU()]
    for number, (one, other) in enumerate(zip((widths[0], *widths), widths, strict=False)):
        layers.append(_Residual(one, other, 2 if number and one != other else 1))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 20))


def _linear(*widths: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for one, other in pairwise(widths):
        layers += [nn.Linear(one, other), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class Design:
    """A network, and the batches that it is timed with."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    """Of an example."""
    batches: tuple[int, ...]


def _flat(channels: int, width: int, size: int, head: int) -> nn.Module:
    layers = [nn.Conv2d(channels, width, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 5)]
    left = 2 * width * (size // 2 - 4) ** 2
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(left, head), nn.ReLU(), nn.Linear(head, 12))


DESIGNS: dict[str, Design] = {
    "narrow": Design(lambda: _residuals(3, 12, 12, 20, 20, 40, 40), (3, 32, 32), (1, 4, 16)),
    "middle": Design(lambda: _residuals(3, 24, 24, 48, 48, 96, 96), (3, 28, 28), (2, 16)),
    "wide": Design(lambda: _residuals(3, 80, 160, 320), (3, 16, 16), (1, 4, 16)),
    "deep planes": Design(lambda: _stages(3, 40, 40, 88, 88, 176, 176, head=200), (3, 32, 32), (1, 3, 16)),
    "small planes": Design(lambda: _stages(160, 320, 320, 448, 448, head=0), (160, 8, 8), (1, 2, 8)),
    "odd planes": Design(lambda: _residuals(4, 36, 72, 144), (4, 21, 21), (2, 8)),
    "large planes": Design(lambda: _stages(3, 16, 32, 48, 64, pool=nn.AvgPool2d), (3, 64, 64), (1, 8)),
    "large strides": Design(lambda: _residuals(3, 20, 40, 72), (3, 64, 64), (1, 8)),
    "linear": Design(lambda: _linear(600, 400, 400, 120, 10), (600,), (1, 8, 64, 192)),
    "wide linear": Design(lambda: _linear(1536, 1200, 768, 256), (1536,), (1, 16, 128)),
    "flattened": Design(lambda: _flat(1, 10, 24, 160), (1, 24, 24), (4, 48)),
    "inverted": Design(
        lambda: nn.Sequential(
            nn.Conv2d(3, 20, 3, 2, 1),
            nn.SiLU(),
            _Inverted(20, 28, 3, 1, nn.SiLU),
            _Inverted(28, 56, 5, 2, nn.Hardswish),
            _Inverted(56, 88, 3, 2, nn.ReLU6),
        ),
        (3, 48, 48),
        (1, 8),
    ),
    "tokens": Design(lambda: _Tokens(3, 144, 4), (3, 36, 36), (1, 8)),
}


def drawn(shapes: Mapping[str, tuple[int, ...]], rows: int, seed: int) -> dict[str, Tensor]:
    """For each weight what is kept: a density of its own, in groups of so many neighbouring rows; of 0 rows all."""
    found = {}
    for number, (name, shape) in enumerate(shapes.items()):
        source = generator(seed, "calibration", number)
        outputs, columns = shape[0], max(1, torch.Size(shape[1:]).numel())
        if not rows:
            found[name] = torch.ones(shape, dtype=torch.bool)
            continue
        share = float(torch.rand((), generator=source))
        density = _LEAST * (_MOST / _LEAST) ** share
        kept = torch.rand(-(-outputs // rows), columns, generator=source) < density
        kept[:, 0] |= ~kept.any(1)
        found[name] = kept.repeat_interleave(rows, 0)[:outputs].reshape(shape)
    return found
