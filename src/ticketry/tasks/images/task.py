"""Classification of images that are kept in memory as bytes, and what those read from disk share with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.errors import TaskError
from ticketry.tasks import data as data_sets
from ticketry.tasks import models
from ticketry.tasks.facts import DATA_SETS, ImageData
from ticketry.tasks.options import Options
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Classification, Spec, Splits

PADDING = 4
"""Pixels on each side, before a crop back to the original size (He et al. 2016, section 4.2)."""


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image [n, c, h, w] mirrored left to right with probability 1/2. One draw: [n] of {0, 1}."""
    count, channels, height, width = images.shape
    mirrored = torch.randint(0, 2, (count, 1), generator=generator)
    columns = torch.arange(width)
    columns = torch.where(mirrored == 1, width - 1 - columns, columns).to(images.device)
    return images.gather(3, columns[:, None, None, :].expand(count, channels, height, width))


def crop(images: Tensor, generator: torch.Generator, padding: int = PADDING) -> Tensor:
    """Each image [n, c, h, w] moved by up to `padding` pixels along both axes, zeros moving in.

    One draw: [n, 2] of {0, ..., 2 padding}, the top and the left edge of the crop in the image padded on all sides.
    """
    count, channels, height, width = images.shape
    corner = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)
    padded = F.pad(images, (padding,) * 4)
    stride = width + 2 * padding
    # Positions in a padded image laid out flat: one gather of single pixels is cheaper than one for each axis.
    window = (torch.arange(height)[:, None] * stride + torch.arange(width)).view(1, -1)
    positions = (corner[:, :1] * stride + corner[:, 1:] + window).to(images.device)
    flat = padded.view(count, channels, -1).gather(2, positions[:, None, :].expand(count, channels, -1))
    return flat.view(count, channels, height, width)


_AUGMENTATIONS = {"flip": flip, "crop": crop}


class Images(Classification):
    """Classification of images that are stored as bytes [n, channels, height, width]."""

    model: str
    """Name of the network, see `ticketry.tasks.models.build`."""
    largest: float
    """The stored value that stands for 1.0."""
    mean: tuple[float, ...]
    """Mean and deviation of each channel over the training set, with pixels in [0, 1]."""
    std: tuple[float, ...]
    """Likewise."""
    train: int
    """Training examples, as many of each class; 0 is all there are."""
    shape: tuple[int, int, int]
    """Channels, height, width."""
    classes: int
    padding: int = PADDING
    """How far ``crop`` moves images at most, in pixels."""

    def build(self) -> nn.Module:
        return models.build(self.model, shape=self.shape, classes=self.classes)

    def narrower(self, parameters: int) -> str | None:
        return models.rival(self.model, shape=self.shape, classes=self.classes, parameters=parameters)

    def prepare(self, inputs: Tensor) -> Tensor:
        """Bytes [n, c, h, w] to float32, (x / largest - mean) / std."""
        factor, offset = _affine(self.largest, self.mean, self.std, inputs.device)
        # In a LeNet's 1 ms step this counts: 20 us for 128 MNIST images, where addcmul takes 55 us.
        return inputs.to(torch.float32, copy=True).mul_(factor).add_(offset)

    def example(self, count: int, data: Path | None = None) -> Tensor:
        """Noise [count, channels, height, width], spread as prepared images are; no data are read."""
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(0))

    def augment(self, inputs: Tensor, names: tuple[str, ...], generator: torch.Generator) -> Tensor:
        """Flips and crops, in the order of `names`."""
        for name in names:
            if name not in _AUGMENTATIONS:
                raise TaskError(
                    f"the task {self.name} has no augmentation {name!r}: choose from {', '.join(_AUGMENTATIONS)}"
                )
            inputs = crop(inputs, generator, self.padding) if name == "crop" else flip(inputs, generator)
        return inputs


@dataclass(frozen=True, kw_only=True)
class ImageClassification(Images):
    """A named data set of images in memory, a named network and how it is trained."""

    replayable = True

    name: str
    """Name of the data set, see `ticketry.tasks.data.load`."""
    model: str
    shape: tuple[int, int, int]
    classes: int
    largest: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recipe: Recipe
    train: int = 0
    factor: int = 1
    """By how much height and width of the data set are divided."""
    spec: Spec | None = None

    @property
    def padding(self) -> int:  # type: ignore[override]
        """Padding by the same share of an image at every resolution."""
        return max(1, PADDING // self.factor)

    def key(self) -> Mapping[str, object]:
        return {
            **({"train": self.train} if self.train else {}),
            **({"averaged": self.factor} if self.factor > 1 else {}),
            "name": self.name,
            "data_version": data_sets.VERSION,
            **({"data_source": source} if (source := data_sets.source(self.name)) else {}),
            **models.identity(self.model),
            "shape": list(self.shape),
            "classes": self.classes,
            "largest": self.largest,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def load(self, data: Path | None = None) -> Splits:
        return data_sets.load(self.name, data, train=self.train, factor=self.factor)


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


def make(spec: Spec) -> ImageClassification:
    """Return the task that a request names: a data set of `facts.DATA_SETS` with its defaults.

    Raises:
        TaskError: for an unknown option, a value that cannot be, or a network that is too small or unknown.
    """
    data, options = DATA_SETS.get(spec.name), Options(spec, ("train", "size"))
    factor = _factor(data, options)
    channels, height, width = data.shape
    data = replace(data, shape=(channels, height // factor, width // factor))
    network = spec.model or data.model
    models.check(network, shape=data.shape)
    return ImageClassification(
        name=spec.name,
        model=network,
        shape=data.shape,
        classes=data.classes,
        largest=data.largest,
        mean=data.mean,
        std=data.std,
        recipe=data.recipe_of(network),
        train=options.whole("train", 0, least=None, what="number of training examples"),
        factor=factor,
        spec=spec,
    )


def _factor(data: ImageData, options: Options) -> int:
    """By how much the option ``size`` makes images smaller, each side."""
    _, height, width = data.shape
    sizes = {height // factor: factor for factor in range(1, height + 1) if not height % factor and not width % factor}
    size = options.whole("size", height, least=1)
    if size not in sizes:
        raise options.wrong(
            "size", f"one of {', '.join(map(str, sizes))} (pixels, whole squares of which are averaged)"
        )
    return sizes[size]
