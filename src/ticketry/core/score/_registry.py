"""Scores by name: those of this folder, those of installed packages, and controls of any of them."""

from __future__ import annotations

import functools
import inspect
import pkgutil
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ticketry.core.scope import Scope
from ticketry.core.score._asked import called, evaluate_score
from ticketry.core.score._protocol import About, Score, facts
from ticketry.errors import UsageError
from ticketry.registry import Registry
from ticketry_engine.support.seeds import generator

_FILES = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]


_GIVEN: dict[str, Any] = {"batches": None, "loss": None, "seed": 0}


def _function(name: str, found: Any) -> Score:
    """What can be called as a score is, looked at before a training waits for it."""
    if not callable(found):
        raise UsageError(f"it is a {type(found).__name__}, and a score is a function")
    if isinstance(found, type):
        raise UsageError(
            f"it is the class {found.__qualname__}, and a score is a function, or an object that can be called as one:"
            f" name an object, such as {found.__qualname__}()"
        )
    try:
        own = inspect.signature(found)
    except (TypeError, ValueError):  # of what is not written in Python nobody knows before it is called
        return cast(Score, found)
    try:
        own.bind("model", "scope", **_GIVEN)
    except TypeError as error:
        given = ", ".join(f"{key}={value}" for key, value in _GIVEN.items())
        raise UsageError(f"it takes {own} and is called as score(model, scope, {given}): {error}") from None
    return cast(Score, found)


SCORES: Registry[Score] = Registry(
    "score",
    "ticketry.scores",
    {name: f"ticketry.core.score.{name}:{name}" for name in sorted(_FILES) if not name.startswith("_")},
    make=_function,
    unknown=(
        "score {name!r} is not known: {names}; or a control of one, such as inverted:magnitude or shuffled:magnitude"
    ),
)
"""A file of this folder is a score, its function of the file's name."""


def names() -> tuple[str, ...]:
    """The scores that come with the library, then those of installed packages.

    Examples:
        >>> tk.score.names()
        ('crop', 'fisher', 'grasp', 'grasp200', 'kfac', 'magnitude', 'random', 'snip', 'synflow', 'taylor')
    """
    return SCORES.names()


def get(score: str | Score) -> Score:
    """The score called so, or the function itself; `UsageError` if there is none of that name, or it takes other
    arguments than a score's.

    Args:
        score: its name, with ``inverted:`` or ``shuffled:`` before it for a control; or a function.

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
            return _function("", score)
        except UsageError as error:
            raise UsageError(f"{called(score)} cannot be used: {error}") from None
    control, plain = split_control(score)
    if control:
        return CONTROLS[control](plain)
    try:
        return SCORES.get(plain)
    except UsageError:
        if plain.partition(":")[2] in SCORES:  # a control is meant, and not an object of one's own
            raise SCORES.build_unknown_error(score) from None
        raise


def split_control(score: str) -> tuple[str, str]:
    """(control, what it is of): ("inverted", "snip"); of a score itself, ("", "package.module:function").

    Examples:
        >>> tk.score.split_control("inverted:snip"), tk.score.split_control("snip")
        (('inverted', 'snip'), ('', 'snip'))
    """
    control, _, plain = score.partition(":")
    return (control, plain) if control in CONTROLS else ("", score)


def source_of(score: str) -> str:
    """A digest of the source of a score that is not the library's own, for keys of what it makes; "" of one that is.

    Examples:
        >>> tk.score.source_of("snip")
        ''
    """
    control, plain = split_control(score)
    if control:
        return source_of(plain)
    return SCORES.digest_source(plain) if plain in SCORES or ":" in plain else ""  # channel scores are our own


def about(name: str) -> About:
    """The facts of a score, or of what a control is of; `UsageError` if there is none of that name.

    Args:
        name: of a score, such as ``snip`` or ``inverted:snip``.

    Examples:
        >>> tk.score.about("grasp").paper, tk.score.about("grasp").order
        ('Wang et al. 2020', 2)
    """
    return facts(get(name))


# -- controls ----------------------------------------------------------------------------------------------------------


def inverted(score: str | Score) -> Score:
    """The score with its sign turned: the weights that it would remove first are kept. As a name: ``inverted:snip``.

    A score that carries information makes a worse network so than a random choice does.

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

    return _named(control, "inverted", function)


def shuffled(score: str | Score) -> Score:
    """The score's values in random places of the same layer. As a name: ``shuffled:snip``.

    In one shot each layer keeps exactly as many weights as by the score itself, under any distribution: what it shows
    is how much of the score lies in the layers' densities alone. By several cuts they come near its densities and are
    not the same, for later cuts rank what is left by chance: shuffle the final mask there (the control ``shuffled`` of
    searches). A pure function of (seed, position of the tensor).

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

    return _named(control, "shuffled", function)


def _named(control: Any, kind: str, score: Score) -> Score:
    control.__name__ = f"{kind}:{getattr(score, '__name__', type(score).__name__)}"
    return cast(Score, control)


CONTROLS = {"inverted": inverted, "shuffled": shuffled}
"""What should be clearly worse than a score: the word before its name -> what makes it of the score."""
