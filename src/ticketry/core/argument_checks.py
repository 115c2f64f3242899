"""Checks of arguments that many public functions share, registered by argument name in `ARGUMENT_CHECKS`.

`ticketry_engine.support.entry_points` runs these checks when a public function is called.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from numbers import Real
from typing import Any

from torch import Tensor, nn

from ticketry.choices import did_you_mean, format_names, require_name
from ticketry.errors import MaskError, UsageError
from ticketry.step import Step
from ticketry_engine.support.entry_points import ARGUMENT_CHECKS
from ticketry_engine.support.modules import name_without_wrappers


def check_whole_number(value: Any, name: str, model: object = None) -> int:
    """Return a whole number, which may be a float or a one-element tensor, as an int; else raise `UsageError`."""
    if not isinstance(value, bool):
        with suppress(TypeError):
            return operator.index(value)
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            return int(value)
    raise UsageError(f"{name}= is a whole number, such as 1, not {_describe_value(value)}")


def check_number(value: Any, name: str, model: object = None) -> float:
    """Return a real number, converting a tensor with a single element; raise `UsageError` for any other value."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UsageError(f"{name}= is a number, such as 0.5, not {_describe_value(value)}")
    return value  # type: ignore[return-value]


def _check_scores(value: object, name: str, model: nn.Module | None) -> object:
    """Return `value` after checking that it maps parameter names to tensors of real scores."""
    if not isinstance(value, Mapping):
        raise UsageError(f"{name}= must map parameter names to tensors, got {_describe_value(value)}")
    shapes = {}
    if model is not None:
        shapes = {
            name_without_wrappers(one): tuple(p.shape) for one, p in model.named_parameters(remove_duplicate=False)
        }
    for parameter, score in value.items():
        require_name(parameter, name, MaskError)
        if not isinstance(score, Tensor) or score.is_complex():
            kind = "complex numbers" if isinstance(score, Tensor) else _describe_value(score)
            raise UsageError(f"{name}= must hold a tensor of real numbers for {parameter!r}, got {kind}")
        if shapes and parameter not in shapes:
            raise UsageError(
                f"{name}= names {parameter!r}, which {type(model).__name__} does not have;"
                f" {did_you_mean(parameter, shapes)}its parameters are {format_names(shapes)}"
            )
        if shapes and tuple(score.shape) != shapes[parameter]:
            raise UsageError(
                f"{name}= has shape {tuple(score.shape)} for {parameter!r}, and the parameter has {shapes[parameter]}"
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
        raise UsageError(
            f"{name}= is a function loss(model, batch) that gives the mean loss, not {_describe_value(value)}"
        )
    return value


def _check_training_point(value: object, name: str, model: object) -> object:
    if not isinstance(value, (str, Step, int)):
        raise UsageError(f"{name}= is a point of the training, such as '500it' or '25%', not {_describe_value(value)}")
    try:
        return Step.parse(value)  # type: ignore[arg-type]
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None


def _check_strings(value: object, name: str, model: object) -> tuple[str, ...]:
    words = tuple(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else (value,)
    for word in words:
        if not isinstance(word, str):
            raise UsageError(
                f"{name}= is a tuple of texts, such as ('weights',), and not one that has {_describe_value(word)}"
            )
    return words


def _check_densities(value: object, name: str, model: object) -> object:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise UsageError(f"{name}= is a list of densities, such as [0.5, 0.1], not {_describe_value(value)}")
    return [check_number(one, name) for one in value]


def _describe_value(value: object) -> str:
    """Return text for an error message: the value itself if it is a number, a text or None, else its type."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return f"{value!r:.60}"
    return f"a {type(value).__name__}"


_NO_TARGETS = (Tensor, float, int, bytes, list, tuple, Mapping)
_FORMS: dict[str, tuple[Callable[[object], bool], str]] = {
    "pattern": (
        lambda value: isinstance(value, str) or hasattr(value, "densest"),
        "a text, such as '2:4' or '4x1'",
    ),
    "score": (
        lambda value: isinstance(value, str) or callable(value),
        "the name of a score, such as 'magnitude', or a function score(model, scope, ...)",
    ),
    "batches": (
        lambda value: isinstance(value, Iterable) and not isinstance(value, (Tensor, str, bytes, Mapping, nn.Module)),
        "a data loader or a list of batches, such as [(inputs, targets)] (put a single batch into a list)",
    ),
    "cost": (lambda value: hasattr(value, "estimate"), "what tk.cost.model(model, example_inputs) gives"),
    "names": (lambda value: isinstance(value, Iterable), "a list of names of parameters, such as ['fc.weight']"),
    "structure": (
        lambda value: isinstance(value, str) or hasattr(value, "groups"),
        "a word, such as 'auto', or what tk.structure.tried_structure(model, x) gives",
    ),
    "target": (
        lambda value: not isinstance(value, _NO_TARGETS) and type(value) is not object,
        "the name of a processor or a profile",
    ),
    "distribution": (lambda value: isinstance(value, str), "a text"),
    "precision": (lambda value: isinstance(value, str), "a text"),
}
"""Argument name -> (function that returns whether a value is allowed, allowed values as text for messages)."""


def _check_allowed_form(value: object, name: str, model: object) -> object:
    is_allowed, form = _FORMS[name]
    if not is_allowed(value):
        raise UsageError(f"{name}= is {form}, not {_describe_value(value)}")
    return value


_WHOLE = "keep_at_least iterations steps multiple n m block_rows block_columns threads seed"

ARGUMENT_CHECKS.update(dict.fromkeys(_WHOLE.split(), check_whole_number))
ARGUMENT_CHECKS.update(dict.fromkeys(("init", "temperature", "plus"), check_number))
ARGUMENT_CHECKS.update(dict.fromkeys(_FORMS, _check_allowed_form))
ARGUMENT_CHECKS.update(scores=_check_scores, loss=_check_loss, densities=_check_densities)
ARGUMENT_CHECKS.update(dict.fromkeys(("granularities", "bases"), _check_strings))
ARGUMENT_CHECKS.update(dict.fromkeys(("begin", "end", "frequency"), _check_training_point))
