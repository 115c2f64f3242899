from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ticketry.tasks import data

ROOT = Path(__file__).parents[2]
MARKS = {
    "fashion-mnist": "FashionMNIST/raw",
    "mnist": "MNIST/raw",
    "cifar10": "cifar-10-batches-py",
    "tiny-imagenet-20": "tiny-imagenet-20.tar.gz",
    "uci": "uci-regression.tar.gz",
}
REAL_DATA = Path(os.environ.get("TICKETRY_DATA") or ROOT.parent / "shared" / "data").absolute()


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def sealed(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees the user's cache folder or data, nor the network."""
    monkeypatch.setenv("TICKETRY_CACHE", str(session_cache))
    monkeypatch.setenv("TICKETRY_OFFLINE", "1")
    monkeypatch.delenv("TICKETRY_DATA", raising=False)
    yield
    data._load.cache_clear()


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """The folder with the published files of a data set; the test is skipped where they are not."""

    def folder(name: str) -> Path:
        if not (REAL_DATA / MARKS[name]).exists():
            pytest.skip(f"the published files of {name} are not in {REAL_DATA}: set TICKETRY_DATA")
        return REAL_DATA

    return folder
