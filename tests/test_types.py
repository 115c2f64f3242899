"""Type checkers see real signatures: mypy --strict over examples in the docs and over the public names in use."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GIVEN = """\
import collections.abc
import torch
model: torch.nn.Module
early_state: dict[str, torch.Tensor]
optimizer: torch.optim.Optimizer
loss_function: torch.nn.CrossEntropyLoss
batches: collections.abc.Iterable[tuple[torch.Tensor, torch.Tensor]]
mask: tk.Mask
example_inputs: torch.Tensor
"""
"""What README's examples take from the reader's own program."""


def blocks() -> list[str]:
    """The blocks of Python in README, and of the page on the same from Python."""
    pages = (ROOT / "README.md", ROOT / "docs" / "searches.md")
    return [block for page in pages for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.S)]


@pytest.mark.slow
def test_readme_and_the_public_names_are_typed(tmp_path: Path) -> None:
    files = [ROOT / "tests" / "public_use.py"]
    for number, block in enumerate(blocks()):
        head, _, rest = block.partition("import ticketry as tk\n")
        own = "\n".join(line for line in GIVEN.splitlines() if not re.search(rf"^{line.split(':')[0]} = ", rest, re.M))
        files.append(tmp_path / f"block_{number}.py")
        files[-1].write_text(f"{head}import ticketry as tk\n{own}\n{rest}", encoding="utf-8")
    assert len(files) >= 4
    config = ["--config-file", str(ROOT / "pyproject.toml"), "--follow-imports", "silent"]
    command = [sys.executable, "-m", "mypy", "--strict", *config, *map(str, files)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert found.returncode == 0, found.stdout + found.stderr
