"""Docstrings of the reference: arguments, fields and errors are named, and examples run without a network."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import importlib.util
import inspect
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import nn

import ticketry as tk

_REFERENCE = Path(__file__).parent.parent / "docs" / "site" / "python_reference.py"


def _read_reference() -> dict[str, Any]:
    """Return heading -> object of everything that the pages of the reference show."""
    spec = importlib.util.spec_from_file_location("python_reference", _REFERENCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = "\n".join(module.pages().values())
    shown = re.findall(r"^::: (\S+)\n    options:\n      heading: (\S+)$", text, re.MULTILINE)
    return {heading: _at(path) for path, heading in shown}


def _at(path: str) -> Any:
    """Return the object at a dotted path."""
    parts = path.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"there is no {path}")


REFERENCE = _read_reference()
METHODS = {f"tk.search.{name}": method for name, method in tk.search.methods().items()}


def _members(found: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties with a docstring that a class defines itself."""
    for name, member in vars(found).items():
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        function = getattr(function, "fget", None) or getattr(function, "func", None) or function
        if not name.startswith("_") and isinstance(function, FunctionType) and function.__doc__:
            yield name, inspect.unwrap(function)


FUNCTIONS = {name: found for name, found in REFERENCE.items() if isinstance(found, FunctionType)}
CLASSES = {name: found for name, found in REFERENCE.items() if inspect.isclass(found)}
MEMBERS = {f"{name}.{member}": function for name, found in CLASSES.items() for member, function in _members(found)}
_UNNAMED = {"self", "cls", "model", "args", "kwargs"}
"""Arguments that need no description."""
_RAISED = re.compile(r"^\s*raise (\w+Error)\(", re.MULTILINE)


def _examples(found: Any) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(inspect.getdoc(found) or "")


def test_the_reference_is_found() -> None:
    assert (len(FUNCTIONS) > 60, len(CLASSES) > 60, len(MEMBERS) > 100) == (True, True, True)
    modules = {name for name in tk.__all__ if inspect.ismodule(getattr(tk, name))}
    assert {name.removeprefix("tk.") for name in REFERENCE} >= {*tk.__all__} - modules - {"__version__"}


def test_functions_name_their_arguments_and_errors() -> None:
    families = {error.__name__ for error in vars(tk.errors).values() if inspect.isclass(error)}
    missing = []
    for name, function in {**FUNCTIONS, **MEMBERS}.items():
        text = function.__doc__ or ""
        for error in set(_RAISED.findall(inspect.getsource(function))) & families:
            kinds = [one.__name__ for one in getattr(tk.errors, error).__mro__ if one.__name__ in families]
            if not any(kind in text for kind in kinds):
                missing.append(f"{name} raises {error}")
        if name.rpartition(".")[0] in CLASSES:
            text += CLASSES[name.rpartition(".")[0]].__doc__ or ""
        for one in inspect.signature(function).parameters:
            if not (one.startswith("_") or one in _UNNAMED or re.search(rf"\b{one}\b", text)):
                missing.append(f"{name} takes {one}")
    assert not missing, "\n".join(missing)


def test_dataclasses_describe_their_fields() -> None:
    """By a docstring behind the field, or in the docstring of the class."""
    missing = []
    for name, found in CLASSES.items():
        if not dataclasses.is_dataclass(found):
            continue
        source, text = inspect.getsource(found), found.__doc__ or ""
        for field in dataclasses.fields(found):
            if field.name.startswith("_") or field.name not in vars(found).get("__annotations__", {}):
                continue
            rest = r"[^\n]*(\n        [^\n]*|\n    [\])][^\n]*)*"
            behind = re.search(rf'^    {field.name}: {rest}\n    """', source, re.MULTILINE)
            if not (behind or re.search(rf"\b{field.name}\b", text)):
                missing.append(f"{name}.{field.name}")
    assert not missing, "\n".join(missing)


# -- examples ----------------------------------------------------------------------------------------------------------

_SHOWN = {name: found for name, found in {**REFERENCE, **MEMBERS}.items() if _examples(found)} | {
    name: method.Settings for name, method in METHODS.items()
}
_LONG = {
    *("Run", "tk.cost.Met", "tk.cost.meet", "tk.cost.calibrate", "tk.cost.GpuProfile", "tk.errors.BudgetWarning"),
    *("tk.search.decorators", "tk.search.decorators.Settings", "tk.evidence.verify_procedure", "tk.evidence.Procedure"),
    *("tk.dataset_task", "tk.verify", "tk.errors.CaptureError"),
    *("tk.bench", "tk.stability", "tk.evidence.instability", "tk.engine.Compiled"),
    *(f"tk.search.{name}" for name in ("acdc", "concrete", "stochastic", "gradual", "early", "continuous", "dynamic")),
}
"""Examples that take more than half a second; other tests call the same functions."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all examples, with one store."""
    return tmp_path_factory.mktemp("examples")


def test_everything_has_an_example() -> None:
    for name in (*REFERENCE, *METHODS):
        assert any(one.want for one in _examples(_SHOWN.get(name))), name


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name.removesuffix(".Settings") in _LONG else [])
        for name in _SHOWN
    ],
)
def test_the_example_runs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("an example asks for the network")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    torch.manual_seed(0)
    examples = _examples(_SHOWN[name])
    assert not any(one.options.get(doctest.SKIP) for one in examples)
    test = doctest.DocTest(examples, {"tk": tk, "torch": torch, "nn": nn}, name, None, 0, None)
    output: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
    done = runner.run(test, out=output.append)
    assert done.attempted
    assert not done.failed, "".join(output)
