"""Every name of the reference says what it takes and raises, and has an example that runs, without a network."""

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

_MADE_BY = Path(__file__).parent.parent / "docs" / "site" / "python_reference.py"


def _reference() -> dict[str, tuple[str, Any]]:
    """What the pages of the reference show: heading -> path, and what it is."""
    spec = importlib.util.spec_from_file_location("python_reference", _MADE_BY)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    text = "\n".join(made.pages().values())
    shown = re.findall(r"^::: (\S+)\n    options:\n      heading: (\S+)$", text, re.MULTILINE)
    return {heading: (path, _at(path)) for path, heading in shown}


def _at(path: str) -> Any:
    """The object at a dotted path."""
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


REFERENCE = {name: found for name, (_, found) in _reference().items()}
METHODS = {f"tk.search.{name}": method for name, method in tk.search.methods().items()}


def _members(found: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class defines itself, with a docstring: those without are not shown."""
    for name, member in vars(found).items():
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        function = getattr(function, "fget", None) or getattr(function, "func", None) or function
        if not name.startswith("_") and isinstance(function, FunctionType) and function.__doc__:
            yield name, inspect.unwrap(function)


FUNCTIONS = {name: found for name, found in REFERENCE.items() if isinstance(found, FunctionType)}
CLASSES = {name: found for name, found in REFERENCE.items() if inspect.isclass(found)}
MEMBERS = {f"{name}.{member}": function for name, found in CLASSES.items() for member, function in _members(found)}


def _examples(found: Any) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(inspect.getdoc(found) or "")


def test_the_reference_is_found() -> None:
    assert len(FUNCTIONS) > 60
    assert len(CLASSES) > 60
    assert len(MEMBERS) > 100
    assert {name.removeprefix("tk.") for name in REFERENCE} >= {*tk.__all__} - {
        *(name for name in tk.__all__ if inspect.ismodule(getattr(tk, name))),
        "__version__",
    }


@pytest.mark.parametrize("name", [*REFERENCE, *MEMBERS])
def test_it_begins_with_a_sentence(name: str) -> None:
    found = REFERENCE.get(name) or MEMBERS[name]
    first = (found.__doc__ or "").strip().split("\n\n")[0].strip()
    assert first, name
    assert first[-1] in ".:`)%…" or " -> " in first, first


_TAKEN_FOR_GRANTED = {"self", "cls", "model", "args", "kwargs"}
"""Arguments that need no words: the model that everything is about, and what is handed on."""


@pytest.mark.parametrize("name", [*FUNCTIONS, *MEMBERS])
def test_it_tells_each_argument(name: str) -> None:
    """Under "Args:", or in a sentence."""
    function = FUNCTIONS.get(name) or MEMBERS[name]
    told = function.__doc__ or ""
    if name.rpartition(".")[0] in CLASSES:
        told += CLASSES[name.rpartition(".")[0]].__doc__ or ""
    names = [one for one in inspect.signature(function).parameters if not one.startswith("_")]
    assert not [one for one in names if one not in _TAKEN_FOR_GRANTED and not re.search(rf"\b{one}\b", told)]


@pytest.mark.parametrize("name", [name for name, found in CLASSES.items() if dataclasses.is_dataclass(found)])
def test_it_tells_each_field(name: str) -> None:
    """By a docstring behind it, or in the docstring of the class; a class behind another tells its own fields."""
    found = CLASSES[name]
    source, told = inspect.getsource(found), found.__doc__ or ""
    for field in dataclasses.fields(found):
        if field.name.startswith("_") or field.name not in vars(found).get("__annotations__", {}):
            continue
        rest = r"[^\n]*(\n        [^\n]*|\n    [\])][^\n]*)*"
        behind = re.search(rf'^    {field.name}: {rest}\n    """', source, re.MULTILINE)
        assert behind or re.search(rf"\b{field.name}\b", told), f"{field.name} of {name}"


_RAISED = re.compile(r"^\s*raise (\w+Error)\(", re.MULTILINE)


@pytest.mark.parametrize("name", [*FUNCTIONS, *MEMBERS])
def test_it_tells_what_it_raises(name: str) -> None:
    function = FUNCTIONS.get(name) or MEMBERS[name]
    told = function.__doc__ or ""
    families = {one for error in vars(tk.errors).values() if inspect.isclass(error) for one in [error.__name__]}
    for error in set(_RAISED.findall(inspect.getsource(function))) & families:
        kinds = [one.__name__ for one in getattr(tk.errors, error).__mro__ if one.__name__ in families]
        assert any(kind in told for kind in kinds), f"{name} raises {error}"


# -- examples ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples: what one has trained, the next takes from the store."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture
def beside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In that folder, on one thread, without a network."""

    def refused(*_: object, **__: object) -> None:
        raise OSError("an example asks for the network")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    torch.manual_seed(0)


_SHOWN = {name: found for name, found in {**REFERENCE, **MEMBERS}.items() if _examples(found)} | {
    name: method.Settings for name, method in METHODS.items()
}


@pytest.mark.parametrize("name", [*REFERENCE, *METHODS])
def test_it_has_an_example(name: str) -> None:
    found = _SHOWN.get(name)
    assert found is not None, name
    examples = _examples(found)
    assert examples, name
    assert any(one.want for one in examples), f"the example of {name} shows nothing"


_LONG = {"Run", "tk.cost.Met", "tk.cost.meet", "tk.search.decorators", "tk.search.decorators.Settings"}
"""Examples that take seconds: a search, costs measured, a decorated search. What they call, others call as well."""


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in _LONG else []) for name in _SHOWN]
)
def test_the_example_runs(name: str) -> None:
    """As it is pasted behind `import torch`, `from torch import nn`, `import ticketry as tk`."""
    examples = _examples(_SHOWN[name])
    assert not any(one.options.get(doctest.SKIP) for one in examples)
    test = doctest.DocTest(examples, {"tk": tk, "torch": torch, "nn": nn}, name, None, 0, None)
    told: list[str] = []
    done = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False).run(
        test, out=told.append
    )
    assert done.attempted
    assert not done.failed, "".join(told)
