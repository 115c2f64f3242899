"""Find a winning ticket, prove that it wins, make it faster.

The names in this module are the public interface of the library. Each is imported when it is first used, so that
``import ticketry`` and ``ticketry --help`` do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ticketry.version import __version__ as __version__
from ticketry_engine import processor as _platforms

_platforms.warn_of_unsupported()

if TYPE_CHECKING:
    from ticketry import budgets
    from ticketry import engine as engine
    from ticketry import errors as errors
    from ticketry import evidence as evidence
    from ticketry import search as search
    from ticketry.core import devices as devices
    from ticketry.core import gates as gates
    from ticketry.core import score as score
    from ticketry.core import structure as structure
    from ticketry.core.allocate import allocate as allocate
    from ticketry.core.mask import Mask as Mask
    from ticketry.core.prune import prune as prune
    from ticketry.core.scope import Scope as Scope
    from ticketry.core.scope import scope as scope
    from ticketry.core.sparse_training import schedule as schedule
    from ticketry.core.sparse_training.gradual import gradual as gradual
    from ticketry.core.sparse_training.hold import Hold as Hold
    from ticketry.core.sparse_training.hold import hold as hold
    from ticketry.core.structure.smaller_model import shrink as shrink
    from ticketry.core.ticket.ticket import Ticket as Ticket
    from ticketry.engine.adapters import compile as compile
    from ticketry.engine.adapters import sparse_training as sparse_training
    from ticketry.experiments import bundles
    from ticketry.experiments.bench import bench as bench
    from ticketry.experiments.run import run as run
    from ticketry.experiments.stability import stability as stability
    from ticketry.experiments.ticket_model import restructure as restructure
    from ticketry.experiments.verify import verify as verify
    from ticketry.lab.costs import meters as meters
    from ticketry.lab.lab import Lab as Lab
    from ticketry.records.metric import Metric as Metric
    from ticketry.step import Step as Step
    from ticketry.tasks.catalogue import get
    from ticketry.tasks.dataset_task import dataset_task as dataset_task
    from ticketry.tasks.recipe import Recipe as Recipe
    from ticketry.tasks.task import Split as Split
    from ticketry.tasks.task import Splits as Splits
    from ticketry.tasks.task import Task as Task

    cost = budgets
    store = bundles
    task = get

_PUBLIC = {
    "Hold": "ticketry.core.sparse_training.hold:Hold",
    "Lab": "ticketry.lab.lab:Lab",
    "Mask": "ticketry.core.mask:Mask",
    "Metric": "ticketry.records.metric:Metric",
    "Recipe": "ticketry.tasks.recipe:Recipe",
    "Scope": "ticketry.core.scope:Scope",
    "Split": "ticketry.tasks.task:Split",
    "Splits": "ticketry.tasks.task:Splits",
    "Step": "ticketry.step:Step",
    "Task": "ticketry.tasks.task:Task",
    "Ticket": "ticketry.core.ticket.ticket:Ticket",
    "allocate": "ticketry.core.allocate:allocate",
    "bench": "ticketry.experiments.bench:bench",
    "compile": "ticketry.engine.adapters:compile",
    "cost": "ticketry.budgets",
    "dataset_task": "ticketry.tasks.dataset_task:dataset_task",
    "devices": "ticketry.core.devices",
    "engine": "ticketry.engine",
    "errors": "ticketry.errors",
    "evidence": "ticketry.evidence",
    "gates": "ticketry.core.gates",
    "gradual": "ticketry.core.sparse_training.gradual:gradual",
    "hold": "ticketry.core.sparse_training.hold:hold",
    "meters": "ticketry.lab.costs.meters",
    "prune": "ticketry.core.prune:prune",
    "restructure": "ticketry.experiments.ticket_model:restructure",
    "run": "ticketry.experiments.run:run",
    "schedule": "ticketry.core.sparse_training.schedule",
    "scope": "ticketry.core.scope:scope",
    "score": "ticketry.core.score",
    "search": "ticketry.search",
    "shrink": "ticketry.core.structure.smaller_model:shrink",
    "sparse_training": "ticketry.engine.adapters:sparse_training",
    "stability": "ticketry.experiments.stability:stability",
    "store": "ticketry.experiments.bundles",
    "structure": "ticketry.core.structure",
    "task": "ticketry.tasks.catalogue:get",
    "verify": "ticketry.experiments.verify:verify",
}

__all__ = sorted(["__version__", *_PUBLIC])


def __getattr__(name: str) -> Any:
    """Import and return a public name; Python calls this when the name is first used."""
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
