"""The interface of scores: signature, inputs, facts that lists show, and calls whose results are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ticketry.choices import did_you_mean, format_names
from ticketry.core.scope import Scope, named_parameters
from ticketry.errors import ScoreError
from ticketry_engine.support.entry_points import restore_callers_defaults


class Loss(Protocol):
    """A function that computes the mean loss of a batch: ``loss(model, batch) -> scalar tensor``.

    Examples:
        >>> def loss(model, batch):
        ...     inputs, targets = batch
        ...     return nn.functional.cross_entropy(model(inputs), targets)
        >>> loss(nn.Linear(4, 2), (torch.randn(8, 4), torch.zeros(8, dtype=torch.long))).shape
        torch.Size([])
    """

    def __call__(self, model: nn.Module, batch: object, /) -> Tensor: ...


@dataclass(frozen=True)
class ScoreInputs:
    """Inputs of scores that need data, to be passed as ``score(model, scope, **vars(inputs))``.

    Examples:
        >>> inputs = tk.score.ScoreInputs(seed=1)
        >>> model = nn.Linear(4, 2)
        >>> tk.score.random(model, tk.scope(model), **vars(inputs))["weight"].shape
        torch.Size([2, 4])
    """

    batches: Iterable[object] | None = None
    """Batches of training data."""
    loss: Loss | None = None
    """``loss(model, batch)``, the mean loss of a batch."""
    seed: int = 0
    """Seed of the score's random numbers."""


@dataclass(frozen=True)
class About:
    """Facts about a score, shown in lists of scores; attached by `described`.

    Examples:
        >>> tk.score.about("snip")
        About(paper='Lee et al. 2019', data='yes', order=1, channels='snap', signed=False)
    """

    paper: str = "not said"
    """Short citation of the paper that introduces the score."""
    data: str = "not said"
    """Data that the score needs besides the weights: ``no``, ``shapes`` (of inputs) or ``yes`` (batches)."""
    order: int | None = None
    """Highest order of derivatives of the loss that the score needs; None if not said."""
    channels: str = "summed"
    """Name of the score of `structure.channels` that does the same for whole channels; ``summed`` means the sum over
    the weights of each channel.
    """
    signed: bool = False
    """Whether values may be negative; then they cannot be divided by the cost of the weights."""


class Score(Protocol):
    """A function that rates the importance of each weight in scope.

    Examples:
        >>> def largest_input(model, scope, *, batches=None, loss=None, seed=0):
        ...     weights = scope.parameters(model)
        ...     return {name: weight.detach().abs() / weight.shape[1] for name, weight in weights.items()}
        >>> tk.prune(nn.Linear(4, 2), density=0.5, score=largest_input).kept
        4
    """

    def __call__(
        self,
        model: nn.Module,
        scope: Scope,
        *,
        batches: Iterable[object] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
    ) -> dict[str, Tensor]: ...


F = TypeVar("F", bound=Callable[..., dict[str, Tensor]])


def described(about: About) -> Callable[[F], F]:
    """Return a decorator that attaches `about` to a score.

    Args:
        about: facts about the score, which lists of scores show.

    Examples:
        >>> @tk.score.described(tk.score.About(paper="ours", data="no"))
        ... def smallest(model, scope, *, batches=None, loss=None, seed=0):
        ...     return {name: -weight.detach().abs() for name, weight in scope.parameters(model).items()}
        >>> tk.prune(nn.Linear(4, 2), density=0.25, score=smallest).kept
        2
    """

    def attach_description(score: F) -> F:
        setattr(score, ABOUT, about)
        return score

    return attach_description


ABOUT = "about"
"""Name of the attribute of a score that holds its facts."""


def get_score_description(score: object) -> About:
    """Return the facts attached to a score, or default facts if it has none."""
    found = getattr(score, ABOUT, None)
    return found if isinstance(found, About) else About()


