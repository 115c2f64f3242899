"""The example of methods as plain functions in docs/searches.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ticketry as tk


def test_example_of_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "searches.md").read_text(encoding="utf-8")
    *_, code = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)  # the point of this test
    assert isinstance(names["ticket"], tk.search.Found)
    assert (tmp_path / ".ticketry" / "store.json").exists()
