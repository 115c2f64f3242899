"""A search in a container of Azure's emulator, killed on one machine and gone on with on another."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from azurite import azurite_server, environment, made_container
from faults.disturbed import difference, left_behind
from faults.machines import begun, result, wait_for_state
from ticketry.lab.store.bucket import Bucket

SEARCH = [
    *("search", "iterative", "--task", "digits", "--replicates", "1", "--levels", "1", "--rewind", "3it", "--json"),
    *("--recipe.length", "400it", "--checkpoint-seconds", "0.05", "--workers", "0"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with azurite_server() as endpoint:
        yield endpoint


@pytest.mark.slow
def test_killed_on_one_machine_it_goes_on_on_another_with_the_same_bits(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, known = tmp_path / "work", environment(server)
    usual = result(begun(tmp_path, "alone", known, *SEARCH, "--store", "store"))
    wanted = left_behind(work)
    (work / "store").rename(tmp_path / "undisturbed")
    url = f"az://{made_container(server, f'kill-{uuid.uuid4().hex}')}/of/us"
    first = begun(tmp_path, "one", known, *SEARCH, "--store", url)
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    wait_for_state(Bucket(url), first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = result(begun(tmp_path, "two", known, *SEARCH, "--store", url))
    assert second["now"]["steps_trained"] < usual["now"]["steps_trained"]
    assert result(begun(tmp_path, "three", known, *SEARCH, "--store", url))["now"]["segments_trained"] == 0
    assert result(begun(tmp_path, "three", known, "store", "copy", url, "store", "--json"))["files"] > 5
    assert result(begun(tmp_path, "four", known, "store", "check", "--store", url, "--json"))["sound"]
    assert not difference(left_behind(work), wanted)
