"""Scores: the importance of each weight for pruning.

A score is a function ``score(model, scope, *, batches=None, loss=None, seed=0) -> {name: tensor}``. For each parameter
in scope it returns a tensor of the parameter's shape, with a higher number for a more important weight. A custom score
can be passed as a function, or be an entry point of a package in the group ``ticketry.scores`` (see
`ticketry.registry`); built-in scores are listed in `registry`. `described` attaches the facts that lists of scores
show; `of_gradients` and `of_gradient_flow` turn a formula into a score.

Scores that need data take it only from `batches` (of training data); every batch counts equally. ``loss(model, batch)``
is the mean loss of a batch. The model is restored afterwards, also after an exception. Scores with data have further
options, which can be set with `functools.partial`:

norms
    ``batch`` (the default): norms use the statistics of each batch, as in training; running statistics are neither used
    nor changed. ``running`` (the default of `kfac`): the running statistics, as in evaluation. Dropout is off in both.
at
    A mask: the score is measured in the network that the mask prunes. Removed weights are 0 in the forward pass and
    excluded from the gradient flow, but get a score too, since a later mask may retain them. `prune` uses this option
    when it prunes in several iterations.

A name with the prefix ``inverted:`` or ``shuffled:`` is a control of the score, see `inverted` and `shuffled`.
"""

from ticketry.core.score.gradient_scores import (
    DataScore,
    crop,
    fisher,
    grasp,
    grasp200,
    kfac,
    of_gradient_flow,
    of_gradients,
    snip,
    taylor,
)
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
from ticketry.core.score.weight_scores import magnitude, random, synflow

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
