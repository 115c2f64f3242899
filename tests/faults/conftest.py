"""A search that nothing disturbs, which every other has to equal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.conftest import no_figures
from faults.searching import searched_here

__all__ = ["no_figures"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(600))
            if not sys.platform.startswith("linux"):
                item.add_marker(pytest.mark.skip(reason="signals and mounts are tested on Linux"))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """In this process; most others have workers, and have to find the same."""
    return searched_here(tmp_path_factory.mktemp("undisturbed") / "store")


@pytest.fixture
def finished_store(undisturbed: dict[str, Any]) -> Path:
    """The store of the undisturbed search, to copy."""
    return Path(undisturbed["store"])
