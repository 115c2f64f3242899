"""The reader of both MNISTs on a small set of the same form."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from ticketry.errors import DataError
from ticketry.tasks.data import published_images as mnist
from ticketry.tasks.data.locate import Place

PIXELS = np.random.Generator(np.random.PCG64(7)).integers(0, 256, (30, 28, 28), dtype=np.uint8)
LABELS = (np.arange(30) % 5).astype(np.uint8)
FILES = {
    "train-images-idx3-ubyte": bytes([0, 0, 8, 3]) + struct.pack(">III", 20, 28, 28) + PIXELS[:20].tobytes(),
    "train-labels-idx1-ubyte": bytes([0, 0, 8, 1]) + struct.pack(">I", 20) + LABELS[:20].tobytes(),
    "t10k-images-idx3-ubyte": bytes([0, 0, 8, 3]) + struct.pack(">III", 10, 28, 28) + PIXELS[20:].tobytes(),
    "t10k-labels-idx1-ubyte": bytes([0, 0, 8, 1]) + struct.pack(">I", 10) + LABELS[20:].tobytes(),
}
SMALL = mnist.MnistFiles(
    title="Small MNIST",
    folder="Small/raw",
    url="http://127.0.0.1:1/",
    packed=("", "", "", ""),
    plain=tuple(hashlib.md5(content).hexdigest() for content in FILES.values()),
)


@pytest.fixture(params=["plain", "gz"])
def where(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Place, ...]:
    monkeypatch.setattr(mnist, "MNIST_VALIDATION_PER_CLASS", 1)
    folder = tmp_path / "Small" / "raw"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        if request.param == "plain":
            (folder / name).write_bytes(content)
        else:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return (Place(tmp_path, "--data"),)


def test_pixels_and_labels_stay_together(where: tuple[Place, ...]) -> None:
    splits = SMALL.read(where)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [15, 5, 10]
    assert splits.test.inputs.numpy().tolist() == PIXELS[20:, None].tolist()
    assert splits.test.targets.tolist() == LABELS[20:].tolist()
    label_of = {PIXELS[i].tobytes(): int(LABELS[i]) for i in range(20)}
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
    for published in (mnist.MNIST, mnist.FASHION_MNIST):
        origins = published.collection().origins
        assert len({origin.md5 for origin in origins} | set(published.plain)) == 8
        assert all(len(digest) == 32 for digest in (*published.packed, *published.plain))
        assert all(origin.url.endswith(Path(origin.path).name) for origin in origins)
