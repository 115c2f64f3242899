"""Sparse kernels as an option: of a search in Python, on the command line and in a run file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from ticketry.cli import main
from ticketry.evidence.settings import VerifySettings
from ticketry.lab.training import kernels as kernels_module
from ticketry.lab.training.kernels import name_local_kernels
from ticketry_engine import machine

pytest.importorskip("llvmlite")

ASKED: dict[str, Any] = {
    "recipe": {"length": "12it", "optimizer": "sgd", "lr": 0.05},
    "densities": [0.2],
    "workers": 0,
    "precision": "fp32",
    "device": "cpu",
}


def kernels_of(store: Path) -> list[str]:
    """Of all that was trained into a store."""
    told = [json.loads(file.read_text())["segment"]["arithmetic"] for file in (store / "results").rglob("*.json")]
    return sorted({one.get("kernels", "dense") for one in told})


def test_a_search_its_controls_and_a_verification(tmp_path: Path) -> None:
    for kernels in ("sparse", "auto"):
        store = tmp_path / kernels
        controls = ["shuffled"] if kernels == "sparse" else []
        asked = {"task": "norms_task:norms", "replicates": 1, "controls": controls, **ASKED}
        run = tk.run("iterative", **asked, kernels=kernels, store=store)
        assert run.record.environment.get("kernels", "dense") == kernels
        assert kernels_of(store) == ["dense", name_local_kernels()]
        if kernels == "sparse":
            settings = VerifySettings(controls=("shuffled",), seeds=2, noise=False, references=False)
            verified = run.verify(settings, density=0.2)
            assert verified is not None
            assert verified.environment["kernels_used"] == ["dense", name_local_kernels()], (
                "the dense one trains in torch"
            )


def test_masks_that_move(tmp_path: Path) -> None:
    settings = {**ASKED, "recipe": {"length": "24it", "optimizer": "sgd", "lr": 0.05}}
    del settings["densities"]
    settings |= {"controls": [], "kernels": "sparse", "store": tmp_path, "density": [0.2], "frequency": "6it"}
    tk.run("dynamic", task="norms_task:norms", replicates=1, **settings)
    assert kernels_of(tmp_path) == ["dense", name_local_kernels()]


@pytest.mark.slow
def test_words_of_the_command_line_and_of_a_run_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.toml"
    table = 'method = "iterative"\ntask = "norms_task:norms"\nkernels = "sparse"\nprecision = "fp32"\ncontrols = []\n'
    file.write_text(f'{table}replicates = 1\n[settings]\nlevels = 2\nrate = 0.6\n[recipe]\nlength = "4it"\n')
    common = ["search", "--config", str(file), "--trust", "--workers", "0", "--device", "cpu", "--store"]
    assert main([*common, str(tmp_path / "one")]) == 0
    assert kernels_of(tmp_path / "one") == ["dense", name_local_kernels()]
    again = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("again"))
    assert again.endswith("--trust")
    assert "--kernels" not in again, "the run file says them"
    assert main([*common, str(tmp_path / "two"), "--kernels", "dense"]) == 0
    assert kernels_of(tmp_path / "two") == ["dense"]
    monkeypatch.setattr(kernels_module, "machine", lambda: replace(machine(), bf16=False))
    assert main([*common, str(tmp_path / "three"), "--precision", "bf16"]) == 2
    assert "this processor does not multiply bfloat16" in capsys.readouterr().err
