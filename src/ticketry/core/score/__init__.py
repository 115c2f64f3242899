"""Saliencies: how much each weight is worth, one a file.

A score is a function ``score(model, scope, *, batches=None, loss=None, seed=0) -> {name: tensor}``: for each parameter
in scope a tensor of its shape, the higher the more worth keeping. To add one, write a file here with a function of the
file's name.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Protocol

from torch import Tensor, nn

from ticketry.core.scope import Scope
from ticketry.errors import UsageError


class Loss(Protocol):
    """The mean loss of a batch: ``loss(model, batch) -> scalar``."""

    def __call__(self, model: nn.Module, batch: object, /) -> Tensor: ...


class Score(Protocol):
    """How much each weight is worth."""

    def __call__(
        self,
        model: nn.Module,
        scope: Scope,
        *,
        batches: Iterable[object] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
    ) -> dict[str, Tensor]: ...


def names() -> tuple[str, ...]:
    """The scores that come with the library."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def get(score: str | Score) -> Score:
    """The score called so, or the function itself; `UsageError` if there is none of that name."""
    if callable(score):
        return score
    if score not in names():
        raise UsageError(f"score {score!r} is not known: {', '.join(names())}")
    found: Score = getattr(importlib.import_module(f"{__name__}.{score}"), score)
    return found


# `tk.score.magnitude` is the function, not the file: bind each file's function over its module.
for _name in names():
    globals()[_name] = get(_name)
