"""Signals that ask to end, in this process; real commands are in tests/faults/test_signals.py."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from ticketry.lab import process
from ticketry.lab.process import SIGNALS, Stopped, defer_signals, handle_signals, raise_if_stopped, received_stop_signal

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals"),
    pytest.mark.skipif("coverage" in sys.modules, reason="coverage handles SIGTERM in its own way"),
]


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_interrupts_and_the_handlers_of_before_are_back(number: signal.Signals) -> None:
    before = handlers()
    with handle_signals(command=True) as request:
        assert signal.getsignal(number) not in before
        with pytest.raises(Stopped) as caught, handle_signals():  # within, nothing more
            signal.raise_signal(number)
        assert caught.value.number == request.number == received_stop_signal() == number
    assert received_stop_signal() == 0
    assert handlers() == before


def test_deferred_until_there_is_time() -> None:
    with handle_signals(command=True):
        with defer_signals():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)  # of the same request
            assert received_stop_signal() == signal.SIGTERM
        with pytest.raises(Stopped):
            raise_if_stopped()


def test_in_a_users_process_it_comes_out_as_ctrl_c_does() -> None:
    with pytest.raises(KeyboardInterrupt), handle_signals(), defer_signals():
        signal.raise_signal(signal.SIGINT)


def test_what_is_ignored_or_anothers_stays_so() -> None:
    got: list[int] = []
    before = [signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGTERM, lambda n, _: got.append(n))]
    try:
        with handle_signals(command=True) as request:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
        assert (request.number, got) == (0, [signal.SIGTERM])
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGTERM, before[1])


def test_other_threads_leave_signals_alone() -> None:
    seen: list[object] = []

    def work() -> None:
        with handle_signals(command=True), defer_signals():
            seen.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [handlers()]


AGAIN = """
import os, signal, time
from ticketry.lab import process
process._ONE_REQUEST = 0.0
with process.handle_signals(command={command}), process.defer_signals():
    signal.raise_signal(signal.SIGTERM)
    time.sleep(0.01)
    {then}
"""


@pytest.mark.parametrize(
    ("command", "then", "code"),
    [
        (True, "signal.raise_signal(signal.SIGHUP)", 128 + signal.SIGHUP),  # a second one ends at once
        (False, "signal.raise_signal(signal.SIGHUP)", -signal.SIGHUP),
        (False, "", -signal.SIGTERM),  # delivered again, when all is stored
    ],
)
def test_how_a_process_ends(command: bool, then: str, code: int) -> None:
    words = [sys.executable, "-c", AGAIN.format(command=command, then=then)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert ("what was trained is stored" in done.stderr) == (not then)


def test_processes_begin_with_signals_block_signals() -> None:
    look = "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    with process.block_signals():
        held = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout
    free = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout
    assert all(f"<Signals.{number.name}" in held and number.name not in free for number in SIGNALS)
