"""The public names: which they are, their types, and what they need installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ticketry as tk
from forked import Fork

ROOT = Path(__file__).parents[1]
PUBLIC = [
    *("Hold", "Lab", "Mask", "Metric", "Recipe", "Scope", "Split", "Splits", "Step", "Task", "Ticket"),
    *("__version__", "allocate", "bench", "compile", "cost", "dataset_task", "devices", "engine", "errors"),
    *("evidence", "gates", "gradual", "hold", "meters", "prune", "restructure", "run", "schedule", "scope", "score"),
    *("search", "shrink", "sparse_training", "stability", "store", "structure", "task", "verify"),
]


def test_names() -> None:
    assert tk.__all__ == PUBLIC
    assert dir(tk) == PUBLIC
    for name in PUBLIC:
        assert getattr(tk, name) is not None
    assert callable(tk.score.magnitude)
    assert callable(tk.search.iterative)
    assert not hasattr(tk, "nonsense")


def test_imports_are_light() -> None:
    """Packages, lists and presets do not import torch."""
    code = """
import sys, ticketry, ticketry.search, ticketry.engine, ticketry.report, ticketry.cli
from ticketry.tasks import catalogue
from ticketry.tasks.catalogue import experiment
print([catalogue.describe(name) for name in catalogue.names()])
experiment("lenet")
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "CIFAR-10, photographs of objects: 32x32x3, 10 classes, 45,000 / 5,000 / 10,000 examples" in done.stdout


PACKAGES = ("scipy", "matplotlib", "PIL", "pooch", "sklearn", "llvmlite", "gymnasium")
LACKING = f"""
import sys
for package in {PACKAGES}:
    sys.modules[package] = None
"""


def forget_own_modules() -> None:
    """Let everything of this project, and the packages that are lacking, be imported anew."""
    for name in [one for one in sys.modules if one.split(".")[0] in ("ticketry", "ticketry_engine", *PACKAGES)]:
        del sys.modules[name]


def test_the_bare_installation(tmp_path: Path) -> None:
    """Masks, tickets and shrinking work; all other names can be imported, and calls name the extra that they need."""
    code = f"""{LACKING}
import torch, ticketry as tk
from ticketry.evidence.comparison import compare

assert all(getattr(tk, name) for name in tk.__all__)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
x = torch.randn(2, 3, 8, 8)
channels = tk.structure.channels(model, x, density=0.5)
assert tk.shrink(model, channels, x)(x).shape == model(x).shape
mask = tk.prune(model, density=0.5)
with tk.hold(model, mask):
    model(x).sum().backward()
tk.Ticket(mask, model.state_dict(), {{"method": "one-shot"}}).save({str(tmp_path / "ticket")!r})
assert tk.Ticket.load({str(tmp_path / "ticket")!r}).mask.kept == mask.kept
assert tk.task("cartpole").key(), "environments are imported late"
for extra, call in (
    ("engine", lambda: tk.compile(model, mask, x)),
    ("engine", lambda: tk.sparse_training(model, mask, x)),
    ("lab", lambda: compare([97.0, 98.0], [96.0, 98.5], margin=0.5)),
    ("lab", lambda: __import__("ticketry.report.figures")),
):
    try:
        call()
    except tk.errors.MissingExtraError as error:
        assert f"ticketry[{{extra}}]" in str(error)
    else:
        raise SystemExit("no MissingExtraError")
"""

    def run() -> None:
        forget_own_modules()
        exec(code, {})

    if sys.platform != "linux":  # where forks are missing, or unsafe after torch has been used
        subprocess.run([sys.executable, "-c", code], check=True)
        return
    fork = Fork(tmp_path, run)
    _, err = fork.communicate(timeout=120)
    assert fork.returncode == 0, err


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
def test_commands_name_the_extra_before_they_train(words: list[str], extra: str, tmp_path: Path) -> None:
    code = f"{LACKING}\nfrom ticketry.cli import main\nsys.exit(main({words!r}))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"pip install 'ticketry[{extra}]'" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


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


@pytest.mark.slow
def test_mypy_accepts_the_public_names_in_use(tmp_path: Path) -> None:
    """tests/public_use.py and the examples of README and docs/searches.md, with --strict."""
    pages = (ROOT / "README.md", ROOT / "docs" / "searches.md")
    blocks = [block for page in pages for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.S)]
    files = [ROOT / "tests" / "public_use.py"]
    for number, block in enumerate(blocks):
        head, _, rest = block.partition("import ticketry as tk\n")
        own = "\n".join(line for line in GIVEN.splitlines() if not re.search(rf"^{line.split(':')[0]} = ", rest, re.M))
        files.append(tmp_path / f"block_{number}.py")
        files[-1].write_text(f"{head}import ticketry as tk\n{own}\n{rest}", encoding="utf-8")
    assert len(files) >= 4
    config = ["--config-file", str(ROOT / "pyproject.toml"), "--follow-imports", "silent"]
    command = [sys.executable, "-m", "mypy", "--strict", *config, *map(str, files)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert found.returncode == 0, found.stdout + found.stderr
