"""The arrows between the rooms of the package: who may import whom, inside functions too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ticketry

ROOT = Path(ticketry.__file__).parent

LEAVES = {"choices", "errors", "files", "folders", "registry", "step", "version"}
"""Modules that anybody may import."""

ROOMS = {"core", "records", "tasks", "lab", "search", "evidence", "report", "engine"}

ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "folders": set(),
    "version": set(),
    "registry": {"errors", "choices"},
    "choices": {"errors"},
    "step": LEAVES,
    "core": LEAVES,
    "tasks": LEAVES | {"core", "records"},
    "lab": LEAVES | {"tasks", "core", "records", "engine"},
    "search": LEAVES | {"lab", "tasks", "core", "records"},
    "evidence": LEAVES | {"lab", "tasks", "core", "records"},
    "records": LEAVES | {"core"},
    "report": LEAVES | {"lab", "records"},
    "engine": LEAVES | {"core", "records"},
    "integrations": LEAVES | {"core", "engine"},
    # Above the rooms. Nothing imports the command line, and no room anything of these.
    "testing": LEAVES | {"search", "lab", "tasks", "core"},
    "experiments": LEAVES | ROOMS,
    "cli": LEAVES | ROOMS | {"experiments"},
    "__init__": LEAVES | ROOMS | {"experiments"},
    "__main__": {"cli"},
}
"""Room or module -> what it may import of the package, itself aside."""


def room_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name after ``ticketry.``) of everything of the package that a file imports."""
    package = ["ticketry", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "ticketry" else [module]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        for name in names:
            if name == "ticketry" or name.startswith("ticketry."):
                yield node.lineno, name.removeprefix("ticketry").removeprefix(".")


def target_of(name: str) -> str:
    """The room or module a dotted name lies in; "" for the package itself (``from ticketry import Mask``)."""
    first = name.split(".")[0]
    return first if (ROOT / first).is_dir() or (ROOT / f"{first}.py").is_file() else ""


FILES = sorted(ROOT.rglob("*.py"))


def test_every_room_is_on_the_map():
    assert {room_of(path) for path in FILES} <= set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_go_one_way(path):
    room = room_of(path)
    wrong = [
        f"line {line}: ticketry.{name}".rstrip(".")
        for line, name in imports(path)
        if target_of(name) != room and target_of(name) not in ALLOWED[room]
    ]
    assert not wrong, f"{path.relative_to(ROOT)} may not import these: {wrong}"


KERNELS = {
    *(
        "cpu.activations",
        "cpu.amx",
        "cpu.bfloat",
        "cpu.copies",
        "cpu.emitter",
        "cpu.llvm",
        "cpu.program",
        "cpu.target",
        "cpu.window",
    )
}
"""What the kernels of a layout stand on."""

ENGINE = {
    "graph.attribute_kinds": set(),
    "graph.native_shapes": set(),
    "graph.native": {"graph.attribute_kinds", "graph.native_shapes"},
    "graph.nodes": {"graph.native", "graph.native_shapes"},
    "graph.aten": {"graph.native", "graph.nodes"},
    "graph.graph": {"graph.native", "graph.nodes", "graph.aten"},
    "graph.memory": set(),
    "graph.binding": {"graph.native", "graph.nodes", "graph.graph", "graph.memory"},
    "graph.reference": {"graph.native", "graph.nodes", "graph.aten", "graph.graph", "graph.memory", "graph.binding"},
    "graph.shape_claims": {"graph.native", "graph.nodes", "graph.aten", "graph.graph"},
    "graph.places": set(),
    "graph.packed_weights": {"graph.native", "graph.nodes", "graph.aten", "graph.graph", "graph.places"},
    "graph.model_file": {
        *("graph.native", "graph.nodes", "graph.aten", "graph.graph", "graph.shape_claims"),
        *("graph.places", "graph.packed_weights"),
    },
    "graph": set(),
    "kept_files": set(),
    "example_inputs": set(),
    "capture": {"example_inputs", "graph", "kept_files"},
    "processor": set(),
    "cpu": {"kept_files", "processor"},
    "cpu.pixels": KERNELS,
    "cpu.planes": KERNELS,
    "cpu.training": KERNELS | {"cpu.planes"},
    "plan": {"graph", "cpu", "kept_files"},
    "training": {"example_inputs", "cpu", "layers"},
    "export": {"example_inputs", "capture"},
}
"""Part of the engine -> the other parts that it may import: a graph is made, run and stored without any kernel, kernels
know no graph, and the two layouts not each other."""


@pytest.mark.parametrize("part", ENGINE)
def test_arrows_inside_the_engine(part):
    folder = ROOT.joinpath("engine", *part.split("."))
    paths = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    used = {name.removeprefix("engine.") for path in paths for _, name in imports(path) if name.startswith("engine.")}
    allowed = {part, *ENGINE[part]}
    assert paths
    assert not [name for name in used if not any(f"{name}.".startswith(f"{one}.") for one in allowed)]


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import ticketry.lab.store", ["lab.store"]),
        ("import ticketry", [""]),
        ("import torch, ticketry.errors as e", ["errors"]),
        ("from ticketry import core, Mask", ["core", "Mask"]),
        ("from ticketry.core.mask import Mask", ["core.mask"]),
        ("from . import mask", ["core"]),
        ("from .mask import Mask", ["core.mask"]),
        ("from .. import lab", ["lab"]),
        ("from ..lab.store import Store", ["lab.store"]),
        ("def f():\n    from ticketry.cli import main", ["cli"]),
        ("if TYPE_CHECKING:\n    from ticketry.lab import x", ["lab"]),
        ("importlib.import_module('ticketry.lab')", ["lab"]),
        ("import_module('ticketry.lab')", ["lab"]),
        ("import ticketry_other, os.path", []),
    ],
)
def test_the_reader_of_imports(tmp_path, monkeypatch, code, found):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "core" / "file.py"
    path.parent.mkdir()
    path.write_text(code)
    assert [name for _, name in imports(path)] == found
