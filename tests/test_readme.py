"""README's example in one's own loop, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import ticketry as tk

README = Path(__file__).parents[1] / "README.md"


def examples() -> list[str]:
    """The blocks of README that are marked as run here."""
    return re.findall(r"<!-- tests/test_readme.py runs this block -->\n```python\n(.*?)```", README.read_text(), re.S)


def test_example_in_your_own_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, *_ = examples()
    assert len([line for line in code.splitlines() if line.strip()]) <= 17
    task = tk.task("digits")
    torch.manual_seed(0)
    model = task.build()
    data = task.load().train
    early_state = {name: value.clone() for name, value in model.state_dict().items()}
    names = {
        "model": model,
        "early_state": early_state,
        "optimizer": torch.optim.Adam(model.parameters(), lr=1e-3),
        "loss_function": torch.nn.functional.cross_entropy,
        "batches": [(task.prepare(data.inputs[i : i + 64]), data.targets[i : i + 64]) for i in range(0, 1024, 64)] * 3,
    }
    monkeypatch.chdir(tmp_path)
    exec(code, names)  # the point of this test
    loaded = tk.Ticket.load("my-ticket")
    assert loaded.mask.kept == round(0.1 * loaded.mask.total)
    for name, parameter in loaded.mask.parameters(model).items():
        assert not parameter[~loaded.mask[name]].any()
        assert parameter[loaded.mask[name]].all()
    fresh = task.build()
    fresh.load_state_dict(loaded.trained)
    inputs, _ = names["batches"][0]
    assert torch.equal(fresh(inputs), model(inputs))


def test_example_of_a_faster_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, code, _ = examples()
    torch.manual_seed(0)
    task = tk.task("digits")
    model = task.build().eval()
    mask = tk.prune(model, density=0.2, distribution="uniform")
    names = {"model": model, "mask": mask, "example_inputs": task.prepare(task.load().test.inputs[:32])}
    monkeypatch.chdir(tmp_path)
    exec(code, names)  # the point of this test
    mask.apply_(model)
    with torch.no_grad():
        wanted = model(names["example_inputs"])
    assert torch.allclose(names["outputs"], wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(tk.engine.load("model.tk")(names["example_inputs"]), names["outputs"])


@pytest.mark.filterwarnings("ignore:the budget was not met")
def test_example_of_a_budget() -> None:
    _, _, code = examples()
    torch.manual_seed(0)
    # Large enough that half of its time can be had: of a small one's a call itself takes most.
    layers = (
        torch.nn.Linear(256, 256),
        torch.nn.ReLU(),
        torch.nn.Linear(256, 256),
        torch.nn.ReLU(),
        torch.nn.Linear(256, 10),
    )
    model = torch.nn.Sequential(*layers).eval()
    names = {"model": model, "example_inputs": torch.randn(32, 256)}
    exec(code, names)  # the point of this test
    assert 0 < names["mask"].density < 0.5
    assert tk.cost.model(model, names["example_inputs"], unit="bytes").estimate(names["mask"]).value <= 100_000


def test_links_lead_somewhere() -> None:
    folders = (README.parent.glob(pattern) for pattern in ("*.md", "docs/**/*.md", "research/*.md"))
    for page in [page for folder in folders for page in folder]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
