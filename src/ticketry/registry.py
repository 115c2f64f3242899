"""Registries map names to objects: methods, scores, gates, controls, tasks, models, data sets, runners and others.

Every name stands for an object in a module; the module is imported when the object is first requested. A name is

built in
    if the mapping with which the registry was created has it, with its ``module:object``;
from an installed package
    if the package has an entry point of this name, with its ``module:object``, in its pyproject.toml::

        [project.entry-points."ticketry.tasks"]
        moons = "my_package.tasks:Moons"
user-defined
    if it is itself written ``package.module:object``; the module may be in the current directory.

A registry whose objects can be modules also accepts a name without a colon: ``mine`` for ``mine.py`` in the current
directory, or ``package.module``. If an entry point of a package cannot be used, a warning names the package and all
other names keep working. A package cannot replace a built-in name.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from ticketry.choices import did_you_mean
from ticketry.errors import PluginError, TicketryError, UsageError

__all__ = [
    "BUILT_IN",
    "Registry",
    "digest_defining_source",
    "digest_source",
    "find_imported_modules",
    "import_object",
    "is_plugin_name",
    "load_object",
    "put_current_folder_on_path",
]

T = TypeVar("T")

BUILT_IN = "built in"

_PREFIX = "ticketry."
GROUPS = {
    *("ticketry.methods", "ticketry.scores", "ticketry.gates", "ticketry.controls", "ticketry.tasks"),
    *("ticketry.models", "ticketry.language_models", "ticketry.data", "ticketry.runners", "ticketry.loggers"),
}
"""All groups of entry points that ticketry uses. They are listed here because most registries are created late."""
_log = logging.getLogger(__name__)


class Registry(Generic[T]):
    """Finds objects of one kind, such as tasks, by their names."""

    def __init__(
        self,
        kind: str,
        group: str,
        built_in: Mapping[str, str],
        *,
        needs: Sequence[str] = (),
        make: Callable[[str, Any], T] | None = None,
        aliases: Mapping[str, str] | None = None,
        modules: bool = False,
        error: type[TicketryError] = UsageError,
        unknown: str = "{kind} {name!r} is not known: {names}",
    ) -> None:
        """
        Args:
            kind: what the objects are, for messages, such as "task" or "search method".
            group: group of entry points in which packages offer objects, such as "ticketry.tasks".
            built_in: built-in names, in the order of lists for users, each with its ``module:object``.
            needs: names of attributes that every object must have.
            make: called with a name and the object found; `get` returns its result. By default `get` returns the
                object. `make` may raise a `TicketryError`.
            aliases: further names, each with the built-in name that it stands for.
            modules: whether objects can be modules, so that the name of a module is valid too.
            error: class of the error for an unknown name, or for a user-defined object that cannot be used.
            unknown: start of the message for an unknown name; the message continues with how to name a user-defined
                object, and the most similar known name.
        """
        self.kind = kind
        self.group = group
        GROUPS.add(group)
        self.built_in = dict(built_in)
        self.aliases = dict(aliases or {})
        self._needs = tuple(needs)
        self._make = make
        self._modules = modules
        self._error = error
        self._unknown = unknown
        self._built: dict[str, T] = {}
        """Built-in objects that were requested before, by name."""
        self._shadowed: set[_EntryPoint] = set()

    def names(self) -> tuple[str, ...]:
        """Return the built-in names, then those of installed packages, without importing anything."""
        return (*self.built_in, *sorted(self._list_entry_points()))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: str) -> bool:
        return self.aliases.get(name, name) in self.built_in or name in self._list_entry_points()

    def get(self, name: str) -> T:
        """Return the object with this name, after importing its module.

        Raises:
            PluginError: if two packages offer the name, or the object of a package cannot be used.
            TicketryError: the registry's `error` class, for an unknown name or an unusable user-defined object.
        """
        target, where = self.find_target(name), self.find_origin(name)
        if where == BUILT_IN:
            own = self.aliases.get(name, name)
            if own not in self._built:
                self._built[own] = self._build_checked_object(own, import_object(target))
            return self._built[own]
        offered = name in self._list_entry_points()
        if not offered:
            put_current_folder_on_path()
        try:
            found = load_object(target)
            file = None if offered or ":" in name else _find_user_file(name)
            loaded = getattr(found, "__file__", None)
            if file and isinstance(loaded, str) and not os.path.samefile(file, loaded):
                raise UsageError(
                    f"{file.name} in {os.getcwd()} has the name of the module {loaded}, so rename your file"
                )
            return self._build_checked_object(name, found)
        except TicketryError as error:
            if offered:
                raise PluginError(f"the {self.kind} {name!r} of the package {where} cannot be used: {error}") from error
            raise self._error(f"{self.kind} {name!r} is not known: {error}") from error

    def find_origin(self, name: str) -> str:
        """Return where the object `name` comes from: "built in", a package with its version, or a module."""
        if self.aliases.get(name, name) in self.built_in:
            return BUILT_IN
        offers = self._list_entry_points().get(name)
        return " and ".join(offer.package for offer in offers) if offers else self.find_target(name).partition(":")[0]

    def find_target(self, name: str) -> str:
        """Return the ``module:object`` for a name without importing the module; raise the errors of `get`."""
        offers = self._list_entry_points().get(name, [])
        if len(offers) > 1:
            which = " and ".join(f"{offer.package} ({offer.target})" for offer in offers)
            raise PluginError(
                f"several packages offer a {self.kind} {name!r}: {which}; uninstall all but one, or name the one that"
                " you want as module:object"
            )
        if offers:
            return offers[0].target
        if self.aliases.get(name, name) in self.built_in:
            return self.built_in[self.aliases.get(name, name)]
        if not self._is_user_defined(name):
            raise self.build_unknown_error(name)
        return name

    def is_external(self, name: str) -> bool:
        """Return whether a name stands for code outside ticketry: an object of another package, or a user's own."""
        return self.aliases.get(name, name) not in self.built_in and (
            self._is_user_defined(name) or name in self._list_entry_points()
        )

    def _is_user_defined(self, name: str) -> bool:
        """Return whether a name is user-defined: ``module:object``, or a module if objects can be modules."""
        return ":" in name or (self._modules and is_module(name))

    def digest_source(self, name: str) -> str:
        """Return a digest of the source code of the object `name`, to detect changes; "" for a built-in object."""
        return "" if self.find_origin(name) == BUILT_IN else digest_source(self.find_target(name), self.get(name))

    def load_usable_objects(self) -> dict[str, T]:
        """Return all objects by name; omit an object of a package that cannot be used, with a warning in the log."""
        found = {}
        for name in self.names():
            try:
                found[name] = self.get(name)
            except PluginError as error:
                _log.warning("%s", error)
        return found

    def build_unknown_error(self, name: str) -> TicketryError:
        """Return the error for an unknown name; the message lists the known names and the most similar one."""
        names = (*self.names(), *self.aliases)
        text = self._unknown.format(kind=self.kind, name=name, names=", ".join(names))
        near = did_you_mean(name, names)
        own = "package.module or NAME for NAME.py in this folder" if self._modules else "package.module:object"
        error = self._error(f"{text}; or your own as {own}{f'; {near}' if near else ''}".rstrip())
        error.exit_code = UsageError.exit_code  # a mistyped word is wrong usage for all error classes
        return error

    def _build_checked_object(self, name: str, found: Any) -> T:
        """Return what `make` returns for the object `found`; raise `UsageError` if it lacks a needed attribute."""
        missing = [part for part in self._needs if not hasattr(found, part)]
        if missing:
            raise UsageError(f"it has no {missing[0]}, and a {self.kind} has {' and '.join(self._needs)}")
        try:
            made: T = self._make(name, found) if self._make else found
        except TicketryError:
            raise
        except (Exception, SystemExit) as error:  # other people's constructors may raise anything
            raise UsageError(f"it cannot be made: {type(error).__name__}: {error}") from error
        return made

    def _list_entry_points(self) -> dict[str, list[_EntryPoint]]:
        """Return, by name, the entry points of installed packages in this group; built-in names are left out."""
        found: dict[str, list[_EntryPoint]] = {}
        for offer in _find_entry_points(tuple(sys.path)):
            if offer.group != self.group:
                continue
            if self.aliases.get(offer.name, offer.name) not in self.built_in:
                found.setdefault(offer.name, []).append(offer)
            elif offer not in self._shadowed:
                self._shadowed.add(offer)
                _log.warning(
                    "the package %s offers a %s %r, which is the name of one that is built in; the built-in one is"
                    " used: name the other as %s",
                    *(offer.package, self.kind, offer.name, offer.target),
                )
        return found


