"""The public surface, frozen: a new name is a decision, and is added here too."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ticketry as tk

PUBLIC = [
    *("Hold", "Lab", "Mask", "Metric", "Recipe", "Scope", "Split", "Splits", "Step", "Task", "Ticket"),
    *("__version__", "allocate", "bench", "compile", "cost", "dataset_task", "devices", "engine", "errors"),
    *(
        "evidence",
        "gates",
        "gradual",
        "hold",
        "meters",
        "prune",
        "restructure",
        "run",
        "schedule",
        "scope",
        "score",
        "search",
        "shrink",
    ),
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


LACKING = """
import sys
for package in ("scipy", "matplotlib", "PIL", "pooch", "sklearn", "llvmlite"):
    sys.modules[package] = None
"""


def test_own_loop_needs_no_extra(tmp_path) -> None:
    """Masks, tickets, channels and shrinking come with the bare installation."""
    code = f"""{LACKING}
import torch, ticketry as tk
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
x = torch.randn(2, 3, 8, 8)
channels = tk.structure.channels(model, x, density=0.5)
assert tk.shrink(model, channels, x)(x).shape == model(x).shape
mask = tk.prune(model, density=0.5)
with tk.hold(model, mask):
    model(x).sum().backward()
tk.Ticket(mask, model.state_dict(), {{"method": "one-shot"}}).save({str(tmp_path / "ticket")!r})
assert tk.Ticket.load({str(tmp_path / "ticket")!r}).mask.kept == mask.kept
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["search", "iterative", "--task", "mnist", "--levels", "1"], "lab"),
        (["stability", "--task", "mnist"], "lab"),
        (["reproduce", "stabilizing", "--scale", "demo"], "lab"),
        (["demo"], "demo"),
    ],
    ids=lambda one: one[0] if isinstance(one, list) else one,
)
def test_commands_name_the_extra_before_they_train(words: list[str], extra: str, tmp_path) -> None:
    code = f"{LACKING}\nfrom ticketry.cli import main\nsys.exit(main({words!r}))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"pip install 'ticketry[{extra}]'" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_verdicts_and_reports_name_the_extra(tmp_path) -> None:
    code = f"""{LACKING}
import ticketry as tk
from ticketry.evidence.comparison import compare
from ticketry.report import write_report
for made in (
    lambda: compare([97.0, 98.0], [96.0, 98.5], margin=0.5),
    lambda: __import__("ticketry.report.figures"),
):
    try:
        made()
    except tk.errors.MissingExtraError as error:
        assert "ticketry[lab]" in str(error)
    else:
        raise SystemExit("nothing was said")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
