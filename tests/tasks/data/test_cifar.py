"""The reader of CIFAR-10 and CIFAR-100 on small batches of the same form, and on hostile ones."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from ticketry.errors import DataError
from ticketry.tasks.data import published_images as cifar
from ticketry.tasks.data.locate import Place, unpacked

PIXELS = np.random.Generator(np.random.PCG64(7)).integers(0, 256, (24, 3, 32, 32), dtype=np.uint8)
LABELS = [i % 2 for i in range(24)]


def batch(published: cifar.CifarFiles, part: slice) -> bytes:
    """Some examples, pickled with the names of the numpy of 2009; CIFAR-100 has coarse labels too."""
    content = {b"data": PIXELS[part].reshape(-1, 3072), published.labels: LABELS[part], b"coarse_labels": [9]}
    return pickle.dumps(content, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


@dataclass
class Small:
    """Small batches by name; their digests stand in for the published ones."""

    published: cifar.CifarFiles
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


@pytest.fixture(params=[cifar.CIFAR10, cifar.CIFAR100], ids=["cifar10", "cifar100"])
def small(request: pytest.FixtureRequest) -> Small:
    """20 training and 4 test examples."""
    published: cifar.CifarFiles = request.param
    *train, test = published.batches
    each = 20 // len(train)
    contents = {name: batch(published, slice(each * index, each * (index + 1))) for index, name in enumerate(train)}
    contents[test] = batch(published, slice(20, 24))
    digests = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    return Small(replace(published, batches=digests, validation_per_class=2), contents)


def place(root: Path) -> tuple[Place, ...]:
    return (Place(root, "--data"),)


@pytest.mark.parametrize("write", WRITERS)
def test_pixels_and_labels_stay_together(tmp_path: Path, small: Small, write: Writer) -> None:
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


def test_the_bomb_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "boom")))
    assert (tmp_path / "boom").is_dir()


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("which", [0, -1])
def test_nothing_is_unpickled_before_its_digest_is_checked(
    tmp_path: Path, small: Small, write: Writer, which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar, "_Batch", pickle.Unpickler)  # one that would let the bomb go off
    name, md5 = list(small.published.batches.items())[which]
    small.contents[name] = pickle.dumps(Bomb(tmp_path / "boom"))
    write(tmp_path, small)
    with pytest.raises(DataError, match=rf"{name}.* is not the published file: md5 {md5} expected"):
        small.published.read(place(tmp_path))
    assert not (tmp_path / "boom").exists()


def test_names_other_than_numpys_are_never_looked_up(tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError, match="mkdir has no place in a CIFAR batch"):
        cifar.unpickle(pickle.dumps(Bomb(tmp_path / "boom")), b"labels")
    assert not (tmp_path / "boom").exists()


def test_a_truncated_archive(tmp_path: Path, small: Small) -> None:
    write_archive(tmp_path, small)
    archive = tmp_path / small.published.archive
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(DataError, match=rf"{small.published.archive} cannot be unpacked .*Delete it"):
        small.published.read(place(tmp_path))


def test_an_archive_without_a_batch(tmp_path: Path, small: Small) -> None:
    name, *_ = small.contents
    del small.contents[name]
    write_archive(tmp_path, small)
    with pytest.raises(DataError, match=f"holds no {small.published.folder}/{name}"):
        small.published.read(place(tmp_path))


def test_absent_names_both_layouts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)data_batch_1, .*test_batch \(plain or .xz\).*or cifar-10-python.tar.gz"):
        cifar.CIFAR10.read(place(tmp_path))
    with pytest.raises(
        DataError, match=r"(?s)cifar-100-python/train, .*/test \(plain or .xz\).*or cifar-100-python.tar"
    ):
        cifar.CIFAR100.read(place(tmp_path))


def test_a_published_batch(real_data: Callable[[str], Path]) -> None:
    folder = real_data("cifar10") / cifar.CIFAR10.folder
    path = next(path for path in (folder / "test_batch", folder / "test_batch.xz") if path.is_file())
    images, labels = cifar.unpickle(unpacked(path, cifar.CIFAR10.batches["test_batch"]), b"labels")
    assert images.shape == (10_000, 3, 32, 32)
    assert images.dtype == np.uint8
    assert labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # cat, ship, ship, airplane, frog, frog, car, ...
    assert np.bincount(labels).tolist() == [1000] * 10
