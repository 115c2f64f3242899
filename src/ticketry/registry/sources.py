"""Digests of source that is not the library's, for keys of what it makes.

Seen are the module itself and what it reaches by import statements, those in functions too: other modules of its
package, and of the folder that it is imported from. Not seen are other packages that are installed, modules that are
imported by a name made at run time, the ``__init__`` of packages on the way, and files that it reads. Which of them are
loaded at the moment plays no part, so that a digest is the same in every process. But a module that is loaded goes on
as it was when its file is edited, as in a notebook: its source is then the one that runs, see `read_module_source`.
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
    """sha256 of the source of what ``module:object`` names: of its module, of those that define the objects, and of
    what these reach; this library's own source is not looked at.

    Raises:
        UsageError: if a module cannot be imported, or has no source file.
    """
    return _digest_modules({target.partition(":")[0]} | _defining_modules(load(target), *objects))


def digest_defining_source(*objects: object) -> str:
    """sha256 of the source of the modules that define the objects, and of what these reach; "" if they are all this
    library's, or have no file, as at a prompt and in a notebook.
    """
    return (
        _digest_modules(modules)
        if (modules := {name for name in _defining_modules(*objects) if _find_source_file(name)})
        else ""
    )


def find_reached_modules(target: str) -> set[str]:
    """The modules of what ``module:object`` names, and those that they reach by import statements.

    Raises:
        UsageError: if the module cannot be imported.
    """
    modules = {target.partition(":")[0]} | _defining_modules(load(target))
    return modules | _find_reached(modules).keys()


def _defining_modules(*objects: object) -> set[str]:
    """The modules that define objects, without those of this library."""
    modules = {one.__name__ for one in objects if isinstance(one, ModuleType)}
    names = {getattr(one, "__module__", None) for one in objects} | modules
    return {name for name in names if name in sys.modules and not _is_library_module(name)}


def _digest_modules(modules: Iterable[str]) -> str:
    found = hashlib.sha256()
    for name in sorted(modules):
        file = _find_source_file(name)
        if file is None:
            raise UsageError(f"{name} has no source file, without which its results have no key")
        found.update(read_module_source(name, file))
    return add_reached_modules(found, modules).hexdigest()


def add_reached_modules(found: hashlib._Hash, modules: Iterable[str]) -> hashlib._Hash:
    """A digest of modules, with the names and the source of those that they reach; as it is where they reach none."""
    for name, file in sorted(_find_reached(modules).items()):
        found.update(f"\0{name}\0".encode())
        found.update(read_module_source(name, file))
    return found


_loaded_sources: dict[tuple[str, Path], tuple[object, bytes]] = {}
"""Of each module and its file: what it was loaded as when its source was first read (None if it was not), and that."""


def read_module_source(name: str, file: Path) -> bytes:
    """The source that a module has in this process: of the file, or what it was before it was edited under a module
    that is loaded and has not been loaded again. That is told, once an edit: else results of the code that runs would
    be kept as those of code that nobody has run, and every later process would take them for its own.
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
        "%s was edited after this process had loaded %s: what runs is the source before, and so results are kept under"
        " it; importlib.reload, or a new process, takes the new one",
        *(file, name),
    )


def _find_source_file(module: str) -> Path | None:
    """Where the source of a module is that was imported; None if it was not, or from no such file."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file) if file and file.endswith(".py") else None


def _is_library_module(module: str) -> bool:
    return module.partition(".")[0] == "ticketry"


# -- what a module reaches ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Module:
    """A module by its name and file, with the folder that it is imported from."""

    name: str
    file: Path
    root: Path

    @property
    def package(self) -> str:
        """What its relative imports are relative to."""
        return self.name if self.file.name == "__init__.py" else self.name.rpartition(".")[0]

    def sibling(self, name: str) -> _Module | None:
        """The module of a name in the same folder; None if none is there, or if it is of another installed package."""
        first = name.partition(".")[0]
        if _is_library_module(name) or (first != self.name.partition(".")[0] and _is_package_folder(self.root)):
            return None
        path = self.root.joinpath(*name.split("."))
        files = (path / "__init__.py", path.with_name(f"{path.name}.py"))
        return next((_Module(name, file, self.root) for file in files if file.is_file()), None)


def _find_reached(modules: Iterable[str]) -> dict[str, Path]:
    """Name and file of every module that others, which are imported, reach by import statements; without themselves."""
    begun = [found for name in modules if (found := _find_imported_module(name))]
    seen, waiting = {found.file: found for found in begun}, list(begun)
    while waiting:
        module = waiting.pop()
        for names in _parse_imports(read_module_source(module.name, module.file), module.package):
            found = next((one for name in names if (one := module.sibling(name))), None)
            if found and found.file not in seen:
                seen[found.file] = found
                waiting.append(found)
    return {found.name: found.file for found in seen.values() if found not in begun}


def _find_imported_module(name: str) -> _Module | None:
    """None for one that was not imported from a file of its name in a folder."""
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
    """The names of what a module imports, wherever in it: of each the names that it may have, the likeliest first."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # of another Python: whoever imports it is told
        return ()
    return tuple(names for node in ast.walk(tree) for names in _imported_names(node, package))


def _imported_names(node: ast.AST, package: str) -> Iterator[tuple[str, ...]]:
    if isinstance(node, ast.Import):
        yield from ((alias.name,) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parts = package.split(".") if node.level else []
        base = ".".join([*parts[: len(parts) + 1 - node.level], *([node.module] if node.module else [])])
        for alias in node.names if base else ():
            yield (base,) if alias.name == "*" else (f"{base}.{alias.name}", base)  # a module, or what is in one


@lru_cache(maxsize=64)
def _is_package_folder(folder: Path) -> bool:
    """Whether packages are installed in a folder, so that what lies beside a package there is not its own."""
    return folder.name in ("site-packages", "dist-packages") or any(folder.glob("*.dist-info"))
