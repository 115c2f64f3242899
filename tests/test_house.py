"""The shape of the packages: no circular imports, and no import of a module that is missing."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import ticketry
import ticketry_engine

ROOT = Path(ticketry.__file__).parent
ENGINE = Path(ticketry_engine.__file__).parent


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the package in `root`, packages by their own names."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Known modules that a module imports: anywhere, also inside functions and for type checkers alone."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                module = f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base
                if module in known:
                    yield module


def circles(root: Path) -> list[list[str]]:
    """Modules of the package in `root` that import each other, directly or through others: each set of them, sorted.

    They are the strongly connected components of the graph of imports (Tarjan, "Depth-first search and linear graph
    algorithms", SIAM Journal on Computing 1, 1972).
    """
    known = modules(root)
    edges = {name: sorted(set(imported(name, path, known)) - {name}) for name, path in known.items()}
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

    for name in known:
        if name not in order:
            visit(name)
    return found


def test_no_environment_is_in_the_repository() -> None:
    """Neither as a folder nor as a link, which would take the place of the folder wherever it is checked out."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a checkout")
    told = subprocess.run(["git", "ls-files", ".venv"], cwd=root, capture_output=True, text=True, check=True)
    assert told.stdout == "", "git rm --cached .venv"


@pytest.mark.parametrize("root", [ROOT, ENGINE], ids=lambda root: root.name)
def test_no_circle_of_imports(root: Path) -> None:
    assert not circles(root)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"a": "import house.b", "b": "import os"}, []),
        ({"a": "import house.b", "b": "import house.a"}, [["house.a", "house.b"]]),
        ({"a": "from . import b", "b": "def f():\n    from .a import x"}, [["house.a", "house.b"]]),
        ({"a": "from .b import x", "b": "if TYPE_CHECKING:\n    from house import a"}, [["house.a", "house.b"]]),
        ({"a": "import house.b", "b": "import house.c", "c": "import house.a"}, [["house.a", "house.b", "house.c"]]),
        ({"a": "from house import x", "__init__": "from house.a import x"}, [["house", "house.a"]]),
        ({"a": "from house import b", "__init__": "from house.a import x", "b": ""}, []),
        ({"a": "import house.a", "b": "import house.a, house.c", "c": "import house.a"}, []),
    ],
)
def test_the_search_for_circles(tmp_path: Path, files: dict[str, str], found: list[list[str]]) -> None:
    root = tmp_path / "house"
    root.mkdir()
    for name, text in {"__init__": "", **files}.items():
        (root / f"{name}.py").write_text(text)
    assert circles(root) == found


def _names_of(module: str) -> set[str] | None:
    """What a module of the library has at its top level; None if there is no such module."""
    place = ROOT.parent / module.replace(".", "/")
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.exists():
        return None
    names = {found.stem for found in place.iterdir()} if place.is_dir() else set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {one.asname or one.name for one in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_what_a_benchmark_imports_is_there(file: Path) -> None:
    """Most are never run by tests, so that nothing else tells when a module was moved."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith(("ticketry.", "ticketry_engine."))
        ):
            names = _names_of(node.module)
            assert names is not None, f"there is no {node.module}"
            assert {one.name for one in node.names} <= names, node.module
