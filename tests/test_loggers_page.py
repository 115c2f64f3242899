"""The logger that the page shows is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "loggers.md"


def test_the_logger_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="the task digits needs scikit-learn")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {})
    first, *rest = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"trainings: twenty steps [0-9a-f]{8} \(twenty steps\)", first)
    assert rest[-1] == "  done"
    assert any("test/accuracy" in line and line.startswith("  20: ") for line in rest)
