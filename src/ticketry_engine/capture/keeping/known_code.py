"""Whose code it is: that of Python, torch and numpy is told by their versions, all other by what it says."""

from __future__ import annotations

import functools
import re
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

_OFTEN_WRAPPED = frozenset({"compile", "load", "save", "manual_seed", "_check_is_size"})
"""Functions that other libraries wrap and no layer of torch's calls: a model that does names them."""


def replaced(space: Any) -> dict[str, types.FunctionType]:
    """Functions of somebody else's that took the place of torch's in a module or class of it."""
    found = {name: value for name, value in vars(space).items() if isinstance(value, types.FunctionType)}
    return {name: value for name, value in found.items() if name not in _OFTEN_WRAPPED and not is_known(value)}


@functools.cache
def _known_roots() -> tuple[list[Path], list[Path]]:
    """Folders of code that versions stand for: those of torch and numpy, and Python's own."""
    paths = sysconfig.get_paths()
    packages = [Path(str(one.__file__)).resolve().parent for one in (torch, np)]
    return packages, [Path(paths[name]).resolve() for name in ("stdlib", "platstdlib")]


@functools.cache
def _is_known_file(file: str) -> bool:
    if file.startswith("<frozen"):
        return True
    path = Path(file).resolve()
    packages, python = _known_roots()
    if any(path.is_relative_to(root) for root in packages):
        return True
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return not installed and any(path.is_relative_to(root) for root in python)


def is_known(thing: Any) -> bool:
    """Whether a class, function or module is of a package whose version stands for it."""
    if isinstance(thing, types.FunctionType):
        return _is_known_file(thing.__code__.co_filename)
    name = thing.__name__ if isinstance(thing, types.ModuleType) else str(getattr(thing, "__module__", ""))
    module = sys.modules.get(name)
    if module is None:
        return False
    file = getattr(module, "__file__", None)
    return name.partition(".")[0] in sys.builtin_module_names if file is None else _is_known_file(file)


@functools.cache
def occurs_in_file(name: str, module: str) -> bool:
    """Whether a module's own code has a name: what others have only added to a class of it, it never calls."""
    text = Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8")
    return re.search(rf"\b{re.escape(name)}\b", text) is not None
