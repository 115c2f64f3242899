"""docs/optimisers.md: each row names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    line.strip("|").split("|")
    for line in (ROOT / "docs/optimisers.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and "`test_" in line
]
FILES = {path.stem: path for path in (ROOT / "tests").glob("*/**/test_*.py")}


def parsed(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def optimizers() -> set[str]:
    (table,) = (
        node.value
        for node in parsed("test_hold").body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "OPTIMIZERS"
    )
    assert isinstance(table, ast.Dict)
    return {key.value for key in table.keys if isinstance(key, ast.Constant)}


def test_rows_are_many_and_differ():
    assert len(ROWS) >= 30
    assert len({row[0] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_every_row_is_tested(row):
    tests = re.findall(r"`(test_\w+)(?:\.(test_\w+)|\[([\w-]+)\])`", row[-1])
    assert len(tests) == row[-1].count("`") / 2
    for file, function, optimizer in tests:
        if optimizer:
            assert optimizer in optimizers()
        else:
            assert function in {node.name for node in ast.walk(parsed(file)) if isinstance(node, ast.FunctionDef)}


def test_no_optimizer_of_torch_is_left_out():
    import torch

    shown = " ".join(row[0] for row in ROWS).replace("-", "").lower()
    for name, kind in vars(torch.optim).items():
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer:
            assert re.search(rf"\b{name.lower()}\b", shown), name
