"""A store in a bucket of moto's server on a loopback port, and one in a shared folder; and what stands between."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from buckets import environment, made_bucket, moto_server


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of moto's server."""
    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture
def cloud(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket, which the environment leads to."""
    for name, value in environment(s3).items():
        monkeypatch.setenv(name, value)
    return f"s3://{made_bucket(s3, f'tickets-{uuid.uuid4().hex}')}/of/us"


@pytest.fixture(params=["file", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a shared store that is not made yet."""
    if request.param == "s3":
        return str(request.getfixturevalue("cloud"))
    return f"file://{tmp_path}/shared"
