"""Pages of commands without their figures, as in tests of experiments, and one ticket for commands that take one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.calling import printed
from experiments.conftest import no_figures

__all__ = ["no_figures"]

QUICK = ["search", "imp", "--rate", "0.5", "--levels", "1", "--recipe.length", "20it", "--rewind", "3it"]
QUICK += ["--controls", "none", "--replicates", "1", "--workers", "0"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands") / "store"
    printed(*QUICK, "--store", str(folder))
    return folder


@pytest.fixture(scope="module")
def ticket(store: Path) -> Path:
    return next((store / "runs").glob("*/tickets/*-level-01"))
