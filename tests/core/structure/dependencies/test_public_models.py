"""Public networks with half of their channels gone: the smaller one is the masked one, trains, is saved and exported.

Skipped where torchvision, timm or transformers are not installed.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn

import ticketry as tk
from halving import difference, gradients, gradients_apart, halved, tensors
from public_models import NAMES, build, inputs, settled
from ticketry.core.structure.removal_trial import tried_structure

QUICK = ("timm:vit_tiny_patch16_224", "tagger")

VERSIONED = ("torchvision:mnasnet1_0",)
"""Its class takes no state dict without the version that torch keeps in one, and safetensors does not."""

SLOW = (pytest.mark.slow, pytest.mark.timeout(900))

ALL = [pytest.param(name, marks=() if name in QUICK else SLOW) for name in NAMES]


def made(name: str) -> tuple[nn.Module, Tensor, tk.Mask]:
    """A network, two inputs, and a mask of half of its channels."""
    model, x = settled(build(name)), inputs(name)
    return model, x, halved(model, tried_structure(model, x))


@pytest.mark.parametrize("name", ALL)
def test_half_of_the_channels(name: str, tmp_path: Path) -> None:
    model, x, mask = made(name)
    plan = tk.structure.shrink_plan(model, mask, x)
    small = tk.structure.rebuild(model, plan)
    for training in (False, True):
        assert difference(model, small, mask, x, training=training) <= 1e-9
    before, after = (sum(p.numel() for p in network.parameters()) for network in (model, small))
    assert before - after == mask.total - mask.kept > 0.1 * before
    _trains(model, mask, small, plan, x)
    _is_saved(name, small, plan, x, tmp_path)
    _is_exported(small, x)


def _trains(model: nn.Module, mask: tk.Mask, small: nn.Module, plan: tk.structure.ShrinkPlan, x: Tensor) -> None:
    """Each weight that is left has the gradient that it has in the masked network, in float64; most have one."""
    assert gradients_apart(model, small, mask, plan, x, training=True)[0] <= 1e-7
    found = gradients(copy.deepcopy(small).double(), x)
    floor = 1e-12 * max(float(gradient.abs().max()) for gradient in found.values())
    assert sum(float(gradient.abs().max()) > floor for gradient in found.values()) > 0.7 * len(list(small.parameters()))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(copy.deepcopy(small), x).values())


def _is_saved(name: str, small: nn.Module, plan: tk.structure.ShrinkPlan, x: Tensor, folder: Path) -> None:
    again = tk.structure.rebuild(build(name, seed=1), tk.structure.ShrinkPlan.load(plan.save(folder / "plan")))
    if name in VERSIONED:
        torch.save(small.state_dict(), folder / "small.pt")
        again.load_state_dict(torch.load(folder / "small.pt", weights_only=True))
    else:
        save_model(small, str(folder / "small.safetensors"))
        load_model(again, str(folder / "small.safetensors"))
    with torch.no_grad():
        assert all(torch.equal(*pair) for pair in zip(*(tensors(m.eval()(x)) for m in (small, again)), strict=True))


def _is_exported(small: nn.Module, x: Tensor) -> None:
    program = torch.export.export(small.eval(), (x,)).module()
    with torch.no_grad():
        for found, wanted in zip(tensors(program(x)), tensors(small(x)), strict=True):
            assert float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


ANEW = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, load_model
import ticketry as tk
from ticketry.core.structure.removal_trial import tried_structure
from public_models import build, inputs
for folder in map(Path, sys.argv[1:]):
    name = (folder / "name").read_text()
    small = tk.structure.rebuild(build(name, seed=2), tk.structure.ShrinkPlan.load(folder / "plan")).eval()
    load_model(small, str(folder / "small.safetensors"))
    with torch.no_grad():
        assert torch.equal(small(inputs(name)), load_file(folder / "outputs.safetensors")["outputs"]), name
print("equal")
"""


@pytest.mark.slow
def test_saved_and_made_again_in_another_process(tmp_path: Path) -> None:
    """Bit for bit, from a file of weights, a plan, and the library's own function."""
    folders = []
    for name in ("torchvision:shufflenet_v2_x1_0", "torchvision:resnext50_32x4d", "timm:vit_tiny_patch16_224", "u-net"):
        model, x, mask = made(name)
        plan = tk.structure.shrink_plan(model, mask, x)
        small = tk.structure.rebuild(model, plan)
        folders.append(folder := tmp_path / str(len(folders)))
        folder.mkdir()
        plan.save(folder / "plan")
        save_model(small, str(folder / "small.safetensors"))
        with torch.no_grad():
            save_file({"outputs": small(x)}, folder / "outputs.safetensors")
        (folder / "name").write_text(name)
    tests = str(Path(__file__).parents[3])
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r})\n{ANEW}", *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout == "equal\n", done.stderr[-2000:]
