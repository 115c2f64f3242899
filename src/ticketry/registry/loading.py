"""Import the objects that ``module:object`` names."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

from ticketry.errors import UsageError


def import_from_here() -> None:
    """Put the current directory on `sys.path`, so that modules in the directory can be imported."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


def is_module(name: str) -> bool:
    """Return whether a name is that of a module in the current directory, or ``package.module``; import nothing.

    For the name of an installed module without a dot the answer is False, since it is more often a typing error.
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


def require_user_file(name: str, found: object) -> None:
    """Raise `UsageError` if the current directory has a module `name`, but another module was imported instead.

    Args:
        name: name of the module; nothing is checked for a name with a colon.
        found: the module that was imported.
    """
    file, loaded = _find_user_file(name), getattr(found, "__file__", None)
    if ":" not in name and file and isinstance(loaded, str) and not os.path.samefile(file, loaded):
        raise UsageError(f"{file.name} in {os.getcwd()} has the name of the module {loaded}, so rename your file")


def _find_user_file(name: str) -> Path | None:
    """Return the file of the module `name` in the current directory; None if there is none."""
    return _find_module_file(Path(os.getcwd(), *name.split(".")))


def _find_module_file(path: Path) -> Path | None:
    """Return the file of the module or package at `path`, which has no suffix; None if there is none."""
    return next((file for file in (path / "__init__.py", path.with_name(f"{path.name}.py")) if file.is_file()), None)


def load(target: str) -> Any:
    """Import and return the object that ``module:object`` names, or the module that ``module`` names.

    Raises:
        UsageError: if the module cannot be imported or has no such object.
    """
    name, _, path = target.partition(":")
    try:
        return resolve(target)
    except AttributeError as error:
        if name not in sys.modules:
            raise _import_failed(name, error) from error
        file = getattr(sys.modules[name], "__file__", None)
        raise UsageError(f"the module {name} ({file}) has no {path!r}") from None
    except (Exception, SystemExit) as error:  # other people's modules may raise anything
        raise _import_failed(name, error) from error


def resolve(target: str) -> Any:
    """Return the object or module that `load` returns; unlike `load`, do not convert errors of the import."""
    name, colon, path = target.partition(":")
    found: Any = importlib.import_module(name)
    if path.isidentifier() and not hasattr(found, path) and hasattr(found, "__path__") and find_spec(f"{name}.{path}"):
        return importlib.import_module(f"{name}.{path}")  # package:module
    return attrgetter(path)(found) if colon else found


def _import_failed(module: str, error: BaseException) -> UsageError:
    return UsageError(f"the module {module!r} cannot be imported from {os.getcwd()}: {type(error).__name__}: {error}")
