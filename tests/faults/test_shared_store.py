"""Searches that share a store: machines are separate caches, killed and at once."""

from __future__ import annotations

import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import azurite
import buckets
from faults.disturbed import difference, left_behind, without_pages, without_times
from faults.machines import result, start_command, wait_for_state

pytestmark = pytest.mark.slow

SEARCH = [
    *("search", "iterative", "--task", "digits", "--replicates", "1", "--levels", "2", "--rewind", "3it", "--json"),
    *("--controls", "shuffled", "--recipe.length", "400it", "--checkpoint-seconds", "0.05", "--workers", "0"),
]
AWAY_SECONDS = 120
Ticketry = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(params=["file", "s3", "az"])
def shared(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The URL of an empty shared store, which the environment leads to."""
    name = f"kill-{uuid.uuid4().hex}"
    if request.param == "file":
        yield f"file://{tmp_path}/shared"
        return
    with buckets.moto_server() if request.param == "s3" else azurite.azurite_server() as endpoint:
        known: Mapping[str, str] = (buckets if request.param == "s3" else azurite).environment(endpoint)
        for variable, value in known.items():
            monkeypatch.setenv(variable, value)
        if request.param == "s3":
            yield f"s3://{buckets.made_bucket(endpoint, name)}/of/us"
        else:
            yield f"az://{azurite.made_container(endpoint, name)}/of/us"


@pytest.fixture
def ticketry(tmp_path: Path) -> Ticketry:
    """Begins a command on the machine of that name, in the test's folder."""
    return lambda machine, *words: start_command(tmp_path, machine, *words)


def undisturbed(ticketry: Ticketry, folder: Path) -> tuple[Any, dict[str, str]]:
    told = result(ticketry("alone", *SEARCH, "--store", "store"))
    left = without_pages(left_behind(folder))
    (folder / "store").rename(folder.parent / "undisturbed")
    return told, left


def test_search_resumes_on_another_machine(ticketry: Ticketry, shared: str, tmp_path: Path) -> None:
    """It was killed on the first; a copy of the store is that of an undisturbed search."""
    usual, wanted = undisturbed(ticketry, tmp_path / "work")
    first = ticketry("one", *SEARCH, "--store", shared)
    wait_for_state(shared, first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = result(ticketry("two", *SEARCH, "--store", shared))
    assert second["now"]["steps_trained"] < usual["now"]["steps_trained"]
    third = result(ticketry("three", *SEARCH, "--store", shared))
    assert third["now"]["segments_trained"] == 0
    assert len(result(ticketry("three", "list", "runs", "--store", shared, "--json"))) == 1
    require_copy(ticketry, shared, tmp_path / "work", wanted)


def test_two_searches_at_once_train_every_segment_once(ticketry: Ticketry, shared: str, tmp_path: Path) -> None:
    usual, _ = undisturbed(ticketry, tmp_path / "work")
    drivers = [ticketry(machine, *SEARCH, "--store", shared) for machine in ("one", "two")]
    told = [result(driver) for driver in drivers]
    for name in ("segments_trained", "steps_trained"):
        assert sum(one["now"][name] for one in told) == usual["now"][name]
    measured = {"path": "", "relative_cost": None}  # seconds and memory, by who trained it
    plain = [[{**one, **measured} for one in each["tickets"]] for each in (*told, usual)]
    assert without_times(plain[0]) == without_times(plain[1]) == without_times(plain[2])


def require_copy(ticketry: Ticketry, url: str, work: Path, wanted: dict[str, str]) -> None:
    """Copy the store and check that it is sound and complete."""
    assert result(ticketry("two", "store", "copy", url, "store", "--json"))["files"] > 5
    for store in ("store", url):
        assert result(ticketry("four", "store", "check", "--store", store, "--json"))["sound"]
    assert not difference(left_behind(work), wanted)


@pytest.mark.timeout(900)
def test_search_survives_two_minutes_without_network(
    ticketry: Ticketry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket's server is suspended (SIGSTOP) during a training, far longer than a lease lasts."""
    with buckets.moto_process() as (address, server):
        for variable, value in buckets.environment(address).items():
            monkeypatch.setenv(variable, value)
        usual, wanted = undisturbed(ticketry, tmp_path / "work")
        url = f"s3://{buckets.made_bucket(address, 'away')}"
        search = ticketry("one", *SEARCH, "--store", url)
        wait_for_state(url, search)
        server.send_signal(signal.SIGSTOP)
        time.sleep(AWAY_SECONDS)
        assert search.poll() is None, "it waits"
        server.send_signal(signal.SIGCONT)
        assert result(search, 500)["now"]["steps_trained"] == usual["now"]["steps_trained"]
        require_copy(ticketry, url, tmp_path / "work", wanted)
