"""Image files decoded, resized and cut out, against plain arithmetic."""

from __future__ import annotations

import io
import math
import pickle
import random
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ticketry.errors import DataError
from ticketry.tasks.data.image_files import Pictures, central, decoded, pixels, random_box, resized
from ticketry_engine.support.seeds import mix

COLOURS = np.random.Generator(np.random.PCG64(3)).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def content(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def arrays(image: Image.Image) -> np.ndarray:
    """[height, width, 3]"""
    return np.asarray(decoded(content(image), "it"))


def test_colours_stay_and_channels_come_first() -> None:
    image = Image.fromarray(COLOURS)
    assert np.array_equal(arrays(image), COLOURS)
    assert np.array_equal(pixels(image), np.moveaxis(COLOURS, 2, 0))


def test_grey_images_of_8_and_16_bits() -> None:
    grey = COLOURS[:, :, 0]
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    assert np.array_equal(arrays(Image.fromarray(grey)), expected)
    assert np.array_equal(arrays(Image.fromarray(grey.astype(np.uint16) * 257)), expected)
    assert np.array_equal(arrays(Image.fromarray(grey > 127)), np.where(expected > 127, 255, 0))


@pytest.mark.parametrize("transparent", [None, 0, bytes(range(256))])
def test_palettes_and_transparency(transparent: object) -> None:
    image = Image.fromarray(COLOURS[:, :, 0])
    image.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
    settings = {} if transparent is None else {"transparency": transparent}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = np.asarray(decoded(content(image, **settings), "it"))
    grey = COLOURS[:, :, 0]
    assert np.array_equal(found, np.stack([grey, 255 - grey, np.full_like(grey, 7)], axis=2))
    with_alpha = np.concatenate([COLOURS, COLOURS[:, :, :1]], axis=2)
    assert np.array_equal(arrays(Image.fromarray(with_alpha, "RGBA")), COLOURS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("damage", ["empty", "text", "header", "half"])
def test_a_damaged_file_is_named(tmp_path: Path, kind: str, damage: str) -> None:
    whole = content(Image.fromarray(COLOURS), kind)
    broken = {"empty": b"", "text": b"<html>not found</html>", "header": whole[:12], "half": whole[: len(whole) // 2]}
    path = tmp_path / "picture"
    path.write_bytes(broken[damage])
    for file in (str(path), broken[damage]):
        with pytest.raises(DataError, match=rf"^{path} cannot be read as an image .*get it again"):
            decoded(file, str(path))


def test_files_that_are_not_there_or_have_no_range(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.png cannot be read as an image \(FileNotFoundError"):
        Pictures((str(tmp_path / "absent.png"),), 4, 4)()
    with pytest.raises(DataError, match="pixels of mode F have no known range"):
        decoded(content(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "it")


@pytest.mark.parametrize(
    ("width", "height", "resize", "size", "scaled"),
    [
        (30, 20, 10, 8, (15, 10)),
        (20, 30, 10, 10, (10, 15)),
        (64, 64, 64, 64, (64, 64)),
        (501, 333, 256, 224, (385, 256)),
    ],
)
def test_the_centre(width: int, height: int, resize: int, size: int, scaled: tuple[int, int]) -> None:
    """As torchvision's Resize and CenterCrop: whole numbers of pixels, odd margins rounded to even."""
    noise = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    large = np.asarray(image.resize(scaled, Image.Resampling.BILINEAR))
    left, top = (round((side - size) / 2) for side in scaled)
    assert np.array_equal(np.asarray(central(image, resize, size)), large[top : top + size, left : left + size])


def test_nothing_is_resampled_at_the_images_own_size() -> None:
    square = Image.fromarray(COLOURS[:, :20])
    assert np.array_equal(np.asarray(central(square, 20, 20)), COLOURS[:, :20])
    assert np.array_equal(np.asarray(central(square, 20, 10)), COLOURS[5:15, 5:15])


def test_shrinking_averages_and_does_not_pick() -> None:
    """A checkerboard becomes grey; without a wide filter it would stay black and white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = np.asarray(resized(Image.fromarray(board).convert("RGB"), 8, 8)).astype(int)
    assert abs(small - 127.5).max() < 3


def test_random_boxes_follow_the_recipe() -> None:
    """Where every draw fits, share of area and logarithm of the ratio are uniform, and so is the place."""
    shares, ratios, places = [], [], []
    for seed in range(4000):
        left, top, right, bottom = random_box(1000, 1000, random.Random(seed))
        width, height = right - left, bottom - top
        assert 0 <= left < right <= 1000
        assert 0 <= top < bottom <= 1000
        shares.append(width * height / 1e6)
        ratios.append(math.log(width / height))
        if width < 1000:
            places.append(left / (1000 - width))
    assert min(shares) > 0.079
    assert max(shares) <= 1
    assert max(map(abs, ratios)) < math.log(4 / 3) + 0.01
    small = [share for share in shares if share < 0.56]  # those fit at any ratio
    assert statistics.mean(small) == pytest.approx((0.08 + 0.56) / 2, abs=0.01)
    assert statistics.mean(ratios) == pytest.approx(0, abs=0.01)
    assert statistics.stdev(ratios) == pytest.approx(2 * math.log(4 / 3) / math.sqrt(12), rel=0.1)
    assert statistics.mean(places) == pytest.approx(0.5, abs=0.02)


class Largest(random.Random):
    """Always asks for more than fits."""

    def random(self) -> float:
        return 0.999


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [(300, 10, (143, 0, 156, 10)), (10, 300, (0, 143, 10, 156)), (100, 100, (0, 0, 100, 100)), (1, 1, (0, 0, 1, 1))],
)
def test_what_never_fits_is_cut_out_of_the_centre(width: int, height: int, box: tuple[int, ...]) -> None:
    assert random_box(width, height, Largest()) == box


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    draws = np.random.Generator(np.random.PCG64(5))
    for index in range(5):
        shape = (24 + index, 40 - index, 3)
        Image.fromarray(draws.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / f"{index}.png")
    return tuple(str(tmp_path / f"{index}.png") for index in range(5))


def test_a_request_is_its_images_in_order(files: tuple[str, ...]) -> None:
    request = pickle.loads(pickle.dumps(Pictures(files, 8, 12)))
    batch = request()
    assert batch.dtype == torch.uint8
    for path, found in zip(files, batch, strict=True):
        expected = pixels(central(Image.open(path), 12, 8))
        assert np.array_equal(found.numpy(), expected)


def test_random_crops_are_a_function_of_seed_and_position(files: tuple[str, ...]) -> None:
    def crops(paths: tuple[str, ...], seed: int) -> torch.Tensor:
        return Pictures(paths, 8, 12, seed)()

    batch = crops(files, 4)
    assert torch.equal(batch, crops(files, 4))
    assert not torch.equal(batch, crops(files, 5))
    assert torch.equal(crops((files[4], *files[1:]), 4)[1:], batch[1:])  # whatever stands beside it
    assert not torch.equal(crops((files[1], files[0]), 4)[0], batch[1])
    for position, path in enumerate(files):
        image = Image.open(path)
        box = random_box(*image.size, random.Random(mix(4, position)))
        expected = image.crop(box).resize((8, 8), Image.Resampling.BILINEAR)
        assert np.array_equal(batch[position].numpy(), pixels(expected))


def test_the_global_random_states_are_left_alone(files: tuple[str, ...]) -> None:
    states: list[Callable[[], object]] = [random.getstate, lambda: torch.get_rng_state().tolist()]
    before = [state() for state in states]
    Pictures(files, 8, 12, 1)()
    assert [state() for state in states] == before
