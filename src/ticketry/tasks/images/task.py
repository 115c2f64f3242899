"""Image classification: the base class of its tasks, and tasks on data sets that are kept in memory as bytes."""

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
"""Number of pixels of padding on each side before a random crop to the original size (He et al. 2016, section 4.2)."""


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image of [n, c, h, w] with probability 1/2.

    The only random numbers drawn are [n] integers in {0, 1}.
    """
    count, channels, height, width = images.shape
    mirrored = torch.randint(0, 2, (count, 1), generator=generator)
    columns = torch.arange(width)
    columns = torch.where(mirrored == 1, width - 1 - columns, columns).to(images.device)
    return images.gather(3, columns[:, None, None, :].expand(count, channels, height, width))


def crop(images: Tensor, generator: torch.Generator, padding: int = PADDING) -> Tensor:
    """Shift each image of [n, c, h, w] by up to `padding` pixels along both axes, and fill the rest with zeros.

    The only random numbers drawn are [n, 2] integers in {0, ..., 2 padding}: the top and the left edge of a crop of the
    padded image.
    """
    count, channels, height, width = images.shape
    corner = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)
    padded = F.pad(images, (padding,) * 4)
    stride = width + 2 * padding
    # Positions in a flattened padded image: one gather of pixels is cheaper than one for each axis.
    window = (torch.arange(height)[:, None] * stride + torch.arange(width)).view(1, -1)
    positions = (corner[:, :1] * stride + corner[:, 1:] + window).to(images.device)
    flat = padded.view(count, channels, -1).gather(2, positions[:, None, :].expand(count, channels, -1))
    return flat.view(count, channels, height, width)


_AUGMENTATIONS = {"flip": flip, "crop": crop}


class Images(Classification):
    """Base class of image classification; images are stored as bytes [n, channels, height, width]."""

    model: str
    """Name of the network, see `ticketry.tasks.models.build`."""
    largest: float
    """Stored value of the brightest pixel; it is scaled to 1."""
    mean: tuple[float, ...]
    """Mean of each channel over the training set, with pixels in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation of each channel over the training set, with pixels in [0, 1]."""
    train: int
    """Number of training examples, equally many of each class; 0 takes all."""
    shape: tuple[int, int, int]
    """Channels, height and width of an image."""
    classes: int
    padding: int = PADDING
    """Largest shift, in pixels, by the augmentation ``crop``."""

    def build(self) -> nn.Module:
        return models.build(self.model, shape=self.shape, classes=self.classes)

    def narrower(self, parameters: int) -> str | None:
        return models.rival(self.model, shape=self.shape, classes=self.classes, parameters=parameters)

    def prepare(self, inputs: Tensor) -> Tensor:
        """Return (x / largest - mean) / std of stored images [n, c, h, w], in float32."""
        factor, offset = _scale_and_offset(self.largest, self.mean, self.std, inputs.device)
        # Matters in a 1 ms step of a LeNet: 20 us for 128 MNIST images; addcmul takes 55 us.
        return inputs.to(torch.float32, copy=True).mul_(factor).add_(offset)

    def example(self, count: int, data: Path | None = None) -> Tensor:
        """Return standard normal noise [count, channels, height, width]; this reads no data."""
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(0))

    def augment(self, inputs: Tensor, names: tuple[str, ...], generator: torch.Generator) -> Tensor:
        """Apply the augmentations in `names` (``flip``, ``crop``) in this order."""
        for name in names:
            if name not in _AUGMENTATIONS:
                raise TaskError(
                    f"the task {self.name} has no augmentation {name!r}: choose from {', '.join(_AUGMENTATIONS)}"
                )
            inputs = crop(inputs, generator, self.padding) if name == "crop" else flip(inputs, generator)
        return inputs


@dataclass(frozen=True, kw_only=True)
class ImageClassification(Images):
    """A task that classifies the images of a data set in memory."""

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
    """Factor by which height and width of the images are reduced."""
    spec: Spec | None = None

    @property
    def padding(self) -> int:  # type: ignore[override]
        """Largest shift by ``crop`` in pixels: always the same share of the image, also for reduced images."""
        return max(1, PADDING // self.factor)

    def key(self) -> Mapping[str, object]:
        return {
            **({"train": self.train} if self.train else {}),
            **({"averaged": self.factor} if self.factor > 1 else {}),
            "name": self.name,
            "data_version": data_sets.VERSION,
            **({"data_source": source} if (source := data_sets.source_digest(self.name)) else {}),
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
def _scale_and_offset(
    largest: float, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return factor and offset [c, 1, 1] with which x * factor + offset = (x / largest - mean) / std.

    The result is cached, because a copy to a device stalls the device.
    """
    with torch.inference_mode(False):
        means = torch.tensor(mean, dtype=torch.float64).view(-1, 1, 1)
        stds = torch.tensor(std, dtype=torch.float64).view(-1, 1, 1)
        factor, offset = 1 / (largest * stds), -means / stds
        return factor.to(device, torch.float32), offset.to(device, torch.float32)


def create_task(spec: Spec) -> ImageClassification:
    """Create the task for the request `spec`, whose name is a data set of `facts.DATA_SETS`.

    Raises:
        TaskError: for an unknown option or network, an invalid value, or images that are too small for the network.
    """
    data, options = DATA_SETS.get(spec.name), Options(spec, ("train", "size"))
    factor = _parse_factor(data, options)
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


def _parse_factor(data: ImageData, options: Options) -> int:
    """Return the factor by which height and width are reduced to the value of the option ``size``."""
    _, height, width = data.shape
    sizes = {height // factor: factor for factor in range(1, height + 1) if not height % factor and not width % factor}
    size = options.whole("size", height, least=1)
    if size not in sizes:
        raise options.value_error(
            "size", f"one of {', '.join(map(str, sizes))} (pixels, whole squares of which are averaged)"
        )
    return sizes[size]
