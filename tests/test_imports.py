"""The arrows between the rooms of the package: who may import whom, inside functions too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ticketry
import ticketry_engine

ROOT = Path(ticketry.__file__).parent
ENGINE_ROOT = Path(ticketry_engine.__file__).parent
SOURCES = ROOT.parent
PACKAGES = ("ticketry", "ticketry_engine")

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
    "report": LEAVES | {"lab", "records", "evidence"},
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


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a file of either package imports, relative imports resolved."""
    package = [path.relative_to(SOURCES).parts[0], *path.relative_to(SOURCES).parts[1:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names] if module in PACKAGES else [module]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        for name in names:
            yield node.lineno, name


def imports(path: Path, package: str = "ticketry") -> Iterator[tuple[int, str]]:
    """(line, dotted name after ``package.``) of everything of a package that a file imports."""
    for line, name in imported_modules(path):
        if name == package or name.startswith(f"{package}."):
            yield line, name.removeprefix(package).removeprefix(".")


def target_of(name: str) -> str:
    """The room or module a dotted name lies in; "" for the package itself (``from ticketry import Mask``)."""
    first = name.split(".")[0]
    return first if (ROOT / first).is_dir() or (ROOT / f"{first}.py").is_file() else ""


FILES = sorted(ROOT.rglob("*.py"))
ENGINE_FILES = sorted(ENGINE_ROOT.rglob("*.py"))


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
        "kernels.activations",
        "kernels.amx",
        "kernels.bfloat",
        "kernels.copies",
        "kernels.emitter",
        "kernels.llvm",
        "kernels.program",
        "kernels.target",
        "kernels.window",
    )
}
"""What the kernels of a layout stand on."""

ENGINE = {
    "ir.attribute_kinds": set(),
    "ir.native_shapes": set(),
    "ir.native": {"ir.attribute_kinds", "ir.native_shapes"},
    "ir.nodes": {"ir.native", "ir.native_shapes"},
    "ir.aten": {"ir.native", "ir.nodes"},
    "ir.graph": {"ir.native", "ir.nodes", "ir.aten"},
    "ir.memory": set(),
    "ir.binding": {"ir.native", "ir.nodes", "ir.graph", "ir.memory"},
    "ir.reference": {"ir.native", "ir.nodes", "ir.aten", "ir.graph", "ir.memory", "ir.binding"},
    "ir.shape_claims": {"ir.native", "ir.nodes", "ir.aten", "ir.graph"},
    "ir.places": set(),
    "ir.packed_weights": {"ir.native", "ir.nodes", "ir.aten", "ir.graph", "ir.places"},
    "ir.model_file": {
        *("ir.native", "ir.nodes", "ir.aten", "ir.graph", "ir.shape_claims"),
        *("ir.places", "ir.packed_weights"),
    },
    "ir": set(),
    "kept_files": set(),
    "example_inputs": set(),
    "capture": {"example_inputs", "ir", "kept_files"},
    "processor": set(),
    "kernels": {"kept_files", "platforms", "processor"},
    "kernels.channels_last": KERNELS,
    "kernels.planar": KERNELS,
    "kernels.training": KERNELS | {"kernels.planar"},
    "plan": {"ir", "kernels", "kept_files"},
    "training": {"example_inputs", "kernels", "layers"},
    "export": {"example_inputs", "capture"},
    "errors": set(),
    "support": set(),
}
"""Part of the engine -> the other parts that it may import: a graph is made, run and stored without any kernel, kernels
know no graph, and the two layouts not each other."""


@pytest.mark.parametrize("part", ENGINE)
def test_arrows_inside_the_engine(part):
    folder = ENGINE_ROOT.joinpath(*part.split("."))
    paths = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    used = {name for path in paths for _, name in imports(path, "ticketry_engine")}
    allowed = {part, "errors", "results", "support", *ENGINE[part]}
    assert paths
    assert not [name for name in used if not any(f"{name}.".startswith(f"{one}.") for one in allowed)]


@pytest.mark.parametrize("path", ENGINE_FILES, ids=lambda path: str(path.relative_to(ENGINE_ROOT)))
def test_the_engine_imports_nothing_from_ticketry(path):
    assert not [name for _, name in imports(path)]


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
    monkeypatch.setitem(globals(), "SOURCES", tmp_path)
    path = tmp_path / "ticketry" / "core" / "file.py"
    path.parent.mkdir(parents=True)
    path.write_text(code)
    assert [name for _, name in imports(path)] == found
