"""The data sets as `load` gives them, against what their authors and textbooks state of them."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ticketry.errors import DataError, TaskError
from ticketry.tasks import data
from ticketry.tasks.data import image_files as mnist
from ticketry.tasks.facts import DATA_SETS
from ticketry.tasks.task import Split, Splits

GOLDEN = {
    "digits": "8d344be093491c4d4a5e136b0ce814304fde990587fd554215b34bca344ed4e7",
    "fashion-mnist": "048d5a390442c556972c6a0a031f3850e46aa37588a94425838619dc39f94243",
    "cifar10": "a941a7b0344d25f10ac27cf48e563d21c28be5bbd7e54b701dc860f9473492af",
    "tiny-imagenet-20": "c66850c8bf3d7530d9506da5a011e6489fe2d568fc22851243eb2f3bf12b1571",
}
"""sha256 of the bytes of train, validation and test inputs and targets: fixed for ever, results depend on it."""

TEST_LABELS = {"fashion-mnist": [9, 2, 1, 1, 6, 1, 4, 6, 5, 7], "cifar10": [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]}
"""The first of the published test sets."""


def parts(splits: Splits) -> tuple[Split, Split, Split]:
    return splits.train, splits.validation, splits.test


def fingerprint(splits: Splits) -> str:
    found = hashlib.sha256()
    for part in parts(splits):
        found.update(part.inputs.numpy().tobytes())
        found.update(part.targets.numpy().astype("<i8").tobytes())
    return found.hexdigest()


def pixel_statistics(images: list[torch.Tensor], largest: float) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, from the histogram of stored values."""
    means, stds = [], []
    for channel in range(images[0].shape[1]):
        counts = sum(torch.bincount(part[:, channel].reshape(-1), minlength=256).double() for part in images)
        values = torch.arange(len(counts), dtype=torch.float64) / largest
        mean = (counts * values).sum() / counts.sum()
        means.append(float(mean))
        stds.append(float(((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt()))
    return means, stds


@pytest.fixture
def load(real_data: Callable[[str], Path]) -> Callable[[str], Splits]:
    return lambda name: data.load(name, None if name == "digits" else real_data(name))


@pytest.mark.parametrize(
    "name",
    [
        "digits",
        "fashion-mnist",
        pytest.param("cifar10", marks=pytest.mark.slow),
        pytest.param("tiny-imagenet-20", marks=pytest.mark.slow),
    ],
)
def test_published_facts(load: Callable[[str], Splits], name: str) -> None:
    """Sizes, classes, labels, mean, standard deviation, and the bits of all splits."""
    splits, preset = load(name), DATA_SETS.get(name)
    for part, count in zip(parts(splits), preset.examples, strict=True):
        assert part.inputs.shape == (count, *preset.shape)
        assert part.inputs.dtype == torch.uint8
        assert part.targets.dtype == torch.int64
        assert int(part.inputs.max()) == preset.largest
    held_out = (splits.validation, splits.test) if name == "digits" else parts(splits)
    for part in held_out:
        assert torch.bincount(part.targets).tolist() == [len(part) // preset.classes] * preset.classes
    if name in TEST_LABELS:
        assert splits.test.targets[:10].tolist() == TEST_LABELS[name]
    # the published mean and standard deviation are of the whole training set
    means, stds = pixel_statistics(
        [part.inputs for part in parts(splits)[: 1 if name == "digits" else 2]], preset.largest
    )
    assert means == pytest.approx(preset.mean, abs=5e-5)
    assert stds == pytest.approx(preset.std, abs=6e-5)
    assert fingerprint(splits) == GOLDEN[name]


def test_splits_of_digits_are_the_whole_set_once(load: Callable[[str], Splits]) -> None:
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    expected = sorted((*map(int, row), int(label)) for row, label in zip(values, labels, strict=True))
    found = [
        (*image.flatten().tolist(), label)
        for part in parts(load("digits"))
        for image, label in zip(part.inputs, part.targets.tolist(), strict=True)
    ]
    assert sorted(found) == expected


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_damaged_published_file(real_data: Callable[[str], Path], tmp_path: Path, damage: str) -> None:
    source = real_data("fashion-mnist") / "FashionMNIST" / "raw"
    folder = tmp_path / "FashionMNIST" / "raw"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*-ubyte"))
    labels = folder / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(labels.read_bytes()))
    content[100] ^= 1
    labels.write_bytes(labels.read_bytes()[:-100] if damage == "truncated" else gzip.compress(content))
    with pytest.raises(DataError, match=rf"{labels}.* md5 {mnist.FASHION_MNIST.plain[3]} expected"):
        mnist.FASHION_MNIST.read(data.places(tmp_path))


def test_loaded_once_a_process_and_kept_for_others(
    load: Callable[[str], Splits], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path))
    first = load("digits")
    assert load("digits") is first
    data._load.cache_clear()
    monkeypatch.setattr(mnist, "read_digits", lambda where: pytest.fail("read again"))
    assert fingerprint(load("digits")) == fingerprint(first)


def test_an_unknown_data_set() -> None:
    with pytest.raises(TaskError, match=r"'svhn'.*digits, mnist"):
        data.load("svhn")
