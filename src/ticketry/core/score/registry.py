"""Look up scores by name: built-in scores, scores of installed packages, and controls derived from a score."""

from __future__ import annotations

import functools
import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

from ticketry.core.scope import Scope
from ticketry.core.score.protocol import About, Score, describe_score, evaluate_score, get_score_description
from ticketry.errors import UsageError
from ticketry.registry import Registry
from ticketry_engine.support.seeds import generator

_MODULES = {
    "gradient_scores": "crop fisher grasp grasp200 kfac snip taylor",
    "weight_scores": "magnitude random synflow",
}
_BUILT_IN = {
    name: f"ticketry.core.score.{module}:{name}" for module, names in _MODULES.items() for name in names.split()
}

_OPTIONS: dict[str, Any] = {"batches": None, "loss": None, "seed": 0}


def _check_function(name: str, found: Any) -> Score:
    """Return `found`, after checking that it can be called as a score; `name` is for error messages."""
    if not callable(found):
        raise UsageError(f"it is a {type(found).__name__}, and a score is a function")
    if isinstance(found, type):
        raise UsageError(
            f"it is the class {found.__qualname__}, and a score is a function, or an object that can be called as one:"
            f" name an object, such as {found.__qualname__}()"
        )
    try:
        own = inspect.signature(found)
    except (TypeError, ValueError):  # not written in Python, so its signature is unknown
        return cast(Score, found)
    try:
        own.bind("model", "scope", **_OPTIONS)
    except TypeError as error:
        given = ", ".join(f"{key}={value}" for key, value in _OPTIONS.items())
        raise UsageError(f"it takes {own} and is called as score(model, scope, {given}): {error}") from None
    return cast(Score, found)


SCORES: Registry[Score] = Registry(
    "score",
    "ticketry.scores",
    {
        name: f"ticketry.core.score.{module}:{name}"
        for name, module in sorted((name, module) for module, several in _MODULES.items() for name in several.split())
    },
    make=_check_function,
    unknown=(
        "score {name!r} is not known: {names}; or a control of one, such as inverted:magnitude or shuffled:magnitude"
    ),
)


def names() -> tuple[str, ...]:
    """Return the names of all scores: first the built-in scores, then the scores of installed packages.

    Examples:
        >>> tk.score.names()
        ('crop', 'fisher', 'grasp', 'grasp200', 'kfac', 'magnitude', 'random', 'snip', 'synflow', 'taylor')
    """
    return SCORES.names()


def get(score: str | Score) -> Score:
    """Return the function of a score, given its name; a function is checked and returned unchanged.

    Args:
        score: a name, with the prefix ``inverted:`` or ``shuffled:`` for a control; or a function.

    Raises:
        UsageError: if the name is unknown, or the function does not take the arguments of a score.

    Examples:
        >>> tk.score.get("magnitude") is tk.score.magnitude
        True
        >>> tk.score.get("magnitud")
        Traceback (most recent call last):
            ...
        ticketry.errors.UsageError: score 'magnitud' is not known: crop, fisher, grasp, grasp200, kfac, ...
    """
    if callable(score):
        try:
            return _check_function("", score)
        except UsageError as error:
            raise UsageError(f"{describe_score(score)} cannot be used: {error}") from None
    control, plain = split_control(score)
    if control:
        return CONTROLS[control](plain)
    try:
        return SCORES.get(plain)
    except UsageError:
        if plain.partition(":")[2] in SCORES:  # a misspelled control, not a custom object
            raise SCORES.build_unknown_error(score) from None
        raise


def split_control(score: str) -> tuple[str, str]:
    """Split a name into control and score, such as ("inverted", "snip"); without a prefix, the control is "".

    Examples:
        >>> tk.score.split_control("inverted:snip"), tk.score.split_control("snip")
        (('inverted', 'snip'), ('', 'snip'))
    """
    control, _, plain = score.partition(":")
    return (control, plain) if control in CONTROLS else ("", score)


def source_of(score: str) -> str:
    """Return a digest of a custom score's source code, for the keys of stored results; "" for a built-in score.

    Examples:
        >>> tk.score.source_of("snip")
        ''
    """
    control, plain = split_control(score)
    if control:
        return source_of(plain)
    return SCORES.digest_source(plain) if plain in SCORES or ":" in plain else ""  # channel scores are built in


def about(name: str) -> About:
    """Return the facts about a score; a control has the facts of its score. Raise `UsageError` for an unknown name.

    Args:
        name: name of a score, such as ``snip`` or ``inverted:snip``.

    Examples:
        >>> tk.score.about("grasp").paper, tk.score.about("grasp").order
        ('Wang et al. 2020', 2)
    """
    return get_score_description(get(name))


# -- controls ----------------------------------------------------------------------------------------------------------


def inverted(score: str | Score) -> Score:
    """Return a control that negates a score, and so retains the least important weights: ``inverted:snip``.

    If a score is informative, the control gives a worse network than a random choice of weights.

    Args:
        score: a name, or a function.

    Examples:
        >>> model = nn.Linear(8, 4)
        >>> kept, worst = tk.prune(model, 0.25), tk.prune(model, 0.25, score=tk.score.inverted("magnitude"))
        >>> (kept & worst).kept
        0
        >>> tk.prune(model, 0.25, score="inverted:magnitude") == worst
        True
    """
    function = get(score)

    @functools.wraps(function)
    def control(model: nn.Module, scope: Scope, **options: Any) -> dict[str, Tensor]:
        found = evaluate_score(function, model, scope, **options)
        return {name: -(value if value.is_floating_point() else value.double()) for name, value in found.items()}

    return _set_name(control, "inverted", function)


def shuffled(score: str | Score) -> Score:
    """Return a control that permutes the values of a score at random within each layer: ``shuffled:snip``.

    In a single pruning step, each layer retains as many weights as with the score itself, for any distribution of
    the density over layers. So a comparison shows how much of the score's success is due to the densities of layers
    alone. In several steps the densities are only similar, because later steps rank the remaining weights at random;
    there, shuffle the final mask instead (the control ``shuffled`` of searches). The permutation depends only on the
    seed and the tensor's index.

    Args:
        score: a name, or a function.

    Examples:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        >>> kept, control = tk.prune(model, 0.25), tk.prune(model, 0.25, score=tk.score.shuffled("magnitude"))
        >>> [one.kept for one in kept.table()] == [one.kept for one in control.table()], kept == control
        (True, False)
    """
    function = get(score)

    @functools.wraps(function)
    def control(model: nn.Module, scope: Scope, *, seed: int = 0, **options: Any) -> dict[str, Tensor]:
        found = evaluate_score(function, model, scope, seed=seed, **options)
        shuffled: dict[str, Tensor] = {}
        for index, (name, value) in enumerate(found.items()):
            order = torch.randperm(value.numel(), generator=generator(seed, "shuffled score", index))
            shuffled[name] = value.flatten()[order.to(value.device)].reshape(value.shape)
        return shuffled

    return _set_name(control, "shuffled", function)


def _set_name(control: Any, kind: str, score: Score) -> Score:
    control.__name__ = f"{kind}:{getattr(score, '__name__', type(score).__name__)}"
    return cast(Score, control)


CONTROLS = {"inverted": inverted, "shuffled": shuffled}
"""For each prefix of a control, the function that derives the control from a score. A control should be clearly worse
than its score.
"""
