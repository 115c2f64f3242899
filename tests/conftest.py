"""For all tests: one thread, no network, no cache folder of the user."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# Tests start hundreds of processes, and pytest rewrites 9,000 assertions: without bytecode on disk that takes minutes.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
torch.set_num_threads(1)
# Machines are shared: how long an example takes says nothing.
settings.register_profile("all", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)
settings.register_profile("quick", settings.get_profile("all"), max_examples=4)
settings.load_profile("all")
os.environ.setdefault("TICKETRY_OFFLINE", "1")
# A job in the background of a script, or under nohup, begins with these ignored, and so would what tests end.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _name in ("SIGQUIT", "SIGHUP"):
    if hasattr(signal, _name):
        signal.signal(getattr(signal, _name), signal.SIG_DFL)

# Tests make many objects and few cycles: looking for cycles after each 700 objects takes a twentieth of their time.
gc.set_threshold(20_000, 10, 10)

# No power is cut during tests, and a disk that discards what it frees takes milliseconds for each file that is flushed.
os.fsync = lambda descriptor: None

LONGEST = (
    "tests/test_entry_points.py",
    "tests/engine/test_export.py",
    "tests/search/test_contract.py",
    "tests/report/html/test_browser.py",
    "tests/search/gating/test_gating.py",
    "tests/lab/runners/test_processes.py",
    "tests/engine/training/test_sparse_training.py",
    "tests/test_strange_stores.py",
    "tests/search/gating/test_rounds.py",
    "tests/faults/test_kill.py",
    "tests/report/figures/test_figures.py",
    "tests/lab/store/test_maintenance.py",
    "tests/engine/kernels/test_operations.py",
    "tests/engine/test_compiled.py",
    "tests/engine/test_families.py",
    "tests/test_wrong_arguments.py",
    "tests/test_page_examples.py",
    "tests/budgets/test_cost.py",
    "tests/experiments/test_costs.py",
    "tests/test_docstrings.py",
    "tests/lab/training/test_execute.py",
    "tests/search/test_iterative.py",
    "tests/test_plugins.py",
    "tests/lab/training/test_data_loading.py",
    "tests/tasks/test_dataset_task.py",
    "tests/test_files.py",
)
"""Files whose tests take longest, the longest first."""


def pytest_configure(config: pytest.Config) -> None:
    """Tests that draw their examples, and do not say how many, draw fewer where the slow tests are left out."""
    settings.load_profile("quick" if config.option.markexpr == "not slow" else "all")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes take files in turn, none is left alone with a long one at the end."""
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))


def pytest_collection_finish() -> None:
    """Collecting garbage looks at what tests make, not each time at all that was imported for them."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_of_the_user(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared data sets go to one folder for the whole session, relative store folders nowhere near the checkout."""
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path_factory.getbasetemp().parent / "ticketry-cache"))


@pytest.fixture
def quick_collection() -> None:
    """Collecting garbage looks at what is made from here on, not at what earlier tests left either."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store for the tests of a file that look at what was trained: what several of them ask for is trained once."""
    return tmp_path_factory.mktemp("shared") / "store"