def evaluate_score(score: Score, model: nn.Module, scope: Scope, **options: Any) -> dict[str, Tensor]:
    """Call a score and return, for each parameter in scope, a detached tensor of values, in the scope's order.

    Infinite values are allowed: weights with inf are the last to be removed, and weights with -inf the first.
    """
    found = _call_score(score, model, scope, options)
    if missing := [name for name in scope if name not in found]:
        unknown = [str(name) for name in found if name not in scope]
        question = ""
        if unknown:
            question = (
                f", but for {_list_names(unknown)} ({did_you_mean(unknown[0], missing).strip() or 'not in scope'})"
            )
        raise ScoreError(
            f"{describe_score(score)} gives nothing for {_list_names(missing)}{question}: it needs a tensor for each"
            " parameter in scope (scope.parameters(model)), or their densities would not be those requested"
        )
    if more := [str(name) for name in found if name not in scope]:
        raise ScoreError(
            f"{describe_score(score)} gives scores for {_list_names(more)}, not in scope;"
            f" {did_you_mean(more[0], scope)}give those of scope.parameters(model) alone"
        )
    return {name: _check_score_tensor(score, name, found[name], shape) for name, shape in scope.shapes.items()}


def evaluate_partial_score(score: Score, model: nn.Module, scope: Scope, **options: Any) -> dict[str, Tensor]:
    """Call a score of channels, which may return tensors for any parameters of the model, such as scales of norms."""
    found = _call_score(score, model, scope, options)
    shapes = {name: tuple(one.shape) for name, one in named_parameters(model).items()}
    if not found:
        raise ScoreError(
            f"{describe_score(score)} gives an empty mapping: it needs a tensor for each parameter it is about"
        )
    if more := [str(name) for name in found if name not in shapes]:
        raise ScoreError(
            f"{describe_score(score)} gives scores for {_list_names(more)}, and the model has no such parameters;"
            f" {did_you_mean(more[0], shapes)}they are {format_names(shapes)}"
        )
    return {name: _check_score_tensor(score, name, values, shapes[name]) for name, values in found.items()}


def _call_score(score: Score, model: nn.Module, scope: Scope, options: Mapping[str, Any]) -> Mapping[str, object]:
    own = _defining_module(score).partition(".")[0] == "ticketry"
    try:
        with nullcontext() if own else restore_callers_defaults():
            found = score(model, scope, **options)
    except SystemExit as error:  # it would end a search without an explanation
        raise ScoreError(
            f"{describe_score(score)} ends the process (SystemExit: {error}): let it raise an error"
        ) from error
    if not isinstance(found, Mapping):
        raise ScoreError(
            f"{describe_score(score)} gives {_describe_type(found)}, and a score gives a mapping name -> tensor"
        )
    return found


def describe_score(score: Score) -> str:
    """Return the name of a score for messages; for a custom score, with the module that defines it."""
    plain = score
    while hasattr(plain, "func"):  # a functools.partial
        plain = plain.func
    name = getattr(plain, "__name__", type(plain).__name__)
    module = _defining_module(plain)
    return f"the score {name!r}" if module.partition(".")[0] == "ticketry" else f"the score {name!r} of {module}"


def _defining_module(score: Score) -> str:
    return getattr(score, "__module__", "") or ""


def _describe_type(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _check_score_tensor(score: Score, name: str, values: object, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(values, Tensor):
        raise ScoreError(
            f"{describe_score(score)} gives {_describe_type(values)} for {name!r}, and not a tensor: use"
            " torch.as_tensor"
        )
    if tuple(values.shape) != tuple(shape):
        raise ScoreError(
            f"{describe_score(score)} gives a tensor of shape {tuple(values.shape)} for {name!r}, and the parameter has"
            f" {tuple(shape)}: a score has one number for each weight"
        )
    if values.is_complex():
        raise ScoreError(
            f"{describe_score(score)} gives complex numbers for {name!r}, which have no order: give real ones"
        )
    if values.is_floating_point() and bool(torch.isnan(values.detach()).any()):
        raise ScoreError(f"{describe_score(score)} gives NaN for {name!r}: a weight's score is a number")
    return values.detach()


def _list_names(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
