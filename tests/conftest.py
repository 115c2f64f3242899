"""For all tests: one thread, no network, no cache folder of the user."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
os.environ.setdefault("TICKETRY_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _nothing_of_the_user(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared data sets go to one folder for the whole session, relative store folders nowhere near the checkout."""
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path_factory.getbasetemp().parent / "ticketry-cache"))


@pytest.fixture(scope="session")
def real_data_folder() -> Path:
    """The folder with published data sets; tests that need it are skipped where there is none."""
    beside = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("TICKETRY_DATA") or beside)
    if not folder.is_dir():
        pytest.skip("no folder of data sets: set TICKETRY_DATA")
    return folder.absolute()
