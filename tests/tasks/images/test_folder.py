"""Tasks of folders of images: splits, keys, options and recipes."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ticketry.errors import TaskError
from ticketry.tasks import catalogue
from ticketry.tasks.facts import IMAGENET, RESIDUAL
from ticketry.tasks.images import FolderClassification

COUNTS = {"cat": 12, "ant": 25, "bee": 5}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images of several sizes with the pixels (class, number, 0); one class has no test images."""
    for part, counts in (("train", COUNTS), ("val", {"cat": 3, "ant": 2})):
        for name, count in counts.items():
            folder = tmp_path / "set" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.zeros((10, 8 + index % 3, 3), np.uint8)
                pixels[:, :] = sorted(COUNTS).index(name), index + (100 if part == "val" else 0), 0
                Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return tmp_path / "set"


def task(root: Path, model: str | None = "lenet-300-100", **options: object) -> FolderClassification:
    texts = {name: str(value) for name, value in options.items()}
    found = catalogue.get("imagefolder", model=model, options={"path": str(root), "size": "8", "resize": "8", **texts})
    assert isinstance(found, FolderClassification)
    return found


def test_splits_hold_each_image_once(root: Path) -> None:
    splits = task(root, validation="0.2").load()
    assert splits.train.targets.bincount().tolist() == [20, 4, 10]
    assert splits.validation.targets.bincount().tolist() == [5, 1, 2]  # 2.4, rounded
    assert splits.test.targets.tolist() == [0, 0, 2, 2, 2]
    seen = []
    for part in (splits.train, splits.validation, splits.test):
        assert part.reader is not None
        images = part.reader.request(part.inputs)()
        assert (images.dtype, images.shape[1:]) == (torch.uint8, (3, 8, 8))
        assert images[:, 0, 0, 0].tolist() == part.targets.tolist()
        seen += [tuple(pixel) for pixel in images[:, :2, 0, 0].tolist()]
    expected = [(sorted(COUNTS).index(name), index) for name, count in COUNTS.items() for index in range(count)]
    expected += [(0, 100), (0, 101), (2, 100), (2, 101), (2, 102)]
    assert sorted(seen) == sorted(expected)


def test_fewer_training_images_leave_validation_and_test_alone(root: Path) -> None:
    whole, few = task(root).load(), task(root, train=6).load()
    assert few.train.targets.bincount().tolist() == [2, 2, 2]
    assert set(few.train.inputs.tolist()) < set(whole.train.inputs.tolist())
    assert few.train.reader is not None
    images = few.train.reader.request(few.train.inputs)()
    assert images[:, 0, 0, 0].tolist() == few.train.targets.tolist()
    assert few.validation.inputs.tolist() == whole.validation.inputs.tolist()
    with pytest.raises(TaskError, match="multiple of 3, the number of classes, up to 12"):
        task(root, train=15).load()


def test_the_key_ignores_place_and_readers(root: Path, tmp_path: Path, monkeypatch) -> None:
    key = task(root).key()
    assert json.loads(json.dumps(key)) == key
    assert (key["name"], key["model"]) == ("imagefolder", "lenet-300-100")
    assert "set" not in json.dumps(key)
    assert task(root, workers=7).key() == key
    assert task(root, validation="0.10").key() == key
    shutil.copytree(root, tmp_path / "copy")
    assert task(tmp_path / "copy").key() == key
    monkeypatch.chdir(tmp_path)
    assert task(Path("copy")).key() == key


def test_the_key_depends_on_content_and_options(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "other")
    (tmp_path / "other/train/ant/000.png").unlink()
    tasks = [
        task(root),
        task(tmp_path / "other"),
        task(root, size=4),
        task(root, resize=10),
        task(root, validation="0.2"),
        task(root, train=6),
        task(root, mean="0.5 0.5 0.5"),
        task(root, std="0.5,0.5,0.5"),
        task(root, model="lenet-300-100@0.5"),
    ]
    assert len({json.dumps(each.key(), sort_keys=True) for each in tasks}) == len(tasks)


