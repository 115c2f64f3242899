"""Searches that share a store in a bucket: machines are caches of their own, killed and at once."""

from __future__ import annotations

import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from buckets import environment, made_bucket, moto_process, moto_server
from faults.disturbed import difference, left_behind, without_times
from faults.machines import begun, result, wait_for_state
from ticketry.lab.store.bucket import Bucket

SEARCH = [
    *("search", "iterative", "--task", "digits", "--replicates", "1", "--levels", "2", "--rewind", "3it", "--json"),
    *("--controls", "shuffled", "--recipe.length", "400it", "--checkpoint-seconds", "0.05", "--workers", "0"),
]
AWAY_SECONDS = 120
Ticketry = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture
def ticketry(server: str, tmp_path: Path) -> Ticketry:
    """Begins a command on the machine of that name, in the test's folder."""

    def on(machine: str, *words: str) -> subprocess.Popen[str]:
        return begun(tmp_path, machine, environment(server), *words)

    return on


def undisturbed(ticketry: Ticketry, folder: Path) -> tuple[Any, dict[str, str]]:
    told = result(ticketry("alone", *SEARCH, "--store", "store"))
    left = left_behind(folder)
    (folder / "store").rename(folder.parent / "undisturbed")
    return told, left


@pytest.mark.slow
def test_killed_on_one_machine_it_goes_on_from_its_last_state_on_another(
    ticketry: Ticketry, server: str, tmp_path: Path
) -> None:
    usual, wanted = undisturbed(ticketry, tmp_path / "work")
    url = f"s3://{made_bucket(server, f'kill-{uuid.uuid4().hex}')}/of/us"
    first = ticketry("one", *SEARCH, "--store", url)
    _wait_for_state_in(url, server, first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = result(ticketry("two", *SEARCH, "--store", url))
    assert second["now"]["steps_trained"] < usual["now"]["steps_trained"]
    third = result(ticketry("three", *SEARCH, "--store", url))
    assert third["now"]["segments_trained"] == 0
    assert len(result(ticketry("three", "list", "runs", "--store", url, "--json"))) == 1
    assert result(ticketry("two", "store", "copy", url, "store", "--json"))["files"] > 5
    assert result(ticketry("two", "store", "check", "--store", "store", "--json"))["sound"]
    assert result(ticketry("four", "store", "check", "--store", url, "--json"))["sound"]
    assert not difference(left_behind(tmp_path / "work"), wanted)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_network_is_away_for_two_minutes(tmp_path: Path) -> None:
    """The bucket's server stands still (SIGSTOP) in the middle of a training, far longer than a lease lasts."""
    with moto_process() as (address, server):

        def ticketry(machine: str, *words: str) -> subprocess.Popen[str]:
            return begun(tmp_path, machine, environment(address), *words)

        usual, wanted = undisturbed(ticketry, tmp_path / "work")
        url = f"s3://{made_bucket(address, 'away')}"
        search = ticketry("one", *SEARCH, "--store", url)
        _wait_for_state_in(url, address, search)
        server.send_signal(signal.SIGSTOP)
        time.sleep(AWAY_SECONDS)
        assert search.poll() is None, "it waits"
        server.send_signal(signal.SIGCONT)
        assert result(search, 500)["now"]["steps_trained"] == usual["now"]["steps_trained"]
        assert result(ticketry("two", "store", "copy", url, "store", "--json"))["files"] > 5
        assert result(ticketry("two", "store", "check", "--store", url, "--json"))["sound"]
        assert not difference(left_behind(tmp_path / "work"), wanted)


@pytest.mark.slow
def test_two_drivers_at_once_train_every_segment_once(ticketry: Ticketry, server: str, tmp_path: Path) -> None:
    usual, _ = undisturbed(ticketry, tmp_path / "work")
    url = f"s3://{made_bucket(server, f'two-{uuid.uuid4().hex}')}"
    drivers = [ticketry(machine, *SEARCH, "--store", url) for machine in ("one", "two")]
    told = [result(driver) for driver in drivers]
    for name in ("segments_trained", "steps_trained"):
        assert sum(one["now"][name] for one in told) == usual["now"][name]
    measured = {"path": "", "relative_cost": None}  # seconds and memory, by who trained it
    plain = [[{**one, **measured} for one in each["tickets"]] for each in (*told, usual)]
    assert without_times(plain[0]) == without_times(plain[1]) == without_times(plain[2])


def _wait_for_state_in(url: str, address: str, search: subprocess.Popen[str]) -> None:
    """Until the search has stored a state inside a training in a bucket of the server at this address."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(address).items():
            patch.setenv(name, value)
        wait_for_state(Bucket(url), search)
