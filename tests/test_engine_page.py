"""The examples of docs/engine.md, run as they stand there, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from cli.calling import call
from ticketry.cli import COMMANDS

PAGE = Path(__file__).parents[1] / "docs" / "engine.md"
TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    task = tk.task("digits")
    torch.manual_seed(0)
    model = task.build().eval()
    mask = tk.prune(model, density=0.1)
    names: dict[str, Any] = {"model": mask.apply_(model), "mask": mask, "example_inputs": task.example(8)}
    for code in EXAMPLES:
        exec(code, names)  # the point of this test
    assert names["same"]
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(names["again"](x), model(x), rtol=1e-4, atol=1e-5)
    assert [check.batch for check in names["made"].checks] == [1, 2, 5]
    assert [row.engine for row in names["found"].times] == ["eager", "onnxruntime", "ticketry"]
    out = capsys.readouterr().out
    assert "fc1" in out
    assert "ticketry saves" in out


def test_verbs_and_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    shown = ""
    for command in ("compile", "bench", "export"):
        assert command in COMMANDS
        code, out, _ = call(capsys, command, "--help-all")
        assert code == 0
        shown += out
    named = set(re.findall(r"--[a-z][a-z-]+", TEXT))
    assert named
    assert named <= set(re.findall(r"--[a-z][a-z-]+", shown))
