"""Language models by name, at any width: LSTM (tied or not), pointer sentinel LSTM, a small GPT.

One file a family; all are called alike, see `base.LanguageModel`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ticketry.errors import TaskError
from ticketry.tasks.models.language.base import LanguageModel
from ticketry.tasks.models.language.gpt import GPT
from ticketry.tasks.models.language.lstm import LSTM
from ticketry.tasks.models.language.pointer import PointerLSTM
from ticketry.tasks.models.size import widest
from ticketry.tasks.network_name import NetworkName, unknown

__all__ = ["LanguageModel", "build", "carries", "check", "names", "narrower"]


@dataclass(frozen=True)
class _Network:
    make: Callable[..., LanguageModel]
    """Of the vocabulary's size and, by name, context, dropout and `scale`: what becomes of a hidden width."""
    carries: bool
    """Whether it carries a state along the text."""


_NETWORKS = {
    "lstm": _Network(LSTM, True),
    "lstm-tied": _Network(partial(LSTM, tied=True), True),
    "pointer-lstm": _Network(PointerLSTM, True),
    "gpt": _Network(GPT, False),
}


def names() -> tuple[str, ...]:
    """The language models at their own width; `build` knows NAME@W as well."""
    return tuple(_NETWORKS)


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
    network = _NETWORKS[parsed.base]
    return network.make(vocabulary, context=context, dropout=dropout, scale=parsed.scaled)


def check(name: str) -> NetworkName:
    """The name, taken apart; raises what `build` would raise."""
    parsed = NetworkName.parse(name)
    if parsed.library:
        raise TaskError(f"{name}: {parsed.library} has no language models: choose one of {', '.join(_NETWORKS)}")
    if parsed.base not in _NETWORKS:
        raise unknown(name, _NETWORKS)
    return parsed


def carries(name: str) -> bool:
    """Whether the model of this name carries a state along the text."""
    return _NETWORKS[check(name).base].carries


def narrower(name: str, *, vocabulary: int, context: int, parameters: int) -> str | None:
    """The widest form of the model, no wider than it is, with at most so many parameters, see `size.narrower`."""

    def count(candidate: NetworkName) -> int:
        with torch.device("meta"):
            model = build(str(candidate), vocabulary=vocabulary, context=context, dropout=0.0)
        return sum(parameter.numel() for parameter in model.parameters())

    return widest(check(name), count, parameters)
