"""For how long requests are repeated."""

from __future__ import annotations

import pytest

from ticketry.errors import StoreError
from ticketry.lab.remote import patience


class _Clock:
    """A clock, and somebody who is asked and answers nothing but at the end; `stopped` before some try."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, answers_at: float, stopped: float, before: int) -> None:
        self.now, self.tries = 0.0, 0
        self._answers_at, self._stopped, self._before = answers_at, stopped, before
        monkeypatch.setattr(patience.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(patience.time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def asked(self) -> str:
        self.tries += 1
        if self.tries == self._before:
            self.now += self._stopped
        if self.now < self._answers_at:
            raise patience.PassingError("nobody is there")
        return "answer"


def test_a_store_that_stays_away_is_waited_for_three_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(monkeypatch, answers_at=1e9, stopped=0, before=0)
    with pytest.raises(StoreError, match=r"x: no success in 1\d\d s and \d+ tries \(nobody is there\)"):
        patience.Patience().until_done("x", clock.asked)
    assert 160 < clock.now <= 180


@pytest.mark.parametrize("before", [1, 5])
def test_the_time_that_this_process_was_stopped_for_is_none_of_the_store(
    monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """It is stopped for an hour while it asks, and what comes first after that is one more failure."""
    clock = _Clock(monkeypatch, answers_at=3650.0, stopped=3600.0, before=before)
    assert patience.Patience().until_done("x", clock.asked) == "answer"
