"""The examples of docs/structure.md, run as they stand there, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk

PAGE = Path(__file__).parents[1] / "docs" / "structure.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    task = tk.task("digits")
    data = task.load().train
    inputs, targets = task.prepare(data.inputs), data.targets
    torch.manual_seed(0)
    model = task.build()
    names: dict[str, Any] = {
        "model": model,
        "make_model": task.build,
        "example_inputs": inputs[:2],
        "batches": [(inputs[i : i + 64], targets[i : i + 64]) for i in range(0, 1024, 64)] * 2,
        "loss_function": torch.nn.functional.cross_entropy,
    }
    for code in EXAMPLES:
        exec(code, names)  # the point of this test
    small, mask = names["small"], names["mask"]
    assert abs(mask.density - 0.5) < 0.02
    assert sum(p.numel() for p in small.parameters()) < 0.55 * sum(p.numel() for p in model.parameters())
    assert torch.allclose(small(inputs[:64]), model(inputs[:64]), atol=1e-4)
    assert torch.equal(names["again"](inputs[:64]), small(inputs[:64]))
    assert abs(names["by_gates"].density - 0.6) < 0.02
    assert names["optimizer"].state[next(small.parameters())]["momentum_buffer"].any()
    assert names["ticket"].density < 0.3 < names["plus"].density < 1
    assert abs(names["same"].density - 0.3) < 0.02
    assert sum(p.numel() for p in names["refilled"].parameters()) < 0.4 * sum(p.numel() for p in model.parameters())
    assert names["masks"][1] == names["ticket"]
    assert names["at_most"] <= names["pruned"]
    assert names["one_of_sixteen"].density < names["at_most"].density < names["two_of_four"].density == 0.5
    assert "it is an output of the model" in capsys.readouterr().out
    assert names["coarse"].density == pytest.approx(0.3, abs=1e-3)
    assert names["two_of_four"].density == 0.5
    for coarse in (names["coarse"], names["learned"]):
        for found in tk.structure.groups(coarse).values():
            assert all(len(group.rows) % 4 == 0 for group in found[:-1])
    assert 0.05 < names["learned"].density < 0.9
    grouped, unstructured = names["grouped"], names["unstructured"]
    assert all(abs(a.kept - b.kept) <= 4 for a, b in zip(grouped.table(), unstructured.table(), strict=True))
    assert names["control"].table() == grouped.table()
    whole = tk.structure.together(names["fits"])
    assert 0.5 < whole.random_coverage < whole.coverage < 1
    assert 0.5 < whole.null_coverage < whole.coverage