def is_plugin_name(name: str) -> bool:
    """Return whether an installed package has an entry point with this name, in any group of ticketry."""
    return any(offer.name == name for offer in _find_entry_points(tuple(sys.path)))


@dataclass(frozen=True, order=True)
class _EntryPoint:
    """Describes an entry point by which an installed package offers an object to a registry."""

    group: str
    name: str
    package: str
    """Name and version of the package."""
    target: str
    """The ``module:object`` that the name stands for."""


@lru_cache(maxsize=8)
def _find_entry_points(path: tuple[str, ...]) -> tuple[_EntryPoint, ...]:
    """Return all entry points in groups that begin with "ticketry.", of the packages in the folders `path`."""
    from importlib.metadata import distributions  # 20 ms, and not needed for help

    found: dict[str, list[_EntryPoint]] = {}
    for package in distributions(path=list(path)):
        name = "?"
        try:
            if _PREFIX not in (package.read_text("entry_points.txt") or ""):
                continue
            name = package.metadata["Name"]
            offers = [
                _EntryPoint(point.group, point.name, f"{name} {package.version}", point.value.partition("[")[0].strip())
                for point in package.entry_points
                if point.group.startswith(_PREFIX)
            ]
        except Exception as error:  # a damaged package must not break the others
            _log.warning("the entry points of the package %s cannot be read: %s: %s", name, type(error).__name__, error)
            continue
        if name.lower().replace("_", "-") in found:  # the first along the path is the one imported
            continue
        found[name.lower().replace("_", "-")] = offers
        for group in sorted({offer.group for offer in offers} - GROUPS):  # probably mistyped
            near = did_you_mean(group, sorted(GROUPS))
            _log.warning(
                "the package %s has entry points in the group %s, which ticketry does not have: they are ignored%s",
                *(offers[0].package, group, f"; {near}" if near else ""),
            )
    return tuple(sorted(offer for offers in found.values() for offer in offers))


