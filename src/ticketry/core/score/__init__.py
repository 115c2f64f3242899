"""Scores: the importance of each weight for pruning.

A score is a function ``score(model, scope, *, batches=None, loss=None, seed=0) -> {name: tensor}``. It returns for each
parameter in scope a tensor of its shape; the higher, the more important the weight. To add a score, pass the function
itself; or write it here and name it in `registry`; or provide an entry point in the group ``ticketry.scores`` (see
`ticketry.registry`). `described` adds facts for lists; `of_gradients` and `of_gradient_flow` turn a formula into a
score.

Scores that need data take it only from `batches` (of training data); every batch counts equally. ``loss(model, batch)``
is the mean loss of a batch. The model is restored afterwards, also after an exception. These scores have further
options, which can be set with `functools.partial`:

norms
    ``batch`` (the default): norms use the statistics of each batch, as in training; running statistics are neither used
    nor changed. ``running`` (the default of `kfac`): the running statistics, as in evaluation. Dropout is off in both.
at
    A mask: the score is measured in the network pruned by it. Removed weights are 0 in the forward pass and excluded
    from the gradient flow, but get a score for the case that they return. Iterated scores use this (`prune`).

The prefixes ``inverted:`` and ``shuffled:`` of a name give controls: `inverted`, `shuffled`.
"""

from ticketry.core.score.gradient_scores import (
    DataScore,
    crop,
    fisher,
    grasp,
    grasp200,
    of_gradient_flow,
    of_gradients,
    snip,
    taylor,
)
from ticketry.core.score.kfac import kfac
from ticketry.core.score.protocol import About, Loss, Score, ScoreInputs, described
from ticketry.core.score.registry import (
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
from ticketry.core.score.synflow import synflow
from ticketry.core.score.weight_scores import magnitude, random

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
