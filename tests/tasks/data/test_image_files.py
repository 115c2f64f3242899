"""Folders of images: decoding, resizing and crops against plain arithmetic, and what a folder contains."""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import random
import shutil
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ticketry.errors import DataError
from ticketry.tasks.data.image_files import (
    ImageRequest,
    crop_centre,
    decode_image,
    random_box,
    resize_image,
    scan,
    to_array,
)
from ticketry_engine.support.seeds import mix_seeds

COLOURS = np.random.Generator(np.random.PCG64(3)).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def content(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def arrays(image: Image.Image) -> np.ndarray:
    """[height, width, 3]"""
    return np.asarray(decode_image(content(image), "it"))


def test_colours_stay_and_channels_come_first() -> None:
    image = Image.fromarray(COLOURS)
    assert np.array_equal(arrays(image), COLOURS)
    assert np.array_equal(to_array(image), np.moveaxis(COLOURS, 2, 0))


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
        found = np.asarray(decode_image(content(image, **settings), "it"))
    grey = COLOURS[:, :, 0]
    assert np.array_equal(found, np.stack([grey, 255 - grey, np.full_like(grey, 7)], axis=2))
    with_alpha = np.concatenate([COLOURS, COLOURS[:, :, :1]], axis=2)
    assert np.array_equal(arrays(Image.fromarray(with_alpha, "RGBA")), COLOURS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("damage", ["empty", "text", "half"])
def test_a_damaged_file_is_named(tmp_path: Path, kind: str, damage: str) -> None:
    whole = content(Image.fromarray(COLOURS), kind)
    broken = {"empty": b"", "text": b"<html>not found</html>", "half": whole[: len(whole) // 2]}
    path = tmp_path / "picture"
    path.write_bytes(broken[damage])
    for file in (str(path), broken[damage]):
        with pytest.raises(DataError, match=rf"^{path} cannot be read as an image .*get it again"):
            decode_image(file, str(path))


def test_missing_files_and_pixels_without_a_range(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.png cannot be read as an image \(FileNotFoundError"):
        ImageRequest((str(tmp_path / "absent.png"),), 4, 4)()
    with pytest.raises(DataError, match="pixels of mode F have no known range"):
        decode_image(content(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "it")


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
    assert np.array_equal(np.asarray(crop_centre(image, resize, size)), large[top : top + size, left : left + size])


def test_nothing_is_resampled_at_the_images_own_size() -> None:
    square = Image.fromarray(COLOURS[:, :20])
    assert np.array_equal(np.asarray(crop_centre(square, 20, 20)), COLOURS[:, :20])
    assert np.array_equal(np.asarray(crop_centre(square, 20, 10)), COLOURS[5:15, 5:15])


def test_shrinking_averages_and_does_not_pick() -> None:
    """A checkerboard becomes grey; without a wide filter it would stay black and white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = np.asarray(resize_image(Image.fromarray(board).convert("RGB"), 8, 8)).astype(int)
    assert abs(small - 127.5).max() < 3


def test_random_boxes_follow_the_recipe() -> None:
    """Where every draw fits, share of area and logarithm of the ratio are uniform, and so is the place."""
    shares, ratios, places = [], [], []
    for seed in range(2500):
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
    [(300, 10, (143, 0, 156, 10)), (10, 300, (0, 143, 10, 156)), (100, 100, (0, 0, 100, 100))],
)
def test_a_crop_that_never_fits_is_central(width: int, height: int, box: tuple[int, ...]) -> None:
    assert random_box(width, height, Largest()) == box


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    draws = np.random.Generator(np.random.PCG64(5))
    for index in range(5):
        shape = (24 + index, 40 - index, 3)
        Image.fromarray(draws.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / f"{index}.png")
    return tuple(str(tmp_path / f"{index}.png") for index in range(5))


def test_a_request_is_its_images_in_order(files: tuple[str, ...]) -> None:
    request = pickle.loads(pickle.dumps(ImageRequest(files, 8, 12)))
    batch = request()
    assert batch.dtype == torch.uint8
    for path, found in zip(files, batch, strict=True):
        expected = to_array(crop_centre(Image.open(path), 12, 8))
        assert np.array_equal(found.numpy(), expected)


def test_random_crops_are_a_function_of_seed_and_position(files: tuple[str, ...]) -> None:
    def crops(paths: tuple[str, ...], seed: int) -> torch.Tensor:
        return ImageRequest(paths, 8, 12, seed)()

    batch = crops(files, 4)
    assert torch.equal(batch, crops(files, 4))
    assert not torch.equal(batch, crops(files, 5))
    assert torch.equal(crops((files[4], *files[1:]), 4)[1:], batch[1:])  # whatever stands beside it
    assert not torch.equal(crops((files[1], files[0]), 4)[0], batch[1])
    for position, path in enumerate(files):
        image = Image.open(path)
        box = random_box(*image.size, random.Random(mix_seeds(4, position)))
        expected = image.crop(box).resize((8, 8), Image.Resampling.BILINEAR)
        assert np.array_equal(batch[position].numpy(), to_array(expected))


def test_the_global_random_states_are_left_alone(files: tuple[str, ...]) -> None:
    states: list[Callable[[], object]] = [random.getstate, lambda: torch.get_rng_state().tolist()]
    before = [state() for state in states]
    ImageRequest(files, 8, 12, 1)()
    assert [state() for state in states] == before


# -- what a folder contains -------------------------------------------------------------------------------------------

FILES = {
    "train/b/2.JPEG": 5,
    "train/b/10.jpg": 6,
    "train/b/inside/0.png": 7,
    "train/a/é.webp": 8,
    "train/a/1.ppm": 9,
    "train/C/x.jpeg": 1,
    "train/C/y.jpeg": 2,
    "val/b/1.jpg": 3,
    "val/a/1.jpg": 4,
}
OTHERS = ("train/a/notes.txt", "train/a/.hidden.jpg", "train/.cache/1.jpg", "labels.csv", "train/list.jpg")
CLASSES = ("C", "a", "b")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return written(tmp_path / "set", FILES)


def written(root: Path, files: dict[str, int]) -> Path:
    for name, size in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * size)
    return root


def reference(root: Path) -> tuple[dict[str, list[tuple[str, int]]], str]:
    """Path and class of each image of each part, and the digest, by `os.walk`."""
    parts: dict[str, list[tuple[str, int]]] = {"train": [], "val": []}
    lines = []
    for folder, _, files in os.walk(root):
        for file in files:
            path = Path(folder) / file
            name = path.relative_to(root).as_posix()
            if name in OTHERS:
                continue
            part, label, *rest = name.split("/")
            parts[part].append((str(path), CLASSES.index(label)))
            lines.append((part, label, os.fsencode("/".join(rest)), path.stat().st_size))
    ordered = {part: sorted(found, key=lambda item: (item[1], os.fsencode(item[0]))) for part, found in parts.items()}
    text = b"".join(
        f"{part}/{label}/".encode() + name + f"\0{size}\n".encode() for part, label, name, size in sorted(lines)
    )
    return ordered, hashlib.sha256(text).hexdigest()


def test_files_are_ordered_by_class_and_name(root: Path) -> None:
    written(root, dict.fromkeys(OTHERS, 1))
    found, (parts, digest) = scan(root), reference(root)
    for listing, part in ((found.train, "train"), (found.test, "val")):
        paths = [listing.path(row) for row in range(len(listing.labels))]
        assert list(zip(paths, listing.labels.tolist(), strict=True)) == parts[part]
        assert listing.classes == CLASSES
    assert found.digest == digest


def test_the_digest_ignores_place_times_and_other_files(root: Path, tmp_path: Path) -> None:
    digest = scan(root).digest
    other = tmp_path / "elsewhere" / "copy"
    shutil.copytree(root, other)
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
    written(other, dict.fromkeys(OTHERS, 3))
    assert scan(other).digest == digest
    written(other, {"test/a/1.jpg": 1})  # ImageNet's has no labels: val comes first
    assert scan(other).digest == digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("train/a/1.ppm", "train/a/2.ppm"),
        ("train/C", "train/D"),
        ("val/a", "val/C"),
        ("val", "test"),
        ("train/b/inside", "train/b/other"),
    ],
)
def test_the_digest_depends_on_every_name(root: Path, old: str, new: str) -> None:
    digest = scan(root).digest
    (root / old).rename(root / new)
    assert scan(root).digest != digest


def test_the_digest_depends_on_sizes(root: Path) -> None:
    digest = scan(root).digest
    written(root, {"train/a/1.ppm": 10})
    assert scan(root).digest != digest


def test_test_stands_in_for_val(root: Path) -> None:
    (root / "val").rename(root / "test")
    assert scan(root).test.folder == root / "test"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda root: shutil.rmtree(root), r"no folder .*set/train: images are expected in train/<class>"),
        (lambda root: shutil.rmtree(root / "val"), r"no folder .*set/val or .*set/test"),
        (lambda root: (root / "train" / "empty").mkdir(), r"train/empty holds 0 images .*at least 2"),
        (lambda root: (root / "train/C/x.jpeg").unlink(), r"train/C holds 1 images .*at least 2"),
        (lambda root: (root / "val" / "C").mkdir(), r"val/C holds 0 images .*at least 1"),
        (lambda root: [shutil.rmtree(root / "val" / name) for name in "ab"], r"set/val has no folders of classes"),
        (lambda root: written(root, {"val/zebra/1.jpg": 1}), r"val/zebra is a class that is not in .*set/train"),
        (lambda root: [shutil.rmtree(root / part / name) for part in ("train",) for name in "ab"], "1 folders of cl"),
        (lambda root: shutil.rmtree(root / "train") or (root / "train").write_text(""), r"no folder .*set/train"),
    ],
)
def test_other_folders_are_refused(root: Path, change: object, reason: str) -> None:
    change(root)
    with pytest.raises(DataError, match=reason):
        scan(root)


def test_a_folder_that_cannot_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"set cannot be read as a folder of images: .*Permission denied"):
        scan(root)
