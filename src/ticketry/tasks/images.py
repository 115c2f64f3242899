"""Image classification: data sets held in memory as bytes, and images that are read from disk for each batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.errors import TaskError
from ticketry.tasks import data as data_sets
from ticketry.tasks import models
from ticketry.tasks.data.image_files import ImageSet, Listing, scan
from ticketry.tasks.data.shards import ShardListing, open_shards, parse_address
from ticketry.tasks.data.splits import count_share_of_each, hold_out, take_fewer
from ticketry.tasks.facts import DATA_SETS, IMAGENET, TINY_IMAGENET
from ticketry.tasks.file_requests import Options
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Classification, Spec, Split, Splits

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
        return models.narrower(self.model, shape=self.shape, classes=self.classes, parameters=parameters)

    def prepare(self, inputs: Tensor) -> Tensor:
        """Return (x / largest - mean) / std of stored images [n, c, h, w], in float32."""
        factor, offset = _compute_scale_and_offset(self.largest, self.mean, self.std, inputs.device)
        # Matters in a 1 ms step of a LeNet: 20 us for 128 MNIST images; addcmul takes 55 us.
        return inputs.to(torch.float32, copy=True).mul_(factor).add_(offset)

    def example(self, count: int, data: Path | None = None) -> Tensor:
        """Return standard normal noise [count, channels, height, width]; this reads no data."""
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(0))

    def augment(self, inputs: Tensor, names: tuple[str, ...], generator: torch.Generator) -> Tensor:
        """Return stored images after the augmentations in `names` (``flip``, ``crop``), applied in this order."""
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
        """Largest shift by the augmentation ``crop``, in pixels; it is proportional to the size of the images."""
        return max(1, PADDING // self.factor)

    def key(self) -> Mapping[str, object]:
        return {
            **({"train": self.train} if self.train else {}),
            **({"averaged": self.factor} if self.factor > 1 else {}),
            "name": self.name,
            "data_version": data_sets.VERSION,
            **({"data_source": source} if (source := data_sets.source_digest(self.name)) else {}),
            **models.network_key(self.model),
            "shape": list(self.shape),
            "classes": self.classes,
            "largest": self.largest,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def load(self, data: Path | None = None) -> Splits:
        return data_sets.load(self.name, data, train=self.train, factor=self.factor)


@lru_cache(maxsize=32)
def _compute_scale_and_offset(
    largest: float, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return factor and offset [c, 1, 1] with which x * factor + offset = (x / largest - mean) / std.

    Results are cached, because a copy to a device stalls the device.
    """
    with torch.inference_mode(False):
        means = torch.tensor(mean, dtype=torch.float64).view(-1, 1, 1)
        stds = torch.tensor(std, dtype=torch.float64).view(-1, 1, 1)
        factor, offset = 1 / (largest * stds), -means / stds
        return factor.to(device, torch.float32), offset.to(device, torch.float32)


def create_task(spec: Spec) -> ImageClassification:
    """Create the task for the request `spec`, whose name is a data set of `facts.DATA_SETS`."""
    data, options = DATA_SETS.get(spec.name), Options(spec, ("train", "size"))
    channels, height, width = data.shape
    factors = {height // each: each for each in range(1, height + 1) if not height % each and not width % each}
    if (size := options.whole_number("size", height, least=1)) not in factors:
        raise options.value_error(
            "size", f"one of {', '.join(map(str, factors))} (pixels, whole squares of which are averaged)"
        )
    factor = factors[size]
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
        train=options.whole_number("train", 0, least=None, what="number of training examples"),
        factor=factor,
        spec=spec,
    )


VERSION = 1
"""Version of the result of `load`, as part of keys of stored results; increased when an example or a pixel changes."""

MODEL = "resnet-18-imagenet"
"""Name of the default network."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of each channel of the ImageNet training images, as in torchvision."""

OPTIONS = ("path", "size", "resize", "validation", "train", "workers", "mean", "std")
_SHARE_OF_SIDE = Fraction(7, 8)
"""Side of the central crop / shorter side of the resized image: 224 / 256, as for ImageNet in He et al. 2016."""
_EVALUATED_PIXELS = 500 * 64 * 64


