"""The first page's script runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ticketry as tk

PAGE = Path(__file__).parent.parent / "docs" / "README.md"


def test_the_script_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {})
    ticket = tk.Ticket.load("my-ticket")
    assert ticket.mask.density == pytest.approx(0.1, abs=1e-3)
    for name, kept in ticket.mask.items():
        assert not ticket.trained[name][~kept].any()
    told = {line.split()[0]: line.split()[2:4] for line in capsys.readouterr().out.splitlines()}
    assert {"0.weight", "2.weight"} == set(ticket.mask)
    for name, kept in ticket.mask.items():  # "it prints each layer with what is left of it"
        assert told[name] == [f"{int(kept.sum()):,}", f"{kept.numel():,}"]