# -- import objects ----------------------------------------------------------------------------------------------------


def put_current_folder_on_path() -> None:
    """Put the current directory on `sys.path`, so that modules in the directory can be imported."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


def is_module(name: str) -> bool:
    """Return whether `name` is a module in the current directory, or a module ``package.module``, without importing it.

    An installed module without a dot in its name gives False, because such a name is more often a typing error.
    """
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        return False
    if _find_user_file(name):
        return True
    if len(parts) < 2:
        return False
    try:
        package = find_spec(parts[0])
    except (ImportError, ValueError, AttributeError):  # a damaged package
        return False
    folders = (package.submodule_search_locations or ()) if package else ()
    return any(_find_module_file(Path(folder, *parts[1:])) for folder in folders)


def _find_user_file(name: str) -> Path | None:
    return _find_module_file(Path(os.getcwd(), *name.split(".")))


def _find_module_file(path: Path) -> Path | None:
    """Return the file of the module or package at `path`, which has no suffix, or None."""
    return next((file for file in (path / "__init__.py", path.with_name(f"{path.name}.py")) if file.is_file()), None)


def load_object(target: str) -> Any:
    """Import and return the object that ``module:object`` names, or the module that ``module`` names.

    Raises:
        UsageError: if the module cannot be imported or has no such object.
    """
    name, _, path = target.partition(":")
    try:
        return import_object(target)
    except (Exception, SystemExit) as error:  # other people's modules may raise anything
        if isinstance(error, AttributeError) and name in sys.modules:
            file = getattr(sys.modules[name], "__file__", None)
            raise UsageError(f"the module {name} ({file}) has no {path!r}") from None
        raise UsageError(
            f"the module {name!r} cannot be imported from {os.getcwd()}: {type(error).__name__}: {error}"
        ) from error


def import_object(target: str) -> Any:
    """Return what `load_object` returns, but let errors of the import pass unchanged."""
    name, colon, path = target.partition(":")
    found: Any = importlib.import_module(name)
    if path.isidentifier() and not hasattr(found, path) and hasattr(found, "__path__") and find_spec(f"{name}.{path}"):
        return importlib.import_module(f"{name}.{path}")  # package:module
    return attrgetter(path)(found) if colon else found


# -- digests of source -------------------------------------------------------------------------------------------------
# Keys of results that depend on user-defined code contain a digest of this code. The digest covers a module and all
# modules that it imports (also in functions), directly or through other modules.
# Only modules of the same package or from the same folder count. A digest does not cover other installed packages,
# modules imported by a name computed at run time, the `__init__` of a parent package, or data files. It is the same in
# every process, because it does not depend on which modules are loaded. One exception: if a file is edited after its
# module was loaded, as in a notebook, the digest is that of the source that runs, see `read_module_source`.


def digest_source(target: str, *objects: object) -> str:
    """Return the SHA-256 of the source that defines ``module:object``; modules of ticketry are left out.

    The digest covers the module, the modules that define the object and `objects`, and all modules that these import
    directly or indirectly, if they are in the same package or folder.
    """
    return _digest_modules({target.partition(":")[0]} | _defining_modules(load_object(target), *objects))


def digest_defining_source(*objects: object) -> str:
    """Return the SHA-256 of the source code that defines `objects`.

    The digest covers the modules that define `objects`, and all modules that these import directly or indirectly, if
    they are in the same package or folder. It is "" if all modules that define `objects` belong to ticketry or have
    no file, as at a prompt and in a notebook.
    """
    modules = {name for name in _defining_modules(*objects) if _find_source_file(name)}
    return _digest_modules(modules) if modules else ""


def find_imported_modules(target: str) -> set[str]:
    """Return the names of the modules that define ``module:object``, and of all modules that these import.

    Indirect imports are included; only modules of the same package or folder count.
    """
    modules = {target.partition(":")[0]} | _defining_modules(load_object(target))
    return modules | _find_imports_of(modules).keys()


def _defining_modules(*objects: object) -> set[str]:
    """Return the names of the modules that define `objects`; modules of ticketry are left out."""
    modules = {one.__name__ for one in objects if isinstance(one, ModuleType)}
    names = {getattr(one, "__module__", None) for one in objects} | modules
    return {name for name in names if name in sys.modules and name.partition(".")[0] != "ticketry"}


def _digest_modules(modules: Iterable[str]) -> str:
    """Return the SHA-256 of the source of `modules` and of all modules that these import, directly or indirectly."""
    found = hashlib.sha256()
    for name in sorted(modules):
        file = _find_source_file(name)
        if file is None:
            raise UsageError(
                f"{name} has no source file, so that its results cannot have a key: define it in a .py file"
            )
        found.update(read_module_source(name, file))
    return hash_imported_modules(found, modules).hexdigest()


def hash_imported_modules(found: hashlib._Hash, modules: Iterable[str]) -> hashlib._Hash:
    """Update the hash `found` with the names and sources of all modules that `modules` import, and return `found`.

    Indirect imports are included; `modules` themselves are not added.
    """
    for name, file in sorted(_find_imports_of(modules).items()):
        found.update(f"\0{name}\0".encode())
        found.update(read_module_source(name, file))
    return found


_loaded_sources: dict[tuple[str, Path], tuple[object, bytes]] = {}
"""For each module and file, the module's spec (None if the module is not loaded) and the source when first read."""


