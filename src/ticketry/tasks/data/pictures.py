"""Image files decoded to bytes: RGB, resized, and cut to a square at the centre or at random."""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ticketry.core.seeds import mix
from ticketry.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SCALE = (0.08, 1.0)
"""Share of the image's area that a random crop has."""
RATIO = (3 / 4, 4 / 3)
"""Its width / height."""
_ATTEMPTS = 10

Box = tuple[int, int, int, int]
"""Left, top, right, bottom; the last two are outside."""


@dataclass(frozen=True)
class Pictures:
    """A request for a batch of image files, see `tasks.base.Reader`: uint8 [n, 3, size, size] when it is called."""

    paths: tuple[str, ...]
    size: int
    resize: int
    """What the shorter side becomes before the square is cut out of the centre."""
    seed: int | None = None
    """Of random crops in place of central ones; image i of the batch has the draws of (seed, i)."""

    def __call__(self) -> Tensor:
        """Read them.

        Raises:
            DataError: for the first file that is not a whole image.
        """
        batch = np.empty((len(self.paths), 3, self.size, self.size), np.uint8)
        for position, path in enumerate(self.paths):
            image = decoded(path, path)
            if self.seed is None:
                image = central(image, self.resize, self.size)
            else:
                draws = random.Random(mix(self.seed, position))
                image = resized(image.crop(random_box(*image.size, draws)), self.size, self.size)
            batch[position] = pixels(image)
        return torch.from_numpy(batch)


def decoded(file: str | bytes, name: str) -> Image:
    """The RGB image in a file, given by its path or its content. Grey and palette images become RGB, alpha is dropped.

    Raises:
        DataError: if it is not a whole image of 8 or 16 bits a channel.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            image.load()
            return _rgb(image)
    except Exception as error:  # damaged files make decoders raise nearly anything, from SyntaxError to struct.error
        raise DataError(
            f"{name} cannot be read as an image ({type(error).__name__}: {error}): get it again, or take it away"
        ) from error


def _rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode.startswith("I;16"):  # Pillow would cut off everything above 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range; 8 bits a channel are wanted")
    if image.mode == "P":
        image = image.convert("RGBA")  # or Pillow warns of palettes with transparent colours
    return image.convert("RGB")


def pixels(image: Image) -> NDArray[np.uint8]:
    """uint8 [3, height, width] of an RGB image."""
    values: NDArray[np.uint8] = np.asarray(image, np.uint8).transpose(2, 0, 1)
    return values


def resized(image: Image, width: int, height: int) -> Image:
    """Bilinear, with the filter widened to the pixels of the source when the image shrinks (antialiased)."""
    from PIL import Image

    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def central(image: Image, resize: int, size: int) -> Image:
    """The shorter side resized to `resize`, the other in proportion, and the central square of `size` cut out."""
    width, height = image.size
    if width <= height:
        width, height = resize, resize * height // width
    else:
        width, height = resize * width // height, resize
    left, top = round((width - size) / 2), round((height - size) / 2)
    return resized(image, width, height).crop((left, top, left + size, top + size))


def random_box(width: int, height: int, draws: random.Random) -> Box:
    """What to cut out of an image before resizing it: the recipe of Inception and ResNet for ImageNet.

    Szegedy et al. 2015 (section 6): a share of the area uniform in [0.08, 1], an aspect ratio in [3/4, 4/3], here
    uniform in its logarithm, anywhere in the image. After ten boxes that do not fit it is the largest central one
    whose ratio is in bounds, as in torchvision.

    Only `Random.random` is drawn from: Python promises that it never changes.
    """
    low, high = (math.log(ratio) for ratio in RATIO)
    for _ in range(_ATTEMPTS):
        area = width * height * (SCALE[0] + (SCALE[1] - SCALE[0]) * draws.random())
        ratio = math.exp(low + (high - low) * draws.random())
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int(draws.random() * (width - wide + 1)), int(draws.random() * (height - tall + 1))
            return left, top, left + wide, top + tall
    wide = min(width, round(height * RATIO[1]))
    tall = min(height, round(width / RATIO[0]))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall
