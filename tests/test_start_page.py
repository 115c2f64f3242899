"""The first page's script runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ticketry as tk

PAGE = Path(__file__).parent.parent / "docs" / "quickstart.md"


def test_the_script_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first, faster = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(first, str(PAGE), "exec"), names)
    ticket = tk.Ticket.load("my-ticket")
    assert ticket.mask.density == pytest.approx(0.1, abs=1e-3)
    for name, kept in ticket.mask.items():
        assert not ticket.trained[name][~kept].any()
    out = capsys.readouterr().out
    header, total, *_ = out.splitlines()
    assert f"{header}\n{total}\n" in PAGE.read_text(), "the page shows what the script prints"
    exec(compile(faster, str(PAGE), "exec"), names)
    assert "torch.Size([8, 2])" in capsys.readouterr().out
    told = {line.split()[0]: line.split()[2:4] for line in out.splitlines()}
    assert {"0.weight", "2.weight"} == set(ticket.mask)
    for name, kept in ticket.mask.items():  # "it prints each layer with what is left of it"
        assert told[name] == [f"{int(kept.sum()):,}", f"{kept.numel():,}"]