def read_module_source(name: str, file: Path) -> bytes:
    """Return the source code of the module `name` as this process runs it.

    If `file` was edited after the module was loaded, the source before the edit is returned, and a warning is logged
    once per edit. So results of the old code are not stored under a key of the new code.
    """
    source = file.read_bytes()
    module = sys.modules.get(name)
    loaded = getattr(module, "__spec__", None) or module  # a reload makes another spec
    before, known = _loaded_sources.get((name, file)) or (loaded, source)
    if loaded is None or (before is not None and before is not loaded) or known == source:
        _loaded_sources[name, file] = loaded, source
        return source
    _loaded_sources[name, file] = loaded, known
    _warn_of_edited_module(name, file, hashlib.sha256(source).hexdigest())
    return known


@lru_cache(maxsize=256)
def _warn_of_edited_module(name: str, file: Path, source: str) -> None:
    _log.warning(
        "%s was edited after this process had loaded %s: the source before the edit runs, and results are stored under"
        " its digest; to use the new source, call importlib.reload or start a new process",
        *(file, name),
    )


def _find_source_file(module: str) -> Path | None:
    """Return the source file of an imported module; None if it is not imported or has no .py file."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file) if file and file.endswith(".py") else None


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

    def find_sibling(self, name: str) -> _Module | None:
        """Return the module `name` in the same root folder; None if missing or part of another installed package."""
        first = name.partition(".")[0]
        if first == "ticketry" or (first != self.name.partition(".")[0] and _is_package_folder(self.root)):
            return None
        file = _find_module_file(self.root.joinpath(*name.split(".")))
        return _Module(name, file, self.root) if file else None


def _find_imports_of(modules: Iterable[str]) -> dict[str, Path]:
    """Return the names and files of all other modules that `modules` import, directly or indirectly."""
    roots = [found for name in modules if (found := _describe_imported_module(name))]
    seen, waiting = {found.file: found for found in roots}, list(roots)
    while waiting:
        module = waiting.pop()
        for names in _parse_imports(read_module_source(module.name, module.file), module.package):
            found = next((one for name in names if (one := module.find_sibling(name))), None)
            if found and found.file not in seen:
                seen[found.file] = found
                waiting.append(found)
    return {found.name: found.file for found in seen.values() if found not in roots}


def _describe_imported_module(name: str) -> _Module | None:
    """Return the name and file of an imported module; None if it has no source file, or a file with another name."""
    file = _find_source_file(name)
    if file is None:
        return None
    if name == "__main__":
        spec = getattr(sys.modules[name], "__spec__", None)
        if spec is None:
            return _Module(file.stem, file, file.parent)
        name = spec.name
    root = file.parents[name.count(".") + (file.name == "__init__.py")]
    found = _Module(name, file, root).find_sibling(name)
    return found if found and found.file == file else None


@lru_cache(maxsize=256)
def _parse_imports(source: bytes, package: str) -> tuple[tuple[str, ...], ...]:
    """Return, for each name that `source` imports, the modules that it may mean: for ``from a import b``, a.b and a."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # for another Python version; importing it raises the error
        return ()
    return tuple(names for node in ast.walk(tree) for names in _imported_module_names(node, package))


def _imported_module_names(node: ast.AST, package: str) -> Iterator[tuple[str, ...]]:
    """Yield, for each name that the statement `node` imports, the names of the modules that it may mean."""
    if isinstance(node, ast.Import):
        yield from ((alias.name,) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parts = package.split(".") if node.level else []
        base = ".".join([*parts[: len(parts) + 1 - node.level], *([node.module] if node.module else [])])
        for alias in node.names if base else ():
            yield (base,) if alias.name == "*" else (f"{base}.{alias.name}", base)  # a module, or an object in one


@lru_cache(maxsize=64)
def _is_package_folder(folder: Path) -> bool:
    """Return whether `folder` is one into which pip installs packages, whose modules are unrelated to one another."""
    return folder.name in ("site-packages", "dist-packages") or any(folder.glob("*.dist-info"))
