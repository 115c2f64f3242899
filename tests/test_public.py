"""The public surface, frozen: a new name is a decision, and is added here too."""

from __future__ import annotations

import subprocess
import sys

import ticketry as tk

PUBLIC = [
    *("Hold", "Lab", "Mask", "Metric", "Recipe", "Scope", "Split", "Splits", "Step", "Task", "Ticket"),
    *("__version__", "allocate", "bench", "compile", "devices", "engine", "errors", "evidence", "gates"),
    *("gradual", "hold", "meters", "prune", "restructure", "run", "schedule", "scope", "score", "search", "shrink"),
    *("sparse_training", "stability", "store", "structure", "task", "verify"),
]


def test_names() -> None:
    assert tk.__all__ == PUBLIC
    assert dir(tk) == PUBLIC
    for name in PUBLIC:
        assert getattr(tk, name) is not None


def test_scores_and_searches_are_functions_by_name() -> None:
    assert callable(tk.score.magnitude)
    assert callable(tk.score.random)
    assert callable(tk.search.iterative)


def test_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(tk, "nonsense")


def test_import_is_light() -> None:
    rooms = "ticketry, ticketry.search, ticketry.engine, ticketry.report, ticketry.cli"
    code = f"import sys, {rooms}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_name_needs_an_extra() -> None:
    """Without llvmlite all can be imported; what makes kernels says which extra it needs."""
    code = """
import sys
sys.modules["llvmlite"] = None
import torch, ticketry as tk
assert all(getattr(tk, name) for name in tk.__all__)
model = torch.nn.Sequential(torch.nn.Linear(8, 8))
for make in (tk.compile, tk.sparse_training):
    try:
        make(model, tk.prune(model, 0.5), torch.randn(4, 8))
    except tk.errors.MissingExtraError as error:
        assert "ticketry[engine]" in str(error)
    else:
        raise SystemExit("nothing was said")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
