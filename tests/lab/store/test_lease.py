"""Leases: one holder at a time, taken over when they expire, whatever clocks say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ticketry.lab.store.locks import Holder, Lease, find_busy_trajectory, find_newest_lease, lease_name
from ticketry.lab.store.store import open_remote

KEY = "ab" * 32


def holder_at(address: str) -> Holder | None:
    return find_newest_lease(open_remote(address), lease_name(KEY))[1]


def test_the_second_waits_until_the_first_releases_it(address: str) -> None:
    first, second = (Lease(open_remote(address), KEY, mirror, 60) for mirror in "12")
    first.acquire()
    assert find_busy_trajectory(open_remote(address), "2", 60) == KEY
    assert find_busy_trajectory(open_remote(address), "1", 60) == ""
    taken = threading.Event()
    waiting = threading.Thread(target=lambda: (second.acquire(), taken.set()))
    waiting.start()
    assert not taken.wait(0.5)
    first.release()
    assert taken.wait(60)
    waiting.join()
    assert not first.lost
    second.release()
    assert holder_at(address) is None
    assert len(list(open_remote(address).list("trajectories/"))) == 1
    assert find_busy_trajectory(open_remote(address), "3", 60) == ""


def test_of_many_at_once_one_at_a_time_holds_it(address: str) -> None:
    inside, most, turns = 0, 0, 0
    guard = threading.Lock()

    def work(number: int) -> None:
        nonlocal inside, most, turns
        lease = Lease(open_remote(address), KEY, f"mirror {number}", 30)
        lease.acquire()
        with guard:
            inside, most, turns = inside + 1, max(most, inside + 1), turns + 1
        time.sleep(0.05)
        with guard:
            inside -= 1
        lease.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, turns) == (1, 6)


@pytest.mark.slow
def test_a_lease_is_renewed_for_longer_than_its_length(address: str) -> None:
    first, second = (Lease(open_remote(address), KEY, mirror, 1.5) for mirror in "12")
    first.acquire()
    taken = threading.Event()
    threading.Thread(target=lambda: (second.acquire(), taken.set()), daemon=True).start()
    assert not taken.wait(5)
    assert not first.lost
    assert len(list(open_remote(address).list("trajectories/"))) <= 6, "old numbers are deleted"
    first.release()
    assert taken.wait(60)
    second.release()


_HOLDER = """
import sys, time
from ticketry.lab.store.locks import Lease
from ticketry.lab.store.store import open_remote
Lease(open_remote(sys.argv[1]), sys.argv[2], "of the killed", float(sys.argv[3])).acquire()
print("taken", flush=True)
time.sleep(600)
"""


@pytest.fixture
def killed(address: str) -> str:
    """The address at which a process was killed that held a lease of two seconds."""
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, address, KEY, "2"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "taken\n"
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    return address


@pytest.mark.slow
def test_a_lease_of_the_killed_expires(killed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the clock of the waiting machine is off by an hour: it is not used."""
    hour, real = 3600.0, time.time
    monkeypatch.setattr(time, "time", lambda: real() - hour)
    lease = Lease(open_remote(killed), KEY, "another", 60)
    began = time.monotonic()
    lease.acquire()
    assert time.monotonic() - began < 60
    lease.release()


def test_a_process_on_the_machine_of_the_killed_need_not_wait(address: str) -> None:
    Lease(open_remote(address), KEY, "mine", 3600).acquire()
    again = Lease(open_remote(address), KEY, "mine", 3600)
    began = time.monotonic()
    again.acquire()
    assert time.monotonic() - began < 30
    again.release()


@pytest.mark.parametrize("others", [1, 9])
def test_a_lost_lease_is_noticed_and_leaves_that_of_others_alone(address: str, others: int) -> None:
    """Also after the holder was suspended for so long that the number it would create next was deleted meanwhile."""
    remote = open_remote(address)
    first = Lease(remote, KEY, "1", 1.2)
    first.acquire()
    with first._guard:  # it is suspended
        second = Lease(remote, KEY, "2", 3600)
        number = find_newest_lease(remote, lease_name(KEY))[0]
        for more in range(others):
            assert second._write(number + 1 + more, second._mine)
    limit = time.monotonic() + 60
    while not first.lost and time.monotonic() < limit:
        time.sleep(0.02)
    first.release()
    assert first.lost
    assert holder_at(address) == second._mine


@pytest.mark.parametrize("damaged", [b"", b"no JSON", b"[]", b'{"lease": "x"}', b'{"lease": {"owner": 1}}'])
def test_a_damaged_lease_is_free(tmp_path: Path, damaged: bytes) -> None:
    address = f"file://{tmp_path}/shared"
    open_remote(address).create_if_absent(f"{lease_name(KEY)}@3", damaged)
    assert holder_at(address) is None
    lease = Lease(open_remote(address), KEY, "1", 60)
    lease.acquire()
    assert holder_at(address) == lease._mine
    lease.release()
