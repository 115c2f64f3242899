"""Saliencies: how much each weight is worth, one a file.

A score is a function ``score(model, scope, *, batches=None, loss=None, seed=0) -> {name: tensor}``: for each parameter
in scope a tensor of its shape, the higher the more worth keeping. To add one, write a file here with a function of the
file's name; or a package with an entry point in the group ``ticketry.scores`` (see `ticketry.registry`); or give the
function itself. `described` tells lists whose it is; `of_gradients` and `of_gradient_flow` make a score of a formula.

Scores that need data take it from `batches`, which the caller gives (of the training data), and nowhere else; every
batch counts the same. ``loss(model, batch)`` is its mean loss. The model is afterwards as it was, whatever happens.
Those scores have options, to be set with `functools.partial`:

norms
    ``batch`` (the default): norms use the statistics of each batch, as in training; running statistics are neither used
    nor changed. ``running`` (the default of `kfac`): the running statistics, as in evaluation. Dropout is off in both.
at
    A mask: the score is measured in the network that it leaves, removed weights being 0 in the forward pass and no
    part of the gradient flow. Removed weights have a score too, by the value that they would return to. This is what
    iterated scores go by (`prune`).

Before a name, ``inverted:`` and ``shuffled:`` make controls of it: `inverted`, `shuffled`.
"""

from ticketry.core.score._formula import DataScore, of_gradient_flow, of_gradients
from ticketry.core.score._protocol import About, Loss, Score, ScoreInputs, described
from ticketry.core.score._registry import (
    CONTROLS,
    SCORES,
    about,
    get,
    inverted,
    names,
    shuffled,
    source_of,
    split_control,
)
from ticketry.core.score.crop import crop
from ticketry.core.score.fisher import fisher
from ticketry.core.score.grasp import grasp
from ticketry.core.score.grasp200 import grasp200
from ticketry.core.score.kfac import kfac
from ticketry.core.score.magnitude import magnitude
from ticketry.core.score.random import random
from ticketry.core.score.snip import snip
from ticketry.core.score.synflow import synflow
from ticketry.core.score.taylor import taylor

__all__ = [
    "CONTROLS",
    "SCORES",
    "About",
    "DataScore",
    "Loss",
    "Score",
    "ScoreInputs",
    "about",
    "crop",
    "described",
    "fisher",
    "get",
    "grasp",
    "grasp200",
    "inverted",
    "kfac",
    "magnitude",
    "names",
    "of_gradient_flow",
    "of_gradients",
    "random",
    "shuffled",
    "snip",
    "source_of",
    "split_control",
    "synflow",
    "taylor",
]
