"""Small tasks that other processes can make, for trainings by several ranks: `ranks_task:points` and others."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Classification, Split, Splits

EXAMPLES = 210
"""No multiple of the batch: the last one of an epoch has 18, 9 for each of two ranks, and 6 for each of three."""


class Pictures(Classification):
    """Noise in five classes that a convolution separates; batch norm, dropout, and noise as augmentation."""

    name = "pictures"
    recipe = Recipe(length="21it", batch=32, optimizer="adam", lr=1e-2, clip=0.05, augment=("crop",))
    wide = torch.float64

    def __init__(self, **options: str) -> None:
        self.drop = float(options.get("drop", "0.3"))
        self.examples = int(options.get("examples", EXAMPLES))
        if options.get("wide") == "no":
            self.wide = torch.float32
        if batch := options.get("batch"):
            self.recipe = self.recipe.changed(batch=int(batch))
        if length := options.get("length"):
            self.recipe = self.recipe.changed(length=length)

    def key(self) -> Mapping[str, object]:
        return {"name": self.name}

    def build(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.SiLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(self.drop),
            nn.Linear(8 * 9, 16),
            nn.BatchNorm1d(16),
            nn.Tanh(),
            nn.Linear(16, 5),
        ).to(self.wide)

    def load(self, data: Path | None = None) -> Splits:
        return Splits(*(_pictures(count, seed) for seed, count in enumerate((self.examples, 51, 60))))

    def prepare(self, inputs: Tensor) -> Tensor:
        return inputs.to(self.wide)

    def augment(self, inputs: Tensor, names: tuple[str, ...], generator: torch.Generator) -> Tensor:
        """Noise for each example, and one shift of brightness for the whole batch."""
        if "crop" in names:
            inputs = inputs + 0.1 * torch.randn(inputs.shape, generator=generator)
            inputs = inputs + 0.1 * torch.rand((), generator=generator)
        return inputs


class Summed(Pictures):
    """With a loss that is a sum."""

    name = "summed"

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="sum", label_smoothing=label_smoothing)


class Shuffled(Pictures):
    """That mixes each batch in a random order."""

    name = "shuffled"

    def augment(self, inputs: Tensor, names: tuple[str, ...], generator: torch.Generator) -> Tensor:
        return 0.5 * (inputs + inputs[torch.randperm(len(inputs), generator=generator)])


class _Sequences(nn.Module):
    """Rows of pixels [n, 12, 6] as words."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = nn.TransformerEncoderLayer(6, 2, 16, dropout=0.3, batch_first=kind != "words first")
        self.last = nn.Linear(6, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        words = inputs.flatten(1, 2)
        if self.kind == "weights":
            return F.linear(words.mean(1), F.dropout(self.layer.linear1.weight, 0.3, self.training))[:, :5]
        found = self.layer(words.transpose(0, 1)).transpose(0, 1) if self.kind == "words first" else self.layer(words)
        return self.last(found.mean(1))  # type: ignore[no-any-return]


class Sequence(Pictures):
    """With a transformer that has examples or words first, or with weights that are dropped."""

    name = "sequence"

    def __init__(self, **options: str) -> None:
        super().__init__(**options)
        self.kind = options["kind"]

    def build(self) -> nn.Module:
        return _Sequences(self.kind).to(self.wide)


class Diverging(Pictures):
    """A task whose loss is NaN from the start."""

    name = "diverging"

    def prepare(self, inputs: Tensor) -> Tensor:
        return inputs.to(self.wide) * float("inf")


@functools.lru_cache(maxsize=8)
def _pictures(count: int, seed: int) -> Split:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 2, 6, 6, generator=draw)
    return Split(images, (images[:, 0].sum((1, 2)) / 6 + 2.5).long().clamp(0, 4))


class WholeBatches:
    """Gives stored examples, and knows of no part of a batch."""

    workers, batch, augmentations = 0, 100, ()

    def request(self, rows: Tensor, augment: tuple[str, ...] = (), seed: int = 0) -> Callable[[], Tensor]:
        return lambda: _pictures(211, 0).inputs[rows]


class OwnReader(Pictures):
    """A task whose reader yields only whole batches."""

    name = "own_reader"

    def load(self, data: Path | None = None) -> Splits:
        splits = super().load(data)
        train = Split(torch.arange(211), _pictures(211, 0).targets, WholeBatches())
        return replace(splits, train=train)


class _WithMore(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.unused = inner, nn.Linear(3, 3).double()

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.inner(inputs)
        return found


class Unused(Pictures):
    """With a layer that is not called."""

    name = "unused"

    def build(self) -> nn.Module:
        return _WithMore(super().build())


class Large(Pictures):
    """50 MB of weights, whose state under Adam is 150 MB."""

    name = "large"
    recipe = Recipe(length="8it", batch=8, optimizer="adam", lr=1e-4)
    wide = torch.float32

    def build(self) -> nn.Module:
        inner = (nn.Linear(2048, 2048, bias=False) for _ in range(3))
        return nn.Sequential(nn.Flatten(), nn.Linear(72, 2048), *inner, nn.Linear(2048, 5))
