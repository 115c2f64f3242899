"""Imports between the packages: which package may import which, no cycles, and no imports of missing modules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import ticketry
import ticketry_engine

REPOSITORY = Path(__file__).parents[1]
SOURCES = Path(ticketry.__file__).parents[1]
ROOTS = {"ticketry": Path(ticketry.__file__).parent, "ticketry_engine": Path(ticketry_engine.__file__).parent}

SHARED = {"choices", "errors", "files", "registry", "step", "version"}
"""Modules of ticketry that every package may import."""
PACKAGES = {"core", "budgets", "records", "tasks", "lab", "search", "evidence", "report", "engine"}

MAY_IMPORT = {
    "errors": set(),
    "files": {"errors"},
    "version": set(),
    "registry": {"errors", "choices"},
    "choices": {"errors"},
    "step": SHARED,
    "core": SHARED | {"budgets"},  # `prune` takes budgets; the modules of both have no import cycles
    "budgets": SHARED | {"core"},
    "tasks": SHARED | {"core", "records"},
    "lab": SHARED | {"tasks", "core", "records", "engine", "budgets"},
    "search": SHARED | {"lab", "tasks", "core", "budgets", "records"},
    "evidence": SHARED | {"lab", "tasks", "core", "budgets", "records"},
    "records": SHARED | {"core"},
    "report": SHARED | {"lab", "records", "evidence"},
    "engine": SHARED | {"core", "records", "budgets"},
    "integrations": SHARED | {"core", "engine"},
    "testing": SHARED | {"search", "lab", "tasks", "core"},
    "experiments": SHARED | PACKAGES,
    "cli": SHARED | PACKAGES | {"experiments"},
    "__init__": SHARED | PACKAGES | {"experiments"},
    "__main__": {"cli"},
}
"""Package or module of ticketry -> what it may import of ticketry besides itself."""

ENGINE_MAY_IMPORT = {
    "ir": set(),
    "capture": {"example_inputs", "ir"},
    "kernels": {"processor"},
    "plan": {"ir", "kernels"},
    "errors": set(),
    "support": set(),
}
"""Part of the engine -> other parts that it may import besides `errors`, `results` and `support`. Graphs do not import
kernels, and kernels do not import graphs."""

KERNELS_MAY_NOT_IMPORT = {"channels_last": {"planar", "training"}, "planar": {"channels_last", "training"}}
"""Kernels of a memory layout -> folders of `ticketry_engine.kernels` that they may not import."""


@cache
def modules(root: Path) -> dict[str, Path]:
    """Return dotted name -> file of every module of the package in `root`; a package has its own name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(node: ast.AST) -> Iterator[ast.stmt]:
    """Yield all statements inside a node; `ast.walk` would visit every expression too, which takes much longer."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        for one in getattr(node, field, ()) if isinstance(getattr(node, field, ()), list) else ():
            yield one
            yield from statements(one)


_STRING = re.compile(r'"""(?:\\.|[^\\])*?"""', re.DOTALL)
_IMPORT = re.compile(r"^[ \t]*((?:from|import) (?:[^(\n]|\([^)]*\))*)$", re.MULTILINE)
"""Statements that import. Parsing these alone takes a fifth of the time of parsing whole files."""


@cache
def imported(path: Path, sources: Path) -> frozenset[str]:
    """Return dotted names of all modules, or names in modules, that a file imports; relative imports are resolved."""
    package, text = path.relative_to(sources).parts[:-1], path.read_text(encoding="utf-8")
    found = set(re.findall(r"""\bimport_module\(["']([\w.]+)["']\)""", text))
    for node in ast.parse("\n".join(_IMPORT.findall(_STRING.sub("", text)))).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return frozenset(found)


def imports_between(package: str) -> Iterator[tuple[Path, str, str]]:
    """Yield (file, its first-level part, imported first-level part), the last empty for the package itself."""
    parts = {
        path: path.relative_to(ROOTS[package]).parts[0].removesuffix(".py") for path in modules(ROOTS[package]).values()
    }
    known = set(parts.values())
    for path, part in parts.items():
        for name in imported(path, SOURCES):
            if name == package or name.startswith(f"{package}."):
                first = name.split(".", 2)[1] if "." in name else ""
                yield path, part, first if first in known else ""


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components with several members, each sorted.

    Source: Tarjan, "Depth-first search and linear graph algorithms", SIAM Journal on Computing 1, 1972.
    """
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in edges[name]:
            if other not in order:
                visit(other)
            if other in stack:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == order[name]:
            first = stack.index(name)
            if len(stack) - first > 1:
                found.append(sorted(stack[first:]))
            del stack[first:]

    for name in edges:
        if name not in order:
            visit(name)
    return found


def import_graph(root: Path) -> dict[str, set[str]]:
    """Return module -> modules of the same package that it imports, also inside functions."""
    known = modules(root)
    return {
        name: {
            module
            for one in imported(path, root.parent)
            if (module := one if one in known else one.rpartition(".")[0]) in known and module != name
        }
        for name, path in known.items()
    }


def test_packages_import_downward_only() -> None:
    wrong = [
        f"{path.relative_to(SOURCES)} imports {target or 'ticketry'}"
        for path, package, target in imports_between("ticketry")
        if target != package and target not in MAY_IMPORT[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_parts_of_the_engine_import_downward_only() -> None:
    wrong = [
        f"{path.relative_to(SOURCES)} imports {target}"
        for path, part, target in imports_between("ticketry_engine")
        if part in ENGINE_MAY_IMPORT and target not in {part, "errors", "results", "support", *ENGINE_MAY_IMPORT[part]}
    ]
    assert not wrong, "\n".join(wrong)


def test_kernels_of_one_layout_do_not_import_another() -> None:
    for folder, forbidden in KERNELS_MAY_NOT_IMPORT.items():
        for path in (ROOTS["ticketry_engine"] / "kernels" / folder).rglob("*.py"):
            found = {
                name.split(".")[2] for name in imported(path, SOURCES) if name.startswith("ticketry_engine.kernels.")
            }
            assert not found & forbidden, path


PUBLIC_IN_ENGINE = {
    *("bench", "costs", "errors", "example_inputs", "export", "processor", "results", "support"),
}
"""Modules of the engine that ticketry may import, besides names of `ticketry_engine` itself: see its README."""


def test_ticketry_imports_only_the_public_interface_of_the_engine() -> None:
    known = PUBLIC_IN_ENGINE | set(ticketry_engine.__all__)
    wrong = [
        f"{path.relative_to(SOURCES)} imports {name}"
        for path in modules(ROOTS["ticketry"]).values()
        for name in imported(path, SOURCES)
        if name.startswith("ticketry_engine.") and name.split(".")[1] not in known
    ]
    assert not wrong, "\n".join(wrong)


def test_the_engine_imports_nothing_from_ticketry() -> None:
    for path in modules(ROOTS["ticketry_engine"]).values():
        assert not [name for name in imported(path, SOURCES) if name.split(".")[0] == "ticketry"], path


@pytest.mark.parametrize("package", ROOTS)
def test_there_are_no_import_cycles(package: str) -> None:
    assert not cycles(import_graph(ROOTS[package]))


def test_benchmarks_and_examples_import_what_exists() -> None:
    files = [*(REPOSITORY / "benchmarks").glob("*.py"), *(REPOSITORY / "examples").rglob("*.py")]
    assert files
    for path in files:
        for name in imported(path, REPOSITORY):
            if name.split(".")[0] in ROOTS:
                module, _, attribute = name.rpartition(".")
                assert is_importable(name) or attribute in top_level_names(module), f"{path.name}: {name}"


def is_importable(module: str) -> bool:
    return module in modules(ROOTS[module.split(".")[0]])


@cache
def top_level_names(module: str) -> set[str]:
    """Return the names that a module defines or imports, or lists in `__all__`."""
    if not module or not is_importable(module):
        return set()
    text = modules(ROOTS[module.split(".")[0]])[module].read_text(encoding="utf-8")
    names = set(re.findall(r"""["'](\w+)["']""", text))  # what `__getattr__` of a package loads is listed as strings
    for node in statements(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {one.asname or one.name for one in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
    return names


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import ticketry.lab.store", {"ticketry.lab.store"}),
        ("import torch, ticketry.errors as e", {"torch", "ticketry.errors"}),
        ("from ticketry import core, Mask", {"ticketry.core", "ticketry.Mask"}),
        ("from .mask import Mask", {"ticketry.core.mask.Mask"}),
        ("from .. import lab", {"ticketry.lab"}),
        ("def f():\n    from ticketry.cli import main", {"ticketry.cli.main"}),
        ("importlib.import_module('ticketry.lab')", {"ticketry.lab"}),
    ],
)
def test_imported_finds_every_kind_of_import(tmp_path: Path, code: str, found: set[str]) -> None:
    path = tmp_path / "ticketry" / "core" / "file.py"
    path.parent.mkdir(parents=True)
    path.write_text(code)
    assert imported(path, tmp_path) == found


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"a": "import pack.b", "b": "import os"}, []),
        ({"a": "import pack.b", "b": "import pack.a"}, [["pack.a", "pack.b"]]),
        ({"a": "from . import b", "b": "def f():\n    from .a import x"}, [["pack.a", "pack.b"]]),
        ({"a": "import pack.b", "b": "import pack.c", "c": "import pack.a"}, [["pack.a", "pack.b", "pack.c"]]),
        ({"a": "from pack import x", "__init__": "from pack.a import x"}, [["pack", "pack.a"]]),
        ({"a": "import pack.a", "b": "import pack.a, pack.c", "c": "import pack.a"}, []),
    ],
)
def test_cycles_are_found(tmp_path: Path, files: dict[str, str], found: list[list[str]]) -> None:
    root = tmp_path / "pack"
    root.mkdir()
    for name, text in {"__init__": "", **files}.items():
        (root / f"{name}.py").write_text(text)
    assert cycles(import_graph(root)) == found
