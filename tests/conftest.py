"""For all tests: one thread, no network, no cache folder of the user."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
# Machines are shared: how long an example takes says nothing.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")
os.environ.setdefault("TICKETRY_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _nothing_of_the_user(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared data sets go to one folder for the whole session, relative store folders nowhere near the checkout."""
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path_factory.getbasetemp().parent / "ticketry-cache"))


@pytest.fixture
def quick_collection() -> Iterator[None]:
    """Collecting garbage looks at what is made from here on, not at all that the process has imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
