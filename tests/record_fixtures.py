"""Made-up records as fixtures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from made_records import (
    REWINDS,
    at_rewind,
    bench_record,
    resnet50,
    search_record,
    stability_record,
    verify_record,
    with_pictures,
    with_rounds,
    with_verdicts,
)


@pytest.fixture(scope="session")
def make_record() -> Callable[..., dict[str, Any]]:
    """`search_record`, as a fixture because test modules cannot import each other."""
    return search_record


@pytest.fixture(scope="session")
def make_verify() -> Callable[..., dict[str, Any]]:
    """`verify_record`."""
    return verify_record


@pytest.fixture(scope="session")
def make_stability() -> Callable[..., dict[str, Any]]:
    """`stability_record`."""
    return stability_record


@pytest.fixture(scope="session")
def make_bench() -> Callable[..., dict[str, Any]]:
    """`bench_record`."""
    return bench_record


@pytest.fixture(scope="session")
def full_record() -> dict[str, Any]:
    """A run with everything that a record may hold: verdicts, budgets, pictures of the first layer's masks,
    rounds of gates."""
    return with_rounds(with_pictures(with_verdicts(search_record(levels=9))))


@pytest.fixture(scope="session")
def rewind_runs() -> list[dict[str, Any]]:
    """Four runs that differ in their rewind step."""
    return [at_rewind(search_record(levels=10, seed=index), asked) for index, asked in enumerate(REWINDS)]


@pytest.fixture(scope="session")
def many_layers() -> dict[str, tuple[int, ...]]:
    """The shapes of a model of 50 prunable tensors."""
    return resnet50()


@pytest.fixture(scope="session")
def partial_record() -> dict[str, Any]:
    """A run in progress: replicate 2 is behind, one control more so, and costs are not known yet."""
    record = search_record(levels=8)
    record["points"] = [
        point
        for point in record["points"]
        if not (point["replicate"] == 2 and point["level"] > 4)
        and not (point["role"] == "shuffled" and point["level"] > 6)
    ]
    del record["cost"], record["command"], record["config"]
    return record
