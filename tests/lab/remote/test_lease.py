"""Leases: one holder at a time, taken over when they ran out, whatever clocks say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from ticketry.lab.remote.lease import Known, Lease, Terms, known_of, object_of
from ticketry.lab.store.opening import remote_at

KEY = "ab" * 32


def test_the_second_waits_until_the_first_lets_go(address: str) -> None:
    first, second = (Lease(remote_at(address), KEY, Terms(mirror, 60)) for mirror in "12")
    first.take()
    taken = threading.Event()
    waiting = threading.Thread(target=lambda: (second.take(), taken.set()))
    waiting.start()
    assert not taken.wait(1.5)
    first.change(lambda known: msgspec.structs.replace(known, steps=(3,), partial=(2, "ab")))
    first.release()
    assert taken.wait(60)
    waiting.join()
    assert second.known.steps == (3,)
    assert second.known.partial == (2, "ab")
    assert not first.lost
    second.release()
    assert known_of(remote_at(address).read(object_of(KEY))).lease is None


def test_of_many_at_once_one_at_a_time_holds_it(address: str) -> None:
    inside, most, turns = 0, 0, []
    guard = threading.Lock()

    def work(number: int) -> None:
        nonlocal inside, most
        lease = Lease(remote_at(address), KEY, Terms(f"mirror {number}", 30))
        lease.take()
        with guard:
            inside += 1
            most = max(most, inside)
        time.sleep(0.05)
        lease.change(lambda known: msgspec.structs.replace(known, steps=(*known.steps, number)))
        with guard:
            inside -= 1
            turns.append(number)
        lease.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert known_of(remote_at(address).read(object_of(KEY))).steps == tuple(turns)


@pytest.mark.slow
def test_a_heartbeat_keeps_it_for_longer_than_its_time(address: str) -> None:
    first, second = (Lease(remote_at(address), KEY, Terms(mirror, 1.5)) for mirror in "12")
    first.take()
    taken = threading.Event()
    threading.Thread(target=lambda: (second.take(), taken.set()), daemon=True).start()
    assert not taken.wait(5)
    assert not first.lost
    first.release()
    assert taken.wait(60)
    second.release()


_HOLDER = """
import sys, time
from ticketry.lab.remote.lease import Lease, Terms
from ticketry.lab.store.opening import remote_at
Lease(remote_at(sys.argv[1]), sys.argv[2], Terms("of the killed", float(sys.argv[3]))).take()
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
def test_a_lease_of_the_killed_runs_out(killed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the clock of who waits is off by an hour: it is not looked at."""
    hour, real = 3600.0, time.time
    monkeypatch.setattr(time, "time", lambda: real() - hour)
    lease = Lease(remote_at(killed), KEY, Terms("another", 60))
    began = time.monotonic()
    lease.take()
    assert time.monotonic() - began < 60
    lease.release()


def test_who_holds_the_mirror_of_the_killed_need_not_wait(address: str) -> None:
    Lease(remote_at(address), KEY, Terms("mine", 3600)).take()
    again = Lease(remote_at(address), KEY, Terms("mine", 3600))
    began = time.monotonic()
    again.take()
    assert time.monotonic() - began < 30
    again.release()


def test_a_lease_that_was_lost_is_noticed_and_leaves_the_others_alone(address: str) -> None:
    remote = remote_at(address)
    first = Lease(remote, KEY, Terms("1", 3600))
    first.take()
    found = remote.read(object_of(KEY))
    assert found is not None
    theirs = msgspec.structs.replace(known_of(found), lease=Lease(remote, KEY, Terms("2", 60))._mine, beat="x")
    assert remote.replace(object_of(KEY), msgspec.json.encode(theirs), found.version) is not None
    first.change(lambda known: msgspec.structs.replace(known, steps=(7,)))
    first.release()
    assert first.lost
    now = known_of(remote.read(object_of(KEY)))
    assert now.lease == theirs.lease
    assert now.steps == (7,)


@pytest.mark.parametrize("damaged", [b"", b"no JSON", b"[]", b'{"steps": "x"}', b'{"lease": {"owner": 1}}'])
def test_a_damaged_object_is_as_none(tmp_path: Path, damaged: bytes) -> None:
    address = f"file://{tmp_path}/shared"
    remote_at(address).create(object_of(KEY), damaged)
    assert known_of(remote_at(address).read(object_of(KEY))) == Known()
    lease = Lease(remote_at(address), KEY, Terms("1", 60))
    lease.take()
    lease.release()
