"""README's example in one's own loop, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import ticketry as tk

README = Path(__file__).parents[1] / "README.md"


def test_example_in_your_own_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(
        r"<!-- tests/test_readme.py runs this block -->\n```python\n(.*?)```", README.read_text(), re.S
    )
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


def test_links_lead_somewhere() -> None:
    for page in [README, *README.parent.glob("docs/**/*.md"), README.parent / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
