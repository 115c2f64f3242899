"""Compute digests of the source of user-defined code; keys of results that depend on this code contain them.

A digest covers a module and the modules that it reaches, which are the modules imported by its import statements (also
those in functions), by the imports of these modules, and so on. Only modules of the same package or from the same
folder count. A digest does not cover other installed packages, modules imported by a name computed at run time, the
``__init__`` of a parent package, or data files.

A digest is the same in every process, because it does not depend on which modules are loaded. One exception: if a file
is edited after its module was loaded, as in a notebook, the digest is that of the source that runs, see
`read_module_source`.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from ticketry.errors import UsageError
from ticketry.registry.loading import load

_log = logging.getLogger(__name__)


def digest_source(target: str, *objects: object) -> str:
    """Return the SHA-256 of the source that defines ``module:object``; modules of ticketry are left out.

    The digest covers the module, the modules that define the object and `objects`, and all modules that these reach.

    Args:
        target: the name ``module:object``.
        objects: further objects whose defining modules are included.

    Raises:
        UsageError: if a module cannot be imported or has no source file.
    """
    return _digest_modules({target.partition(":")[0]} | _defining_modules(load(target), *objects))


def digest_defining_source(*objects: object) -> str:
    """Return the SHA-256 of the source of the modules that define `objects`, and of the modules that these reach.

    The result is "" if all these modules belong to ticketry or have no file, as at a prompt and in a notebook.
    """
    return (
        _digest_modules(modules)
        if (modules := {name for name in _defining_modules(*objects) if _find_source_file(name)})
        else ""
    )


def find_reached_modules(target: str) -> set[str]:
    """Return the names of the modules that define ``module:object``, and of all modules that these reach.

    Raises:
        UsageError: if the module cannot be imported.
    """
    modules = {target.partition(":")[0]} | _defining_modules(load(target))
    return modules | _find_reached(modules).keys()


def _defining_modules(*objects: object) -> set[str]:
    """Return the names of the modules that define `objects`; modules of ticketry are left out."""
    modules = {one.__name__ for one in objects if isinstance(one, ModuleType)}
    names = {getattr(one, "__module__", None) for one in objects} | modules
    return {name for name in names if name in sys.modules and not _is_library_module(name)}


def _digest_modules(modules: Iterable[str]) -> str:
    """Return the SHA-256 of the source of modules, and of the modules that these reach."""
    found = hashlib.sha256()
    for name in sorted(modules):
        file = _find_source_file(name)
        if file is None:
            raise UsageError(
                f"{name} has no source file, so that its results cannot have a key: define it in a .py file"
            )
        found.update(read_module_source(name, file))
    return add_reached_modules(found, modules).hexdigest()


def add_reached_modules(found: hashlib._Hash, modules: Iterable[str]) -> hashlib._Hash:
    """Add the names and sources of all modules that `modules` reach to the digest `found`, and return `found`."""
    for name, file in sorted(_find_reached(modules).items()):
        found.update(f"\0{name}\0".encode())
        found.update(read_module_source(name, file))
    return found


_loaded_sources: dict[tuple[str, Path], tuple[object, bytes]] = {}
"""For each module and file, the module's spec (None if the module is not loaded) and the source when first read."""


def read_module_source(name: str, file: Path) -> bytes:
    """Return the source code that a module runs in this process: the content of its file when it was loaded.

    If the file was edited after the module was loaded, the source before the edit is returned, and a warning is logged
    once per edit. With the new source, results of the old code would be stored under the key of the new code.
    """
    source = file.read_bytes()
    module = sys.modules.get(name)
    loaded = getattr(module, "__spec__", None) or module  # a reload makes another spec
    before, known = _loaded_sources.get((name, file)) or (loaded, source)
    if loaded is None or (before is not None and before is not loaded) or known == source:
        _loaded_sources[name, file] = loaded, source
        return source
    _loaded_sources[name, file] = loaded, known
    _warn_of_edit(name, file, hashlib.sha256(source).hexdigest())
    return known


@lru_cache(maxsize=256)
def _warn_of_edit(name: str, file: Path, source: str) -> None:
    _log.warning(
        "%s was edited after this process had loaded %s: the source before the edit runs, and results are stored under"
        " its digest; to use the new source, call importlib.reload or start a new process",
        *(file, name),
    )


def _find_source_file(module: str) -> Path | None:
    """Return the source file of an imported module; None if it is not imported or has no .py file."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file) if file and file.endswith(".py") else None


def _is_library_module(module: str) -> bool:
    return module.partition(".")[0] == "ticketry"


# -- modules reached by imports ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Module:
    """Describes a module by its name and file, and by the folder on `sys.path` from which it is imported."""

    name: str
    file: Path
    root: Path
    """The folder on `sys.path`."""

    @property
    def package(self) -> str:
        """Name of the package to which relative imports in this module refer."""
        return self.name if self.file.name == "__init__.py" else self.name.rpartition(".")[0]

    def sibling(self, name: str) -> _Module | None:
        """Return the module `name` in the same root folder; None if missing or part of another installed package."""
        first = name.partition(".")[0]
        if _is_library_module(name) or (first != self.name.partition(".")[0] and _is_package_folder(self.root)):
            return None
        path = self.root.joinpath(*name.split("."))
        files = (path / "__init__.py", path.with_name(f"{path.name}.py"))
        return next((_Module(name, file, self.root) for file in files if file.is_file()), None)


def _find_reached(modules: Iterable[str]) -> dict[str, Path]:
    """Return the name and file of every other module that the imported `modules` reach."""
    roots = [found for name in modules if (found := _find_imported_module(name))]
    seen, waiting = {found.file: found for found in roots}, list(roots)
    while waiting:
        module = waiting.pop()
        for names in _parse_imports(read_module_source(module.name, module.file), module.package):
            found = next((one for name in names if (one := module.sibling(name))), None)
            if found and found.file not in seen:
                seen[found.file] = found
                waiting.append(found)
    return {found.name: found.file for found in seen.values() if found not in roots}


def _find_imported_module(name: str) -> _Module | None:
    """Return an imported module with its file; None if it has no source file, or a file with another name."""
    file = _find_source_file(name)
    if file is None:
        return None
    if name == "__main__":
        spec = getattr(sys.modules[name], "__spec__", None)
        if spec is None:
            return _Module(file.stem, file, file.parent)
        name = spec.name
    root = file.parents[name.count(".") + (file.name == "__init__.py")]
    found = _Module(name, file, root).sibling(name)
    return found if found and found.file == file else None


@lru_cache(maxsize=256)
def _parse_imports(source: bytes, package: str) -> tuple[tuple[str, ...], ...]:
    """Return, for each import anywhere in the source, the module names that it may mean, the likeliest first."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # for another Python version; importing it raises the error
        return ()
    return tuple(names for node in ast.walk(tree) for names in _imported_names(node, package))


def _imported_names(node: ast.AST, package: str) -> Iterator[tuple[str, ...]]:
    """Yield, for each import in the statement `node`, the module names that it may mean."""
    if isinstance(node, ast.Import):
        yield from ((alias.name,) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parts = package.split(".") if node.level else []
        base = ".".join([*parts[: len(parts) + 1 - node.level], *([node.module] if node.module else [])])
        for alias in node.names if base else ():
            yield (base,) if alias.name == "*" else (f"{base}.{alias.name}", base)  # a module, or an object in one


@lru_cache(maxsize=64)
def _is_package_folder(folder: Path) -> bool:
    """Return whether pip installs packages into a folder, in which modules side by side are then unrelated."""
    return folder.name in ("site-packages", "dist-packages") or any(folder.glob("*.dist-info"))
