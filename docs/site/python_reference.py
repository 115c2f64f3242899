"""Every public name, as pages for mkdocstrings."""

from __future__ import annotations

import importlib
import inspect
import re
import types
from typing import Any

import ticketry as tk
from ticketry.search import Method

_GROUPS = {
    "python-networks": (
        "In your own loop",
        ("scope", "Scope", "prune", "allocate", "Mask", "hold", "Hold", "gradual", "Ticket", "shrink"),
    ),
    "python-faster": ("Faster models and training", ("compile", "sparse_training")),
    "python-experiments": ("Experiments", ("run", "verify", "stability", "bench", "restructure", "Lab")),
    "python-tasks": ("Tasks", ("task", "dataset_task", "Task", "Split", "Splits", "Recipe", "Step", "Metric")),
}
"""Page -> title and names; modules have a page each."""

_RETURNED = {
    "python-faster": ("ticketry_engine.training.sparse_training.SparseTraining",),
    "python-experiments": (
        "ticketry.experiments.run.Run",
        "ticketry.experiments.run.RunTicket",
        "ticketry.experiments.options.LabOptions",
        "ticketry.records.evidence.VerifyRecord",
    ),
}
"""Classes that are met as results and options of these, and are no names of the top."""

_TAKEN = "Examples begin with `import torch`, `from torch import nn` and `import ticketry as tk`.\n"


def pages() -> dict[str, str]:
    """A page for each group of names, and for each module."""
    grouped = {name for _, names in _GROUPS.values() for name in names}
    modules = [name for name in tk.__all__ if isinstance(getattr(tk, name), types.ModuleType)]
    left = set(tk.__all__) - grouped - set(modules) - {"__version__"}
    if left:
        raise SystemExit(f"the reference has no place for tk.{', tk.'.join(sorted(left))}: add it to _GROUPS")
    found = {
        page: "\n".join([f"# {title}\n", _TAKEN, *map(_one, names), *map(_other, _RETURNED.get(page, ()))])
        for page, (title, names) in _GROUPS.items()
    }
    of_modules = {f"python-{name}": _module(name) for name in modules}
    assert not found.keys() & of_modules.keys()
    return found | of_modules


def summaries() -> list[tuple[str, str, str]]:
    """(name, page, first sentence) of every public name."""
    page_of = {name: page for page, (_, names) in _GROUPS.items() for name in names}
    return [
        (name, page_of.get(name, f"python-{name}"), _sentence(getattr(tk, name)))
        for name in tk.__all__
        if name != "__version__"
    ]


def _sentence(found: object) -> str:
    first = (inspect.getdoc(found) or "").split("\n\n")[0]
    return " ".join(first.split()).replace("|", "\\|").replace("``", "`")


def _one(name: str) -> str:
    module, _, attribute = tk._PUBLIC[name].partition(":")
    return f"::: {module}.{attribute}\n    options:\n      heading: tk.{name}\n      toc_label: {name}\n"


def _other(path: str) -> str:
    return f"::: {path}\n    options:\n      heading: {path.rpartition('.')[2]}\n"


def _module(name: str) -> str:
    """A module that is public as it is: what its `__all__` names, or else what it defines."""
    module = getattr(tk, name)
    lines = [f"# tk.{name}\n", f"{_fenced(inspect.getdoc(module) or '')}\n", _TAKEN]
    for member in sorted(getattr(module, "__all__", None) or _defined(module), key=str.lower):
        found = getattr(module, member)
        if isinstance(found, Method):
            lines.append(_method(f"tk.{name}.{member}", found))
        elif isinstance(found, types.ModuleType):
            lines.append(f"## tk.{name}.{member}\n\n{inspect.getdoc(found) or ''}\n")
        elif (inspect.isclass(found) or inspect.isfunction(found)) and found.__module__.startswith("ticketry"):
            path = f"{found.__module__}.{found.__qualname__}"
            lines.append(f"::: {path}\n    options:\n      heading: tk.{name}.{member}\n      toc_label: {member}\n")
    return "\n".join(lines)


def _fenced(text: str) -> str:
    """A docstring whose examples are blocks of code; in Markdown each >>> alone would be three quotations."""
    return re.sub(
        r"(?:^(?:>>>|\.\.\.) .*\n?)+",
        lambda found: "```python\n" + re.sub(r" *# doctest: .*", "", found[0]).rstrip() + "\n```\n",
        text,
        flags=re.MULTILINE,
    )


def _method(name: str, method: Method[Any]) -> str:
    """A search method: what it is, and its settings with an example."""
    settings = f"{method.Settings.__module__}.{method.Settings.__qualname__}"
    told = "\n\n".join(text for text in (f"{method.title}.", method.description) if text)
    options = {"heading": f"{name}.Settings", "toc_label": "Settings", "heading_level": 3, "inherited_members": "true"}
    more = "".join(f"      {key}: {value}\n" for key, value in options.items())
    return f"## {name}\n\n{told}\n\n::: {settings}\n    options:\n{more}"


def _defined(module: types.ModuleType) -> list[str]:
    """Public names of a module without `__all__`: classes and functions that it defines itself."""
    return [
        name
        for name, found in vars(module).items()
        if not name.startswith("_")
        and getattr(found, "__module__", "") == importlib.import_module(module.__name__).__name__
    ]