def test_the_folder_is_scanned_once_and_late(root: Path, monkeypatch) -> None:
    from ticketry.tasks import images

    calls: list[Path] = []
    scan = images.scan
    monkeypatch.setattr(images, "scan", lambda path: calls.append(path) or scan(path))
    found = task(root)
    assert calls == []
    for _ in range(3):
        found.key(), found.load(), found.build()
    assert calls == [root]


def test_the_network_has_as_many_outputs_as_classes_and_pixels_are_normalised(root: Path) -> None:
    found = task(root)
    stored = torch.full((2, 3, 8, 8), 51, dtype=torch.uint8)
    prepared = found.prepare(stored)
    expected = [(0.2 - mean) / std for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    assert prepared[0, :, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert found.build()(prepared).shape == (2, 3)
    other = task(root, mean="0.2 0.2 0.2", std="0.5,0.5,0.5")
    assert other.prepare(stored).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("model", "size", "augment"),
    [
        (None, 224, ("resized_crop", "flip")),
        ("resnet-50-imagenet", 64, ("resized_crop", "flip")),
        ("resnet-18", 64, ("flip", "crop")),
    ],
)
def test_recipes(root: Path, model: str | None, size: int, augment: tuple[str, ...]) -> None:
    found = catalogue.get("imagefolder", model=model, options={"size": str(size)})
    assert found.recipe.augment == augment
    expected = IMAGENET if "resized_crop" in augment else RESIDUAL
    assert found.recipe.changed(augment=()) == expected.changed(augment=())


def test_evaluation_resizes_to_eight_sevenths_and_takes_fewer_large_images_at_once(root: Path) -> None:
    for size, resize in ((224, 256), (64, 73), (299, 342), (1, 1)):
        found = catalogue.get("imagefolder", model="lenet-300-100", options={"path": str(root), "size": str(size)})
        assert found.resize == resize
    batches = {size: task(root, size=size, resize=size).load().test.reader.batch for size in (8, 64, 224, 5000)}
    assert batches == {8: 500, 64: 500, 224: 40, 5000: 1}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"colour": "1"}, "imagefolder has no option colour: it has path, size"),
        ({"size": "0"}, "option size of imagefolder is a whole number, at least 1, not '0'"),
        ({"size": "64", "resize": "60"}, "option resize .* at least 64, not '60'"),
        ({"workers": "-1"}, "option workers .* at least 0"),
        ({"size": "big"}, "not 'big'"),
        ({"train": "1e3"}, "option train .* not '1e3'"),
        ({"validation": "1/0"}, "not '1/0'"),
        ({"mean": "0.5"}, "option mean .* three numbers"),
        ({"std": "nan 0.5 0.5"}, "option std .* three numbers"),
        ({"validation": "0"}, "option validation .* between 0 and 1, not '0'"),
        ({"mean": "0.5 0.5 x"}, "option mean .* three numbers"),
        ({"std": "0.5 0.5 0"}, "option std .* three numbers"),
    ],
)
def test_wrong_options(options: dict[str, str], reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        catalogue.get("imagefolder", model="lenet-300-100", options={"path": ".", **options})


def test_other_wrong_requests(root: Path) -> None:
    assert task(root, validation="1/5").validation == Fraction(1, 5)
    with pytest.raises(TaskError, match=r"needs to know the folder: --option path=DIR"):
        catalogue.get("imagefolder").key()
    with pytest.raises(TaskError, match="at least 32x32 pixels, not 8x8"):
        task(root, model=None)
    with pytest.raises(TaskError, match="no network 'alexnet'"):
        task(root, model="alexnet")
    with pytest.raises(TaskError, match=r"no augmentation 'resized_crop': choose from flip, crop"):
        catalogue.get("cifar10").augment(torch.zeros(1, 3, 4, 4), ("resized_crop",), torch.Generator())


@pytest.mark.parametrize("kind", ["imagefolder", "imageshards"])
def test_a_request_has_the_absolute_path(root: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(root.parent)
    options = {"path": root.name, "size": "8", "resize": "8"}
    found = catalogue.get(kind, model="lenet-300-100", options=options)
    assert dict(found.spec.options) == {**options, "path": str(root)}