@dataclass(frozen=True)
class FolderReader:
    """Reads the image files of a split; implements `tasks.task.Reader`."""

    augmentations: ClassVar[tuple[str, ...]] = ("resized_crop",)

    listing: Listing | ShardListing
    size: int
    resize: int
    workers: int

    @property
    def batch(self) -> int:
        """Batch size of evaluation: at most 500 images, fewer if images are larger than 64x64 pixels."""
        return max(1, min(500, _EVALUATED_PIXELS // self.size**2))

    def request(
        self, rows: Tensor, augment: tuple[str, ...] = (), seed: int = 0, first: int = 0
    ) -> Callable[[], Tensor]:
        """Return a function that reads the images of `rows` as uint8 [b, 3, size, size]."""
        return self.listing.request(rows.tolist(), self.size, self.resize, seed if augment else None, first)


@dataclass(frozen=True, kw_only=True)
class FolderClassification(Images):
    """A task that classifies the images in a folder; the folder is scanned once, when it is needed."""

    replayable = True

    path: Path | None
    """Folder with train/<class>/* and val/<class>/* (or test/); None if only the recipe is needed."""
    size: int
    """Height and width of the network's inputs, in pixels."""
    resize: int
    """Number of pixels to which the shorter side of an image is resized before the central square is cropped."""
    validation: Fraction
    """Share of the training images of each class that is held out for validation."""
    model: str
    recipe: Recipe
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    train: int = 0
    workers: int = 2
    """Number of reading processes."""
    largest: float = 255.0
    name: str = "imagefolder"
    spec: Spec | None = None

    @property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        return 3, self.size, self.size

    @property
    def classes(self) -> int:  # type: ignore[override]
        return len(self._image_set.train.classes)

    def key(self) -> Mapping[str, object]:
        """Return values that identify the images and how they are read and split, but not their location."""
        return {
            **({"train": self.train} if self.train else {}),
            "name": self.name,
            "data_version": VERSION,
            "files": self._image_set.digest,
            "size": self.size,
            "resize": self.resize,
            "validation": float(self.validation),
            "mean": list(self.mean),
            "std": list(self.std),
            **models.network_key(self.model),
        }

    def load(self, data: Path | None = None) -> Splits:
        """Return the splits, whose images are read when needed; the test split has the images in val (or test)."""
        return self._splits

    @cached_property
    def _image_set(self) -> ImageSet[Any]:
        if self.path is None:
            raise TaskError(
                f"the task {self.name} needs to know the folder: --option path=DIR, where DIR holds train/<class>/* and"
                " val/<class>/* (or test/)"
            )
        return scan(self.path)

    @cached_property
    def _splits(self) -> Splits:
        labels = self._image_set.train.labels
        rest, held = hold_out(labels, count_share_of_each(labels, self.validation))
        reader = self._build_reader()
        train, validation = (
            Split(torch.from_numpy(rows), torch.from_numpy(labels[rows]), reader) for rows in (rest, held)
        )
        targets = torch.from_numpy(self._image_set.test.labels)
        test = Split(torch.arange(len(targets)), targets, replace(reader, listing=self._image_set.test))
        return Splits(take_fewer(train, self.train) if self.train else train, validation, test)

    def _build_reader(self) -> FolderReader:
        """Return the reader of the training images; the readers of other splits differ only in their listing."""
        return FolderReader(self._image_set.train, self.size, self.resize, self.workers)


def create_folder_task(spec: Spec) -> FolderClassification:
    """Create the task imagefolder with the options in the request `spec`."""
    options = Options(spec, OPTIONS)
    return FolderClassification(**parse_folder_options(spec, options), spec=options.with_absolute_paths(spec, "path"))


def parse_folder_options(spec: Spec, options: Options) -> dict[str, Any]:
    """Return the arguments for `FolderClassification` that a request and its parsed `options` contain."""
    size = options.whole_number("size", 224, least=1)
    resize = options.whole_number("resize", round(size / _SHARE_OF_SIDE), least=size)
    network = spec.model or MODEL
    models.check(network, shape=(3, size, size))
    return {
        "path": options.path("path"),
        "size": size,
        "resize": resize,
        "validation": options.share("validation"),
        "model": network,
        "recipe": default_recipe(network, size),
        "mean": _parse_channels(options, "mean", MEAN),
        "std": _parse_channels(options, "std", STD),
        "train": options.whole_number("train", 0),
        "workers": options.whole_number("workers", 2),
    }


def default_recipe(network: str, size: int) -> Recipe:
    """Return the default training recipe of a network for images of `size` x `size` pixels."""
    recipe = replace(TINY_IMAGENET, shape=(3, size, size)).recipe_of(network)
    return recipe.changed(augment=("resized_crop", "flip")) if recipe == IMAGENET else recipe


def _parse_channels(options: Options, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """Return the value of the option `name`, three numbers separated by spaces or commas."""
    if name not in options.given:
        return default
    try:
        values = tuple(float(word) for word in options.text(name).replace(",", " ").split())
    except ValueError:
        values = ()
    if len(values) != 3 or not all(0 <= value <= 1 for value in values) or (name == "std" and not all(values)):
        raise options.value_error(name, "three numbers in [0, 1], for red, green and blue, such as '0.5 0.5 0.5'")
    return values


WINDOW = 16
"""Default number of shards whose images are mixed: 2 GB in shards of 128 MB, or 20,000 images of ImageNet."""


@dataclass(frozen=True)
class ShardReader(FolderReader):
    """Reads images from shards (tar files of images); implements `tasks.task.Reader` and `tasks.task.Sharded`."""

    listing: ShardListing
    window: int = WINDOW

    def shards(self, rows: Tensor) -> Tensor:
        return torch.from_numpy(self.listing.index.shard)[rows]


@dataclass(frozen=True, kw_only=True)
class ShardClassification(FolderClassification):
    """A task that classifies images that are stored in shards (tar files of images)."""

    replayable = True

    address: str
    """Folder or URL of the shards; empty if only the recipe is needed."""
    window: int = WINDOW
    path: Path | None = None
    name: str = "imageshards"

    def key(self) -> Mapping[str, object]:
        """Return values that identify the images and how they are read, split and mixed, but not their location."""
        return {**super().key(), "window": self.window}

    @cached_property
    def _image_set(self) -> ImageSet[Any]:
        if not self.address:
            raise TaskError(
                f"the task {self.name} needs to know where they are: --option path=DIR or a URL, with train-*.tar and"
                " val-*.tar"
            )
        return open_shards(parse_address(self.address))

    def _build_reader(self) -> ShardReader:
        return ShardReader(self._image_set.train, self.size, self.resize, self.workers, self.window)


def create_shards_task(spec: Spec) -> ShardClassification:
    """Create the task imageshards with the options in the request `spec`."""
    options = Options(spec, (*OPTIONS, "window"))
    address = options.text("path")
    if address:
        parse_address(address)
    return ShardClassification(
        **{**parse_folder_options(spec, options), "path": None},
        address=address,
        window=options.whole_number("window", WINDOW, least=1),
        spec=spec if "://" in address else options.with_absolute_paths(spec, "path"),
    )
