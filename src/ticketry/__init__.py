"""Find a winning ticket, prove that it wins, cash it in.

The names below are the library's public surface. They are imported when they are first used, so that ``import
ticketry`` and ``ticketry --help`` do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ticketry.version import __version__

if TYPE_CHECKING:
    from ticketry import engine, errors, evidence, search
    from ticketry.core import gates, schedule, score, structure
    from ticketry.core.allocate import allocate
    from ticketry.core.gradual import gradual
    from ticketry.core.hold import Hold, hold
    from ticketry.core.mask import Mask
    from ticketry.core.prune import prune
    from ticketry.core.scope import Scope, scope
    from ticketry.core.structure.shrink import shrink
    from ticketry.core.ticket import Ticket
    from ticketry.engine.compiled import compile
    from ticketry.lab import meters
    from ticketry.lab.lab import Lab
    from ticketry.lab.segment import Segment
    from ticketry.step import Step
    from ticketry.tasks.base import Metric, Split, Splits, Task
    from ticketry.tasks.course import Course, Session
    from ticketry.tasks.recipe import Recipe
    from ticketry.tasks.registry import get as task

_PUBLIC = {
    "Course": "ticketry.tasks.course:Course",
    "Hold": "ticketry.core.hold:Hold",
    "Lab": "ticketry.lab.lab:Lab",
    "Mask": "ticketry.core.mask:Mask",
    "Metric": "ticketry.tasks.base:Metric",
    "Recipe": "ticketry.tasks.recipe:Recipe",
    "Scope": "ticketry.core.scope:Scope",
    "Segment": "ticketry.lab.segment:Segment",
    "Session": "ticketry.tasks.course:Session",
    "Split": "ticketry.tasks.base:Split",
    "Splits": "ticketry.tasks.base:Splits",
    "Step": "ticketry.step:Step",
    "Task": "ticketry.tasks.base:Task",
    "Ticket": "ticketry.core.ticket:Ticket",
    "allocate": "ticketry.core.allocate:allocate",
    "compile": "ticketry.engine.compiled:compile",
    "engine": "ticketry.engine",
    "errors": "ticketry.errors",
    "evidence": "ticketry.evidence",
    "gates": "ticketry.core.gates",
    "gradual": "ticketry.core.gradual:gradual",
    "hold": "ticketry.core.hold:hold",
    "meters": "ticketry.lab.meters",
    "prune": "ticketry.core.prune:prune",
    "schedule": "ticketry.core.schedule",
    "scope": "ticketry.core.scope:scope",
    "score": "ticketry.core.score",
    "search": "ticketry.search",
    "shrink": "ticketry.core.structure.shrink:shrink",
    "structure": "ticketry.core.structure",
    "task": "ticketry.tasks.registry:get",
}

__all__ = [
    "Course",
    "Hold",
    "Lab",
    "Mask",
    "Metric",
    "Recipe",
    "Scope",
    "Segment",
    "Session",
    "Split",
    "Splits",
    "Step",
    "Task",
    "Ticket",
    "__version__",
    "allocate",
    "compile",
    "engine",
    "errors",
    "evidence",
    "gates",
    "gradual",
    "hold",
    "meters",
    "prune",
    "schedule",
    "scope",
    "score",
    "search",
    "shrink",
    "structure",
    "task",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ticketry' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    value = importlib.import_module(module)
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
