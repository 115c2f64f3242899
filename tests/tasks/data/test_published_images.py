"""Readers of MNIST, CIFAR and Tiny ImageNet on small sets of the same form, and on hostile files."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ticketry.errors import DataError
from ticketry.tasks.data import image_files
from ticketry.tasks.data.image_files import (
    CIFAR10,
    CIFAR100,
    FASHION_MNIST,
    MNIST,
    TWENTY,
    WHOLE,
    CifarFiles,
    MnistFiles,
    TinyImageNetFiles,
    parse_idx,
    unpickle_cifar_batch,
)
from ticketry.tasks.data.locate import Place, read_verified
from ticketry.tasks.task import Splits

# -- CIFAR ------------------------------------------------------------------------------------------------------------

PIXELS = np.random.Generator(np.random.PCG64(7)).integers(0, 256, (24, 3, 32, 32), dtype=np.uint8)
LABELS = [i % 2 for i in range(24)]


def batch(published: CifarFiles, part: slice) -> bytes:
    """Some examples, pickled with the names of the numpy of 2009; CIFAR-100 has coarse labels too."""
    content = {b"data": PIXELS[part].reshape(-1, 3072), published.labels: LABELS[part], b"coarse_labels": [9]}
    return pickle.dumps(content, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


@dataclass
class Small:
    """Small batches by name, with their digests in place of the published ones."""

    published: CifarFiles
    contents: dict[str, bytes]


def write_plain(root: Path, small: Small) -> None:
    (root / small.published.folder).mkdir()
    for name, content in small.contents.items():
        (root / small.published.folder / name).write_bytes(content)


def write_xz(root: Path, small: Small) -> None:
    packed = {f"{name}.xz": lzma.compress(content) for name, content in small.contents.items()}
    write_plain(root, Small(small.published, packed))


def write_archive(root: Path, small: Small) -> None:
    with tarfile.open(root / small.published.archive, "w:gz") as archive:
        for name, content in [("batches.meta", b"?"), *reversed(small.contents.items())]:
            member = tarfile.TarInfo(f"{small.published.folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


Writer = Callable[[Path, Small], None]
WRITERS = [write_plain, write_xz, write_archive]


@pytest.fixture(params=[CIFAR10, CIFAR100], ids=["cifar10", "cifar100"])
def small(request: pytest.FixtureRequest) -> Small:
    """20 training and 4 test examples."""
    published: CifarFiles = request.param
    *train, test = published.batches
    each = 20 // len(train)
    contents = {name: batch(published, slice(each * index, each * (index + 1))) for index, name in enumerate(train)}
    contents[test] = batch(published, slice(20, 24))
    digests = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    return Small(replace(published, batches=digests, validation_per_class=2), contents)


def place(root: Path) -> tuple[Place, ...]:
    return (Place(root, "--data"),)


@pytest.mark.parametrize("write", WRITERS)
def test_cifar_is_read_from_every_layout(tmp_path: Path, small: Small, write: Writer) -> None:
    write(tmp_path, small)
    splits = small.published.read(place(tmp_path))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [16, 4, 4]
    assert splits.test.inputs.numpy().tolist() == PIXELS[20:].tolist()
    assert splits.test.targets.tolist() == LABELS[20:]
    label_of = {PIXELS[i].tobytes(): LABELS[i] for i in range(20)}
    for part in (splits.train, splits.validation):
        for image, label in zip(part.inputs, part.targets.tolist(), strict=True):
            assert label_of.pop(image.numpy().tobytes()) == label


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("write", WRITERS)
def test_nothing_is_unpickled_before_its_digest_is_checked(
    tmp_path: Path, small: Small, write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "_Batch", pickle.Unpickler)  # one that would let the bomb go off
    name, md5 = list(small.published.batches.items())[-1]
    small.contents[name] = pickle.dumps(Bomb(tmp_path / "boom"))
    write(tmp_path, small)
    with pytest.raises(DataError, match=rf"{name}.* is not the published file: md5 {md5} expected"):
        small.published.read(place(tmp_path))
    assert not (tmp_path / "boom").exists()


def test_unpickling_looks_up_names_of_numpy_alone(tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError, match="mkdir has no place in a CIFAR batch"):
        unpickle_cifar_batch(pickle.dumps(Bomb(tmp_path / "boom")), b"labels")
    assert not (tmp_path / "boom").exists()


def test_a_truncated_cifar_archive(tmp_path: Path, small: Small) -> None:
    write_archive(tmp_path, small)
    archive = tmp_path / small.published.archive
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(DataError, match=rf"{small.published.archive} cannot be unpacked .*Delete it"):
        small.published.read(place(tmp_path))


def test_an_archive_without_a_batch(tmp_path: Path, small: Small) -> None:
    name, *_ = small.contents
    del small.contents[name]
    write_archive(tmp_path, small)
    with pytest.raises(DataError, match=f"lacks {small.published.folder}/{name}"):
        small.published.read(place(tmp_path))


def test_missing_cifar_files_name_both_layouts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)data_batch_1, .*test_batch \(plain or .xz\).*or cifar-10-python.tar.gz"):
        CIFAR10.read(place(tmp_path))
    with pytest.raises(
        DataError, match=r"(?s)cifar-100-python/train, .*/test \(plain or .xz\).*or cifar-100-python.tar"
    ):
        CIFAR100.read(place(tmp_path))


@pytest.mark.slow
def test_a_published_cifar_batch(real_data: Callable[[str], Path]) -> None:
    folder = real_data("cifar10") / CIFAR10.folder
    path = next(path for path in (folder / "test_batch", folder / "test_batch.xz") if path.is_file())
    images, labels = unpickle_cifar_batch(read_verified(path, CIFAR10.batches["test_batch"]), b"labels")
    assert images.shape == (10_000, 3, 32, 32)
    assert images.dtype == np.uint8
    assert labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # cat, ship, ship, airplane, frog, frog, car, ...
    assert np.bincount(labels).tolist() == [1000] * 10


# -- MNIST ------------------------------------------------------------------------------------------------------------

DIGITS = np.random.Generator(np.random.PCG64(7)).integers(0, 256, (30, 28, 28), dtype=np.uint8)
CLASSES = (np.arange(30) % 5).astype(np.uint8)
FILES = {
    "train-images-idx3-ubyte": bytes([0, 0, 8, 3]) + struct.pack(">III", 20, 28, 28) + DIGITS[:20].tobytes(),
    "train-labels-idx1-ubyte": bytes([0, 0, 8, 1]) + struct.pack(">I", 20) + CLASSES[:20].tobytes(),
    "t10k-images-idx3-ubyte": bytes([0, 0, 8, 3]) + struct.pack(">III", 10, 28, 28) + DIGITS[20:].tobytes(),
    "t10k-labels-idx1-ubyte": bytes([0, 0, 8, 1]) + struct.pack(">I", 10) + CLASSES[20:].tobytes(),
}
SMALL = MnistFiles(
    title="Small MNIST",
    folder="Small/raw",
    url="http://127.0.0.1:1/",
    packed=("", "", "", ""),
    plain=tuple(hashlib.md5(content).hexdigest() for content in FILES.values()),
)


@pytest.fixture(params=["plain", "gz"])
def where(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Place, ...]:
    monkeypatch.setattr(image_files, "MNIST_VALIDATION_PER_CLASS", 1)
    folder = tmp_path / "Small" / "raw"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        if request.param == "plain":
            (folder / name).write_bytes(content)
        else:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return (Place(tmp_path, "--data"),)


def test_mnist_is_read_packed_and_plain(where: tuple[Place, ...]) -> None:
    splits = SMALL.read(where)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [15, 5, 10]
    assert splits.test.inputs.numpy().tolist() == DIGITS[20:, None].tolist()
    assert splits.test.targets.tolist() == CLASSES[20:].tolist()
    label_of = {DIGITS[i].tobytes(): int(CLASSES[i]) for i in range(20)}
    for part in (splits.train, splits.validation):
        assert (str(part.inputs.dtype), str(part.targets.dtype)) == ("torch.uint8", "torch.int64")
        for image, label in zip(part.inputs, part.targets.tolist(), strict=True):
            assert label_of.pop(image.numpy().tobytes()) == label
    assert not label_of


def test_a_swapped_file_is_named(where: tuple[Place, ...]) -> None:
    folder = where[0].folder / "Small" / "raw"
    first, *_, last = sorted(folder.iterdir())
    first.write_bytes(last.read_bytes())
    with pytest.raises(DataError, match=f"{first.name} is not the published file: md5"):
        SMALL.read(where)


def test_both_published_sets_name_four_files_each() -> None:
    for published in (MNIST, FASHION_MNIST):
        origins = published.collection().origins
        assert len({origin.md5 for origin in origins} | set(published.plain)) == 8
        assert all(len(digest) == 32 for digest in (*published.packed, *published.plain))
        assert all(origin.url.endswith(Path(origin.path).name) for origin in origins)


BYTES = bytes(range(24))
GOOD = bytes([0, 0, 8, 3]) + struct.pack(">III", 2, 3, 4) + BYTES


def test_idx_values_are_in_order() -> None:
    array = parse_idx(GOOD, dimensions=3, what="file")
    assert array.dtype == np.uint8
    assert array.tolist() == [[[12 * i + 4 * j + k for k in range(4)] for j in range(3)] for i in range(2)]
    assert parse_idx(b"\0\0\x08\x01\0\0\0\x03\x07\x08\x09", dimensions=1, what="file").tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "does not start as an idx file"),
        (bytes([0, 0, 13, 3]) + GOOD[4:], "does not start as an idx file"),  # floats
        (bytes([0, 0, 8, 1]) + GOOD[4:], "does not start as an idx file of 3-dimensional"),
        (GOOD[:-1], r"should hold \(2, 3, 4\) bytes after its header, but holds 23"),
        (GOOD + b"\0", "but holds 25"),
    ],
)
def test_other_content_is_not_idx(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=f"^file .*{reason}"):
        parse_idx(content, dimensions=3, what="file")


# -- Tiny ImageNet ----------------------------------------------------------------------------------------------------

WNIDS = ("n03", "n01", "n02")
FEW = {"classes": 3, "train_per_class": 4, "test_per_class": 2}


def colour(label: int, index: int) -> tuple[int, int, int]:
    """Colour of the whole image, which JPEG hardly changes."""
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


def few(published: TinyImageNetFiles, root: Path) -> TinyImageNetFiles:
    archive = root / published.archive
    md5 = hashlib.md5(archive.read_bytes()).hexdigest() if archive.is_file() else ""
    return replace(published, archive_md5=md5, origins=(), **FEW)


@pytest.fixture
def one_for_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "TINY_VALIDATION_PER_CLASS", 1)


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
]


@pytest.mark.usefixtures("one_for_validation")
@pytest.mark.parametrize(("published", "write", "annotated"), FORMS)
def test_tiny_imagenet_is_read_from_every_layout(
    tmp_path: Path, published: TinyImageNetFiles, write: Callable[..., None], annotated: bool
) -> None:
    write(tmp_path, published.folder, contents(annotated))
    train, validation, test = facts(few(published, tmp_path).read(place(tmp_path)))
    assert test == [(label, 4 + index) for label in range(3) for index in range(2)]
    assert sorted(train + validation) == [(label, index) for label in range(3) for index in range(4)]
    assert [label for label, _ in validation] == [0, 1, 2]
    assert train == sorted(train)
    other = tmp_path / "other"
    write_folder(other, TWENTY.folder, contents(False))
    assert facts(few(TWENTY, other).read(place(other))) == [train, validation, test]


def test_a_tiny_imagenet_archive_with_another_digest_is_not_opened(tmp_path: Path) -> None:
    write_tar(tmp_path, TWENTY.folder, contents(False))
    with pytest.raises(
        DataError, match=rf"tiny-imagenet-20.tar.gz is not the published file: md5 {TWENTY.archive_md5}"
    ):
        TWENTY.read(place(tmp_path))


def test_a_truncated_tiny_imagenet_archive(tmp_path: Path) -> None:
    for published, write in ((TWENTY, write_tar), (WHOLE, write_zip)):
        write(tmp_path, published.folder, contents(False))
        archive = tmp_path / published.archive
        archive.write_bytes(archive.read_bytes()[:-1000])
        with pytest.raises(DataError, match=r"cannot be read: .*Delete it|is incomplete"):
            few(published, tmp_path).read(place(tmp_path))


def test_missing_images_are_named(tmp_path: Path) -> None:
    files = contents(False)
    del files["train/n02/n02_1.JPEG"]
    write_folder(tmp_path, TWENTY.folder, files)
    with pytest.raises(DataError, match=r"tiny-imagenet-20, train holds 11 images of 3 classes, not 4 of each of 3"):
        few(TWENTY, tmp_path).read(place(tmp_path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(picture(0, 0)[:100], "n02/n02_1.JPEG cannot be read as an image"), (picture(0, 0, 60), "not of 64x64 pixels")],
)
def test_a_broken_image_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    write_folder(tmp_path, TWENTY.folder, {**contents(False), "train/n02/n02_1.JPEG": content})
    with pytest.raises(DataError, match=reason):
        few(TWENTY, tmp_path).read(place(tmp_path))


def test_missing_tiny_imagenet_files_name_both_layouts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)tiny-imagenet-20/wnids.txt.*or tiny-imagenet-20.tar.gz.*Download: none"):
        TWENTY.read(place(tmp_path))
    with pytest.raises(DataError, match=r"(?s)or tiny-imagenet-200.zip.*Download: not tried.*cs231n.stanford.edu"):
        WHOLE.read(place(tmp_path))
