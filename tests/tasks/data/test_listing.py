"""What is found in a folder of images, and what its digest depends on."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from ticketry.errors import DataError
from ticketry.tasks.data.image_files import scan

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


def test_the_digest_does_not_depend_on_place_times_and_other_files(root: Path, tmp_path: Path) -> None:
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


def test_the_digest_depends_on_sizes_and_files(root: Path) -> None:
    digests = {scan(root).digest}
    written(root, {"train/a/1.ppm": 10})
    digests.add(scan(root).digest)
    written(root, {"train/a/1.ppm": 9, "train/a/3.ppm": 9})
    digests.add(scan(root).digest)
    (root / "train/a/3.ppm").unlink()
    assert len(digests) == 3
    assert scan(root).digest in digests


def test_test_stands_in_for_val(root: Path) -> None:
    (root / "val").rename(root / "test")
    assert scan(root).test.folder == root / "test"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda root: shutil.rmtree(root), r"no folder .*set/train: images are looked for in train/<class>"),
        (lambda root: shutil.rmtree(root / "train"), r"no folder .*set/train"),
        (lambda root: shutil.rmtree(root / "val"), r"no folder .*set/val or .*set/test"),
        (lambda root: (root / "train" / "empty").mkdir(), r"train/empty holds 0 images .*at least 2"),
        (lambda root: (root / "train/C/x.jpeg").unlink(), r"train/C holds 1 images .*at least 2"),
        (lambda root: (root / "val" / "C").mkdir(), r"val/C holds 0 images .*at least 1"),
        (lambda root: written(root, {"val/zebra/1.jpg": 1}), r"val/zebra is a class that is not in .*set/train"),
        (lambda root: [shutil.rmtree(root / part / name) for part in ("train",) for name in "ab"], "1 folders of cl"),
        (lambda root: [shutil.rmtree(root / "val" / name) for name in "ab"], r"set/val holds no folders of classes"),
        (lambda root: shutil.rmtree(root / "train") or (root / "train").write_text(""), r"no folder .*set/train"),
    ],
)
def test_what_is_no_folder_of_images_says_why(root: Path, change: object, reason: str) -> None:
    change(root)
    with pytest.raises(DataError, match=reason):
        scan(root)


def test_a_folder_that_cannot_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"set cannot be read as a folder of images: .*Permission denied"):
        scan(root)
