"""What both libraries' callbacks are tried on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"


@pytest.fixture
def example() -> Callable[[str], str]:
    """``example(section)``: the code in that section of docs/trainers.md."""

    def found(section: str) -> str:
        text = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        return code

    return found


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits are compared with those of plain loops on the CPU, also on a machine with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
