"""Saliencies: how much each weight is worth, one a file.

A score is a function ``score(model, scope, *, batches=None, loss=None, seed=0) -> {name: tensor}``: for each parameter
in scope a tensor of its shape, the higher the more worth keeping. To add one, write a file here with a function of the
file's name.

Scores that need data take it from `batches`, which the caller gives (of the training data), and nowhere else; every
batch counts the same. ``loss(model, batch)`` is its mean loss. The model is afterwards as it was, whatever happens.
Those scores have options, to be set with `functools.partial`:

norms
    ``batch`` (the default): norms use the statistics of each batch, as in training; running statistics are neither used
    nor changed. ``running``: the running statistics, as in evaluation. Dropout is off in both.
at
    A mask: the score is measured in the network that it leaves, removed weights being 0 in the forward pass and no
    part of the gradient flow. Removed weights have a score too, by the value that they would return to. This is what
    iterated scores go by (`prune`).

Before a name, ``inverted:`` and ``shuffled:`` make controls of it: `inverted`, `shuffled`.
"""

from __future__ import annotations

import importlib
import pkgutil

from ticketry.core.score._controls import inverted, shuffled
from ticketry.core.score._protocol import About, Loss, Score
from ticketry.errors import UsageError

__all__ = ["About", "Loss", "Score", "about", "get", "inverted", "names", "shuffled"]

CONTROLS = {"inverted": inverted, "shuffled": shuffled}


def names() -> tuple[str, ...]:
    """The scores that come with the library."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def get(score: str | Score) -> Score:
    """The score called so, or the function itself; `UsageError` if there is none of that name."""
    if callable(score):
        return score
    control, colon, rest = score.partition(":")
    if colon and control in CONTROLS:
        return CONTROLS[control](rest)
    if score not in names():
        raise UsageError(
            f"score {score!r} is not known: {', '.join(names())}; or a control of one, such as inverted:magnitude or"
            " shuffled:magnitude"
        )
    found: Score = getattr(importlib.import_module(f"{__name__}.{score}"), score)
    return found


def about(name: str) -> About:
    """The facts of a score that comes with the library; `UsageError` if there is none of that name."""
    get(name)
    found: About = getattr(importlib.import_module(f"{__name__}.{name.rpartition(':')[2]}"), "ABOUT", About())
    return found


# `tk.score.magnitude` is the function, not the file: bind each file's function over its module.
for _name in names():
    globals()[_name] = get(_name)
