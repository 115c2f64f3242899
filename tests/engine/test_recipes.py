"""The engine's README: its example prints what it shows, its files exist, and its recipes work in two files each."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ticketry_engine

PACKAGE = Path(ticketry_engine.__file__).parent
README = (PACKAGE / "README.md").read_text(encoding="utf-8")


def test_the_example_prints_the_output_shown() -> None:
    code, shown = re.findall(r"```(?:python)?\n(.*?)```", README, re.DOTALL)[:2]
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


RECIPES = {
    "an activation": [
        ("ir/native_shapes.py", '    "relu": (torch.relu', '    "abs": (torch.abs, torch.abs_),\n'),
        ("kernels/activations.py", '    "relu": relu,', '    "abs": lambda e, x: e.intrinsic("llvm.fabs", x),\n'),
    ],
    "a layer kind": [
        (
            "ir/native.py",
            '    "linear": Rule(',
            '    "deg2rad": Rule((1, 1), shapes.shape_of_input, lambda *_: torch.deg2rad),\n'
            '    "cumsum": Rule((1, 1), shapes.shape_of_input, lambda *_: lambda x: x.cumsum(1)),\n',
        ),
        (
            "capture/lower_layers.py",
            '    "batch_norm": _lower_batch_norm,',
            '    "deg2rad": lambda e, node, args: ['
            'native_node("deg2rad", e.float_inputs(node, args["self"]), node.output)],\n'
            '    "cumsum": lambda e, node, args: ['
            'native_node("cumsum", e.float_inputs(node, args["self"]), node.output)],\n',
        ),
    ],
    "a kernel for a layer kind": [
        ("plan/sketch.py", '    "linear": _add_linear,', '    "deg2rad": _add_pointwise,\n'),
        (
            "plan/emission.py",
            '    if kind in ("add", "mul"):',
            '    if kind == "deg2rad":\n'
            "        factor = np.full(task.output.channels, np.pi / 180, np.float32)\n"
            "        return layout.affine(x, y, factor, np.zeros_like(factor), None)\n",
        ),
    ],
    "a processor": [
        ("kernels/target.py", '"generic": 4}', '"core2": 4, '),
        (
            "kernels/target.py",
            '    "aarch64": Target(',
            '    "core2": Target("core2", _LINUX, "core2", "", lanes=4, registers=16, fused=False),\n',
        ),
    ],
}
"""Recipe -> file, text before which lines are added, and the lines."""

CHECK = """
import platform, torch, ticketry_engine as engine
from torch import nn
from ticketry_engine.kernels.target import cross_compile_target

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(4, 20, 3), nn.Linear(6, 8), nn.Linear(8, 3)
    def forward(self, x):
        return self.last(torch.deg2rad(self.second(torch.abs(self.first(x)))).cumsum(1))

torch.manual_seed(0)
model, x = Model().eval(), torch.randn(3, 4, 8, 8)
assert cross_compile_target("core2").lanes == 4
target = "core2" if platform.machine() == "x86_64" else "host"
fast = engine.compile(model, None, x, target=target)
assert fast.target.name == target or target == "host"
print([(row.kind, row.why) for row in fast.layers() if row.where == "torch"], engine.__file__)
assert "act" not in {row.kind for row in fast.layers()}  # it is part of the convolution
fast = engine.load(fast.save("model.tk"), target=target)
with torch.no_grad():
    torch.testing.assert_close(fast(x), model(x), atol=1e-5, rtol=1e-4)
"""


def test_recipes_add_an_activation_a_layer_kind_its_kernel_and_a_processor(tmp_path: Path) -> None:
    copy = tmp_path / "ticketry_engine"
    shutil.copytree(PACKAGE, copy)  # with what is compiled
    recipes = README[README.index("## Recipes") :]
    for edits in RECIPES.values():
        assert len({file for file, _, _ in edits}) <= 2
        for file, before, lines in edits:
            assert f"`{file}`" in recipes
            text = (copy / file).read_text(encoding="utf-8")
            assert text.count(before) == 1
            (copy / file).write_text(text.replace(before, lines + before), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TICKETRY_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", CHECK], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"[('cumsum', 'no kernel for cumsum')] {copy / '__init__.py'}\n"
