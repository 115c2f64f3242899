"""Language models by name, at any width: LSTM (tied or not), pointer sentinel LSTM, a small GPT.

One file a family; all are called alike, see `base.LanguageModel`.
"""

from __future__ import annotations

from typing import Any

import torch

from ticketry.errors import TaskError
from ticketry.registry import digest_source
from ticketry.tasks.models.language.base import LanguageModel
from ticketry.tasks.models.networks import widest
from ticketry.tasks.network_name import LANGUAGE_MODELS, NetworkName, unknown

__all__ = ["LanguageModel", "build", "carries", "check", "identity", "names", "narrower"]


def names() -> tuple[str, ...]:
    """The language models at their own width, and those of packages; `build` knows NAME@W and module:object as well."""
    return LANGUAGE_MODELS.names()


def build(name: str, *, vocabulary: int, context: int, dropout: float) -> LanguageModel:
    """A new language model, its weights drawn from torch's global state.

    Args:
        vocabulary: how many different tokens there are.
        context: tokens that a model which carries nothing along sees at once, at most.
        dropout: share of the activations dropped in training.

    Raises:
        TaskError: for an unknown network, or a width that is not in (0, 4].
    """
    parsed = check(name)
    made: LanguageModel = _class(parsed)(vocabulary, context=context, dropout=dropout, scale=parsed.scaled)
    return made


def check(name: str) -> NetworkName:
    """The name, taken apart; raises what `build` would raise."""
    parsed = NetworkName.parse(name)
    if parsed.library:
        raise TaskError(f"{name}: {parsed.library} has no language models: choose one of {', '.join(names())}")
    if parsed.base not in LANGUAGE_MODELS and ":" not in parsed.base:
        raise unknown(name, names())
    return parsed


def carries(name: str) -> bool:
    """Whether the model of this name carries a state along the text."""
    return bool(_class(check(name)).carries)


def identity(name: str) -> dict[str, str]:
    """What a task's key says of its model: its name in the one form that counts; from outside its source too."""
    parsed = check(name)
    target = LANGUAGE_MODELS.find_target(parsed.base)
    source = {} if parsed.base in LANGUAGE_MODELS.built_in else {"source": digest_source(target)}
    return {"model": str(parsed), **source}


def _class(name: NetworkName) -> Any:
    return LANGUAGE_MODELS.get(name.base)


def narrower(name: str, *, vocabulary: int, context: int, parameters: int) -> str | None:
    """The widest form of the model, no wider than it is, with at most so many parameters, see `networks.narrower`."""

    def count(candidate: NetworkName) -> int:
        with torch.device("meta"):
            model = build(str(candidate), vocabulary=vocabulary, context=context, dropout=0.0)
        return sum(parameter.numel() for parameter in model.parameters())

    return widest(check(name), count, parameters)
