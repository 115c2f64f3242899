"""Classification of images that are kept in memory as bytes, and what those read from disk share with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from ticketry.errors import TaskError
from ticketry.tasks import augment, models
from ticketry.tasks import data as data_sets
from ticketry.tasks.base import Spec, Splits
from ticketry.tasks.classification import Classification
from ticketry.tasks.network_name import NetworkName
from ticketry.tasks.recipe import Recipe

_AUGMENTATIONS = {"flip": augment.flip, "crop": augment.crop}


class Images(Classification):
    """Classification of images that are stored as bytes [n, channels, height, width]."""

    largest: float
    """The stored value that stands for 1.0."""
    mean: tuple[float, ...]
    """Of each channel over the training set, with pixels in [0, 1]."""
    std: tuple[float, ...]
    """Likewise."""

    def prepare(self, inputs: Tensor) -> Tensor:
        """Bytes [n, c, h, w] to float32, (x / largest - mean) / std."""
        factor, offset = _affine(self.largest, self.mean, self.std, inputs.device)
        # In a LeNet's 1 ms step this counts: 20 us for 128 MNIST images, where addcmul takes 55 us.
        return inputs.to(torch.float32, copy=True).mul_(factor).add_(offset)

    def example(self, count: int, data: Path | None = None) -> Tensor:
        """Noise [count, channels, height, width], spread as prepared images are; no data are read."""
        shape = self.image_shape()
        return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))

    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        raise NotImplementedError

    def augment(self, inputs: Tensor, names: tuple[str, ...], generator: torch.Generator) -> Tensor:
        """Flips and crops, in the order of `names`."""
        for name in names:
            if name not in _AUGMENTATIONS:
                raise TaskError(
                    f"the task {self.name} has no augmentation {name!r}: choose from {', '.join(_AUGMENTATIONS)}"
                )
            inputs = _AUGMENTATIONS[name](inputs, generator)
        return inputs


@dataclass(frozen=True, kw_only=True)
class ImageClassification(Images):
    """A named data set of images in memory, a named network and how it is trained."""

    name: str
    """Of the data set, see `ticketry.tasks.data.load`."""
    model: str
    """Of the network, see `ticketry.tasks.models.build`."""
    shape: tuple[int, int, int]
    """Channels, height, width."""
    classes: int
    largest: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recipe: Recipe
    train: int = 0
    """Training examples, as many of each class; 0 is all there are."""
    spec: Spec | None = None

    def key(self) -> Mapping[str, object]:
        return {
            **({"train": self.train} if self.train else {}),
            "name": self.name,
            "data_version": data_sets.VERSION,
            **models.identity(self.model),
            "shape": list(self.shape),
            "classes": self.classes,
            "largest": self.largest,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def build(self) -> nn.Module:
        return models.build(self.model, shape=self.shape, classes=self.classes)

    def image_shape(self) -> tuple[int, int, int]:
        return self.shape

    def narrower(self, parameters: int) -> str | None:
        if NetworkName.parse(self.model).library:  # whose widths cannot be chosen
            return None
        return models.narrower(self.model, shape=self.shape, classes=self.classes, parameters=parameters)

    def load(self, data: Path | None = None) -> Splits:
        return data_sets.load(self.name, data, train=self.train)


@lru_cache(maxsize=32)
def _affine(
    largest: float, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Factor and offset [c, 1, 1] of (x / largest - mean) / std; kept, because a copy to a device stalls it."""
    with torch.inference_mode(False):
        means = torch.tensor(mean, dtype=torch.float64).view(-1, 1, 1)
        stds = torch.tensor(std, dtype=torch.float64).view(-1, 1, 1)
        factor, offset = 1 / (largest * stds), -means / stds
        return factor.to(device, torch.float32), offset.to(device, torch.float32)
