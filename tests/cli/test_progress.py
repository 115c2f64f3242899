"""What commands show on standard error while they train."""

from __future__ import annotations

import pytest

from ticketry.cli.progress import Progress
from ticketry.lab.runners.runner import Event


@pytest.mark.parametrize(("term", "drawn"), [("xterm-256color", True), ("dumb", False), ("unknown", False)])
def test_a_terminal_that_cannot_draw_gets_lines(
    term: str, drawn: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # of rich: as on a terminal
    monkeypatch.setenv("TERM", term)
    with Progress("a search") as progress:
        progress.on_event(Event("finished", "a key", 0, 4, 4, "replicate 0 dense"))
        assert progress.has_terminal == drawn
    assert ("[1 trained, 1 asked for] replicate 0 dense" in capsys.readouterr().err) != drawn
