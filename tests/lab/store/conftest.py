"""Stores in a bucket of moto's server and in a container of azurite on loopback ports, and one in a shared folder."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import azurite
from buckets import environment, made_bucket, moto_server
from ticketry.lab.store.mirror import Mirror
from ticketry.lab.store.store import Store, local_folder, open_remote


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


@pytest.fixture(scope="session")
def azure() -> Iterator[str]:
    """The address of azurite's account."""
    with azurite.azurite_server() as endpoint:
        yield endpoint


@pytest.fixture
def container(azure: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty container of Azure's emulator, which the environment leads to."""
    for name, value in azurite.environment(azure).items():
        monkeypatch.setenv(name, value)
    return f"az://{azurite.made_container(azure, f'tickets-{uuid.uuid4().hex}')}/of/us"


@pytest.fixture(params=["file", "s3", pytest.param("az", marks=pytest.mark.slow)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a shared store that is not made yet."""
    if request.param in ("s3", "az"):
        return str(request.getfixturevalue({"s3": "cloud", "az": "container"}[request.param]))
    return f"file://{tmp_path}/shared"


@pytest.fixture
def machine(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Store]:
    """Opens the shared store anew, as a process of the machine of that name does."""

    def opened(name: str) -> Store:
        monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path / name))
        place = local_folder(address)
        return Store(place, Mirror(open_remote(address), place, lease_seconds=30))

    return opened
