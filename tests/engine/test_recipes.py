"""The engine's README: its example prints what it shows, its files exist, and its recipe for an activation works."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ticketry_engine
from ticketry_engine.capture import convert, lower_layers, pipeline
from ticketry_engine.ir import native_shapes, reference
from ticketry_engine.kernels import activations

PACKAGE = Path(ticketry_engine.__file__).parent
README = (PACKAGE / "README.md").read_text(encoding="utf-8")


def test_the_example_prints_the_output_shown() -> None:
    code, shown = re.findall(r"```(?:python)?\n(.*?)```", README, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert re.sub(r"0\.\d{4,}", lambda found: f"{float(found[0]):.3f}", printed.getvalue()) == shown


def test_every_file_and_folder_named_exists() -> None:
    named = re.findall(r"`((?:[a-z_]+/)*(?:[a-z_]+\.py|[a-z_]+/))`", README)
    assert len(named) > 20
    for name in named:
        folders = (PACKAGE, PACKAGE / "kernels", PACKAGE.parent.parent)
        assert any((folder / name).exists() for folder in folders), name


@pytest.mark.parametrize("convolution", [True, False])
def test_an_activation_is_added_by_the_recipe(convolution: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def magnitude(e: Any, x: Any) -> Any:
        return e.intrinsic("llvm.fabs", x)

    class Magnitude(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.abs(x)

    monkeypatch.setitem(activations._PLAIN, "abs", magnitude)
    monkeypatch.setattr(native_shapes, "ACTS", (*native_shapes.ACTS, "abs"))
    monkeypatch.setitem(reference._ACTS, "abs", (torch.abs, torch.abs_))  # type: ignore[arg-type]
    monkeypatch.setattr(lower_layers, "_PLAIN", (*lower_layers._PLAIN, "abs"))
    monkeypatch.setitem(pipeline._RULES, "abs", lower_layers._act)  # type: ignore[arg-type]
    monkeypatch.setitem(convert.OVERLOADS, "abs", frozenset({"default"}))  # type: ignore[arg-type]
    layer = nn.Conv2d(4, 20, 3) if convolution else nn.Linear(8, 20)
    model = nn.Sequential(layer, Magnitude()).eval()
    x = torch.randn(3, 4, 8, 8) if convolution else torch.randn(3, 8)
    fast = ticketry_engine.compile(model, None, x)
    assert [(row.name, row.why) for row in fast.layers() if row.where != "engine"] == []
    with torch.no_grad():
        assert torch.allclose(fast(x), model(x), atol=1e-5, rtol=1e-4)
