"""The reader of Tiny ImageNet on small sets in both published forms, and on the real set of 20 classes."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ticketry.errors import DataError
from ticketry.tasks.data import published_images as tiny_imagenet
from ticketry.tasks.data.locate import Place
from ticketry.tasks.data.published_images import TWENTY, WHOLE
from ticketry.tasks.task import Splits

WNIDS = ("n03", "n01", "n02")
FEW = {"classes": 3, "train_per_class": 4, "test_per_class": 2}


def colour(label: int, index: int) -> tuple[int, int, int]:
    """Of the whole image: it survives JPEG nearly."""
    return 40 * label + 20, 20 * index + 20, 200


def picture(label: int, index: int, size: int = 64) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour(label, index)).save(file, "JPEG", quality=95)
    return file.getvalue()


def contents(annotated: bool) -> dict[str, bytes]:
    """Files of three classes: as Stanford ships them, or with the validation images in a folder for each class."""
    files = {"wnids.txt": "\n".join(WNIDS).encode(), "words.txt": b"n01\tfrog"}
    lines = []
    for label, wnid in enumerate(sorted(WNIDS)):
        for index in range(4):
            folder = f"train/{wnid}/images" if annotated else f"train/{wnid}"
            files[f"{folder}/{wnid}_{index}.JPEG"] = picture(label, index)
        for index in range(2):
            name = f"val_{100 + 10 * index + label}.JPEG"
            files[f"val/images/{name}" if annotated else f"val/{wnid}/{name}"] = picture(label, 4 + index)
            lines.append(f"{name}\t{wnid}\t0\t32\t44\t62")
    if annotated:
        files["val/val_annotations.txt"] = "\n".join(reversed(lines)).encode()
        files["train/n01/n01_boxes.txt"] = b"n01_0.JPEG\t0\t10\t63\t58"
        files["test/images/test_0.JPEG"] = b"no label"
    return files


def write_folder(root: Path, name: str, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (root / name / path).parent.mkdir(parents=True, exist_ok=True)
        (root / name / path).write_bytes(content)


def write_zip(root: Path, name: str, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
        for path, content in files.items():
            archive.writestr(f"{name}/{path}", content)


def write_tar(root: Path, name: str, files: dict[str, bytes]) -> None:
    with tarfile.open(root / f"{name}.tar.gz", "w:gz") as archive:
        for path, content in reversed(files.items()):
            member = tarfile.TarInfo(f"{name}/{path}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def place(root: Path) -> tuple[Place, ...]:
    return (Place(root, "--data"),)


def small(published: tiny_imagenet.TinyImageNetFiles, root: Path) -> tiny_imagenet.TinyImageNetFiles:
    archive = root / published.archive
    md5 = hashlib.md5(archive.read_bytes()).hexdigest() if archive.is_file() else ""
    return replace(published, archive_md5=md5, origins=(), **FEW)


@pytest.fixture(autouse=True)
def one_for_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_imagenet, "TINY_VALIDATION_PER_CLASS", 1)


def facts(splits: Splits) -> list[list[tuple[int, int]]]:
    """(class, which of its images) of each example, by its colour."""
    found = []
    for part in (splits.train, splits.validation, splits.test):
        assert part.inputs.shape[1:] == (3, 64, 64)
        middle = part.inputs[:, :, 32, 32].numpy().astype(int)
        assert np.all(np.abs(middle[:, 2] - 200) < 6)
        labels, indices = np.rint((middle[:, 0] - 20) / 40), np.rint((middle[:, 1] - 20) / 20)
        assert labels.tolist() == part.targets.tolist()
        found.append(list(zip(labels.astype(int).tolist(), indices.astype(int).tolist(), strict=True)))
    return found


FORMS = [
    (WHOLE, write_folder, True),
    (WHOLE, write_zip, True),
    (TWENTY, write_folder, False),
    (TWENTY, write_tar, False),
    (TWENTY, write_folder, True),
]


@pytest.mark.parametrize(("published", "write", "annotated"), FORMS)
def test_every_form_gives_the_same_examples_in_the_same_order(
    tmp_path: Path, published: tiny_imagenet.TinyImageNetFiles, write: Callable[..., None], annotated: bool
) -> None:
    write(tmp_path, published.folder, contents(annotated))
    train, validation, test = facts(small(published, tmp_path).read(place(tmp_path)))
    assert test == [(label, 4 + index) for label in range(3) for index in range(2)]
    assert sorted(train + validation) == [(label, index) for label in range(3) for index in range(4)]
    assert [label for label, _ in validation] == [0, 1, 2]
    assert train == sorted(train)
    other = tmp_path / "other"
    write_folder(other, TWENTY.folder, contents(False))
    assert facts(small(TWENTY, other).read(place(other))) == [train, validation, test]


def test_an_archive_with_another_digest_is_not_opened(tmp_path: Path) -> None:
    write_tar(tmp_path, TWENTY.folder, contents(False))
    with pytest.raises(
        DataError, match=rf"tiny-imagenet-20.tar.gz is not the published file: md5 {TWENTY.archive_md5}"
    ):
        TWENTY.read(place(tmp_path))


@pytest.mark.parametrize("size", [40, 1000])
def test_a_truncated_archive(tmp_path: Path, size: int) -> None:
    for published, write in ((TWENTY, write_tar), (WHOLE, write_zip)):
        write(tmp_path, published.folder, contents(False))
        archive = tmp_path / published.archive
        archive.write_bytes(archive.read_bytes()[:-size])
        with pytest.raises(DataError, match=r"cannot be read: .*Delete it|is incomplete"):
            small(published, tmp_path).read(place(tmp_path))


def test_a_set_that_lacks_images_is_told(tmp_path: Path) -> None:
    files = contents(False)
    del files["train/n02/n02_1.JPEG"]
    write_folder(tmp_path, TWENTY.folder, files)
    with pytest.raises(DataError, match=r"tiny-imagenet-20, train holds 11 images of 3 classes, not 4 of each of 3"):
        small(TWENTY, tmp_path).read(place(tmp_path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(picture(0, 0)[:100], "n02/n02_1.JPEG cannot be read as an image"), (picture(0, 0, 60), "not of 64x64 pixels")],
)
def test_a_broken_image_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    write_folder(tmp_path, TWENTY.folder, {**contents(False), "train/n02/n02_1.JPEG": content})
    with pytest.raises(DataError, match=reason):
        small(TWENTY, tmp_path).read(place(tmp_path))


def test_absent_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)tiny-imagenet-20/wnids.txt.*or tiny-imagenet-20.tar.gz.*Download: none"):
        TWENTY.read(place(tmp_path))
    with pytest.raises(DataError, match=r"(?s)or tiny-imagenet-200.zip.*Download: not tried.*cs231n.stanford.edu"):
        WHOLE.read(place(tmp_path))
