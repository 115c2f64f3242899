"""A score asked for what weights are worth, and its answer looked at: whoever wrote it, what comes back is a score."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.choices import did_you_mean, format_names
from ticketry.core.scope import Scope, named_parameters
from ticketry.core.score._protocol import Score
from ticketry.errors import ScoreError
from ticketry_engine.support.entry_points import callers_defaults


def evaluate_score(score: Score, model: nn.Module, scope: Scope, **options: Any) -> dict[str, Tensor]:
    """What a score says of each parameter in scope, in the scope's order and apart from any graph.

    Infinite scores are scores: such weights are kept or removed before all others.

    Raises:
        ScoreError: naming the score, if it gives anything but real numbers, a tensor for each parameter in scope in its
            shape, or none at all, or ends the process.
    """
    found = _answer(score, model, scope, options)
    _check_names(score, found, scope)
    return {name: _checked(score, name, found[name], shape) for name, shape in scope.shapes.items()}


def asked_of_some(score: Score, model: nn.Module, scope: Scope, **options: Any) -> dict[str, Tensor]:
    """The same of whichever parameters of the model a score is about, such as factors of norms: what channels are worth
    is a sum over those that have scores.

    Raises:
        ScoreError: see `evaluate_score`; parameters may be missing or out of scope.
    """
    found = _answer(score, model, scope, options)
    shapes = {name: tuple(one.shape) for name, one in named_parameters(model).items()}
    if not found:
        raise ScoreError(f"{called(score)} gives an empty mapping: it needs a tensor for each parameter it is about")
    if more := [str(name) for name in found if name not in shapes]:
        raise ScoreError(
            f"{called(score)} gives scores for {_first(more)}, and the model has no such parameters;"
            f" {did_you_mean(more[0], shapes)}they are {format_names(shapes)}"
        )
    return {name: _checked(score, name, values, shapes[name]) for name, values in found.items()}


def _answer(score: Score, model: nn.Module, scope: Scope, options: Mapping[str, Any]) -> Mapping[str, object]:
    own = _module_of(score).partition(".")[0] == "ticketry"
    try:
        with nullcontext() if own else callers_defaults():
            found = score(model, scope, **options)
    except SystemExit as error:  # or a search would end here, and nothing would say why
        raise ScoreError(f"{called(score)} ends the process (SystemExit: {error}): let it raise an error") from error
    if not isinstance(found, Mapping):
        raise ScoreError(f"{called(score)} gives {_shown(found)}, and a score gives a mapping name -> tensor")
    return found


def called(score: Score) -> str:
    """A score as messages call it: by its name and, unless it is the library's own, the module that it is from."""
    plain = score
    while hasattr(plain, "func"):  # of a functools.partial
        plain = plain.func
    name = getattr(plain, "__name__", type(plain).__name__)
    module = _module_of(plain)
    return f"the score {name!r}" if module.partition(".")[0] == "ticketry" else f"the score {name!r} of {module}"


def _module_of(score: Score) -> str:
    return getattr(score, "__module__", "") or ""


def _shown(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _check_names(score: Score, found: Mapping[str, object], scope: Scope) -> None:
    if missing := [name for name in scope if name not in found]:
        unknown = [str(name) for name in found if name not in scope]
        question = ""
        if unknown:
            question = f", but for {_first(unknown)} ({did_you_mean(unknown[0], missing).strip() or 'not in scope'})"
        raise ScoreError(
            f"{called(score)} gives nothing for {_first(missing)}{question}: it needs a tensor for each parameter in"
            " scope (scope.parameters(model)), or their densities are not those asked for"
        )
    if more := [str(name) for name in found if name not in scope]:
        raise ScoreError(
            f"{called(score)} gives scores for {_first(more)}, not in scope; {did_you_mean(more[0], scope)}give those"
            " of scope.parameters(model) alone"
        )


def _checked(score: Score, name: str, values: object, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(values, Tensor):
        raise ScoreError(f"{called(score)} gives {_shown(values)} for {name!r}, and not a tensor: use torch.as_tensor")
    if tuple(values.shape) != tuple(shape):
        raise ScoreError(
            f"{called(score)} gives a tensor of shape {tuple(values.shape)} for {name!r}, and the parameter has"
            f" {tuple(shape)}: a score has one number for each weight"
        )
    if values.is_complex():
        raise ScoreError(f"{called(score)} gives complex numbers for {name!r}, which have no order: give real ones")
    if values.is_floating_point() and bool(torch.isnan(values.detach()).any()):
        raise ScoreError(f"{called(score)} gives NaN for {name!r}: a weight's score is a number")
    return values.detach()


def _first(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
