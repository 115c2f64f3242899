"""One network and its texts for all tests of fine-tuning."""

from __future__ import annotations

from pathlib import Path

import pytest

from a_classifier import rows, saved, written


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("hf") / "tiny-bert")


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("texts") / "said.jsonl", rows(120))
