"""The reader of CIFAR-10 on small batches of the same form, and on hostile ones."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ticketry.errors import DataError
from ticketry.tasks.data import cifar
from ticketry.tasks.data.files import unpacked
from ticketry.tasks.data.locate import Place

PIXELS = np.random.Generator(np.random.PCG64(7)).integers(0, 256, (24, 3, 32, 32), dtype=np.uint8)
LABELS = [i % 2 for i in range(24)]


def batch(index: int) -> bytes:
    """Four examples, pickled with the names of the numpy of 2009."""
    part = slice(4 * index, 4 * index + 4)
    content = {b"data": PIXELS[part].reshape(4, 3072), b"labels": LABELS[part]}
    return pickle.dumps(content, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_plain(root: Path, contents: dict[str, bytes]) -> None:
    (root / cifar.FOLDER).mkdir()
    for name, content in contents.items():
        (root / cifar.FOLDER / name).write_bytes(content)


def write_xz(root: Path, contents: dict[str, bytes]) -> None:
    write_plain(root, {f"{name}.xz": lzma.compress(content) for name, content in contents.items()})


def write_archive(root: Path, contents: dict[str, bytes]) -> None:
    with tarfile.open(root / cifar.ARCHIVE, "w:gz") as archive:
        for name, content in [("batches.meta", b"?"), *reversed(contents.items())]:
            member = tarfile.TarInfo(f"{cifar.FOLDER}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


Writer = Callable[[Path, dict[str, bytes]], None]
WRITERS = [write_plain, write_xz, write_archive]


@pytest.fixture
def contents(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Small batches by name; their digests stand in for the published ones."""
    monkeypatch.setattr(cifar, "VALIDATION_PER_CLASS", 2)
    small = {name: batch(index) for index, name in enumerate(cifar.BATCHES)}
    for name, content in small.items():
        monkeypatch.setitem(cifar.BATCHES, name, hashlib.md5(content).hexdigest())
    return small


def place(root: Path) -> tuple[Place, ...]:
    return (Place(root, "--data"),)


@pytest.mark.parametrize("write", WRITERS)
def test_pixels_and_labels_stay_together(tmp_path: Path, contents: dict[str, bytes], write: Writer) -> None:
    write(tmp_path, contents)
    splits = cifar.read(place(tmp_path))
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
@pytest.mark.parametrize("name", ["data_batch_1", "test_batch"])
def test_nothing_is_unpickled_before_its_digest_is_checked(
    tmp_path: Path, contents: dict[str, bytes], write: Writer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar, "_Batch", pickle.Unpickler)  # one that would let the bomb go off
    write(tmp_path, {**contents, name: pickle.dumps(Bomb(tmp_path / "boom"))})
    with pytest.raises(DataError, match=rf"{name}.* is not the published file: md5 {cifar.BATCHES[name]} expected"):
        cifar.read(place(tmp_path))
    assert not (tmp_path / "boom").exists()


def test_names_other_than_numpys_are_never_looked_up(tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError, match="mkdir has no place in a CIFAR-10 batch"):
        cifar.unpickle(pickle.dumps(Bomb(tmp_path / "boom")))
    assert not (tmp_path / "boom").exists()


def test_a_truncated_archive(tmp_path: Path, contents: dict[str, bytes]) -> None:
    write_archive(tmp_path, contents)
    archive = tmp_path / cifar.ARCHIVE
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(DataError, match=rf"{cifar.ARCHIVE} cannot be unpacked .*Delete it"):
        cifar.read(place(tmp_path))


def test_an_archive_without_a_batch(tmp_path: Path, contents: dict[str, bytes]) -> None:
    del contents["data_batch_3"]
    write_archive(tmp_path, contents)
    with pytest.raises(DataError, match="holds no cifar-10-batches-py/data_batch_3"):
        cifar.read(place(tmp_path))


def test_absent_names_both_layouts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)data_batch_1, .*test_batch \(plain or .xz\).*or cifar-10-python.tar.gz"):
        cifar.read(place(tmp_path))


def test_a_published_batch(real_data: Callable[[str], Path]) -> None:
    folder = real_data("cifar10") / cifar.FOLDER
    path = next(path for path in (folder / "test_batch", folder / "test_batch.xz") if path.is_file())
    images, labels = cifar.unpickle(unpacked(path, cifar.BATCHES["test_batch"]))
    assert images.shape == (10_000, 3, 32, 32)
    assert images.dtype == np.uint8
    assert labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # cat, ship, ship, airplane, frog, frog, car, ...
    assert np.bincount(labels).tolist() == [1000] * 10
