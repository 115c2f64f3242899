"""Checks of arguments that many public functions share, by their names: see `ticketry_engine.support.entry_points`."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Mapping
from contextlib import suppress
from numbers import Real
from typing import Any

from torch import Tensor, nn

from ticketry.errors import UsageError
from ticketry.step import Step
from ticketry_engine.support.entry_points import ARGUMENT_CHECKS


def whole_number(value: Any, name: str, model: object = None) -> int:
    """Return a whole number as an int, also one of numpy or in a tensor.

    Raises:
        UsageError: for other values.
    """
    if not isinstance(value, bool):
        with suppress(TypeError):
            return operator.index(value)
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            return int(value)
    raise UsageError(f"{name}= is a whole number, such as 1, not {_told(value)}")


def number(value: Any, name: str, model: object = None) -> float:
    """Return a number as it is, or that of a tensor with one element; `UsageError` for other values."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UsageError(f"{name}= is a number, such as 0.5, not {_told(value)}")
    return value  # type: ignore[return-value]


def _check_pattern(value: object, name: str, model: object) -> object:
    if not (isinstance(value, str) or hasattr(value, "densest")):
        raise UsageError(f"{name}= is a text, such as '2:4' or '4x1', not {_told(value)}")
    return value


def _check_score(value: object, name: str, model: object) -> object:
    if not isinstance(value, str) and not callable(value):
        raise UsageError(
            f"{name}= is the name of a score, such as 'magnitude', or a function score(model, scope, ...), not"
            f" {_told(value)}"
        )
    return value


def _check_batches(value: object, name: str, model: object) -> object:
    if isinstance(value, (Tensor, str, bytes, Mapping, nn.Module)) or not isinstance(value, Iterable):
        raise UsageError(
            f"{name}= is a data loader or a list of batches, such as [(inputs, targets)], not {_told(value)}: put a"
            " single batch into a list"
        )
    return value


def _check_loss(value: object, name: str, model: object) -> object:
    wrong = not callable(value)
    if callable(value) and not isinstance(value, nn.Module) and not inspect.isclass(value):
        with suppress(ValueError, TypeError):  # of a function in C
            signature = inspect.signature(value)
            try:
                signature.bind(None, None)
            except TypeError:
                wrong = True
    if wrong and not (getattr(value, "__module__", None) or "").startswith("torch.nn."):
        raise UsageError(f"{name}= is a function loss(model, batch) that gives the mean loss, not {_told(value)}")
    return value


def _check_cost(value: object, name: str, model: object) -> object:
    if not hasattr(value, "estimate"):
        raise UsageError(f"{name}= is what tk.cost.model(model, example_inputs) gives, not {_told(value)}")
    return value


def _check_word(value: object, name: str, model: object) -> object:
    if not isinstance(value, str):
        raise UsageError(f"{name}= is a text, not {_told(value)}")
    return value


def _check_point(value: object, name: str, model: object) -> object:
    if not isinstance(value, (str, Step, int)):
        raise UsageError(f"{name}= is a point of the training, such as '500it' or '25%', not {_told(value)}")
    try:
        return Step.parse(value)  # type: ignore[arg-type]
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None


def _check_structure(value: object, name: str, model: object) -> object:
    if not (isinstance(value, str) or hasattr(value, "groups")):
        raise UsageError(
            f"{name}= is a word, such as 'auto', or what tk.structure.tried_structure(model, x) gives, not"
            f" {_told(value)}"
        )
    return value


def _check_target(value: object, name: str, model: object) -> object:
    if isinstance(value, (Tensor, bool, int, float, bytes, list, tuple, Mapping)) or type(value) is object:
        raise UsageError(f"{name}= is the name of a processor or a profile, not {_told(value)}")
    return value


def _check_words(value: object, name: str, model: object) -> tuple[str, ...]:
    words = tuple(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else (value,)
    for word in words:
        if not isinstance(word, str):
            raise UsageError(f"{name}= is a tuple of texts, such as ('weights',), and not one that has {_told(word)}")
    return words


def _check_densities(value: object, name: str, model: object) -> object:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise UsageError(f"{name}= is a list of densities, such as [0.5, 0.1], not {_told(value)}")
    return [number(one, name) for one in value]


def _check_names(value: object, name: str, model: object) -> object:
    if not isinstance(value, Iterable):
        raise UsageError(f"{name}= is a list of names of parameters, such as ['fc.weight'], not {_told(value)}")
    return value


def _told(value: object) -> str:
    """The value, if it is short, or else its type."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return f"{value!r:.60}"
    return f"a {type(value).__name__}"


_WHOLE = (
    "keep_at_least",
    "iterations",
    "steps",
    "multiple",
    "n",
    "m",
    "block_rows",
    "block_columns",
    "threads",
    "seed",
)
_NUMBERS = ("init", "temperature", "plus")

ARGUMENT_CHECKS.update(dict.fromkeys(_WHOLE, whole_number))
ARGUMENT_CHECKS.update(dict.fromkeys(_NUMBERS, number))
ARGUMENT_CHECKS.update(
    pattern=_check_pattern,
    score=_check_score,
    batches=_check_batches,
    loss=_check_loss,
    cost=_check_cost,
    names=_check_names,
    structure=_check_structure,
    target=_check_target,
    densities=_check_densities,
)
ARGUMENT_CHECKS.update(dict.fromkeys(("distribution", "precision"), _check_word))
ARGUMENT_CHECKS.update(dict.fromkeys(("granularities", "bases"), _check_words))
ARGUMENT_CHECKS.update(dict.fromkeys(("begin", "end", "frequency"), _check_point))
