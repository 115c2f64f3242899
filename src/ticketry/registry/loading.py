"""The objects that ``module:object`` names."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec
from operator import attrgetter
from typing import Any

from ticketry.errors import UsageError


def import_from_here() -> None:
    """Lets modules of the current directory be imported, as ``python -m`` does."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


def load(target: str) -> Any:
    """The object that ``module:object`` names, or the module.

    Raises:
        UsageError: if the module cannot be imported, or has no such object.
    """
    name, _, path = target.partition(":")
    try:
        return resolve(target)
    except AttributeError as error:
        if name not in sys.modules:
            raise _not_imported(name, error) from error
        file = getattr(sys.modules[name], "__file__", None)
        raise UsageError(f"the module {name} ({file}) has no {path!r}") from None
    except (Exception, SystemExit) as error:  # another's module may do anything at all
        raise _not_imported(name, error) from error


def resolve(target: str) -> Any:
    """What `load` gives; raises what importing and looking it up raise."""
    name, colon, path = target.partition(":")
    found: Any = importlib.import_module(name)
    if path.isidentifier() and not hasattr(found, path) and hasattr(found, "__path__") and find_spec(f"{name}.{path}"):
        return importlib.import_module(f"{name}.{path}")  # package:module
    return attrgetter(path)(found) if colon else found


def _not_imported(module: str, error: BaseException) -> UsageError:
    return UsageError(f"the module {module!r} cannot be imported from {os.getcwd()}: {type(error).__name__}: {error}")
