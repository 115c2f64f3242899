"""How all language models are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
"""What is carried along the text, [batch, ...] each; empty for a model that sees each piece on its own."""


class LanguageModel(nn.Module):
    """Predicts each next token of a text.

    Called with tokens alone, int64 [b, t], it gives the scores of the token after each, [b, t, vocabulary], log
    probabilities up to a constant, from an empty past. Called with a `State` it goes on with that, and returns the
    state after as well. With the targets too, int64 [b, t], it gives the cost of each token [b, t] in place of the
    scores: -log p(target) in evaluation mode, in training mode with whatever else its paper adds.
    """

    carries: ClassVar[bool] = True
    """Whether it carries a state along the text."""
    follows: Mapping[str, tuple[int, str, int]] = {}
    """See `tasks.task.Session.follows`."""

    def begin(self, batch: int) -> State:
        """The state of an empty past."""
        return {}

    def forward(self, tokens: Tensor, state: State | None = None, targets: Tensor | None = None) -> Any:
        past = self.begin(tokens.shape[0]) if state is None else state
        features, after = self.read(tokens, past, first=state is None)
        made = self.scores(features) if targets is None else self.costs(features, targets)
        return made if state is None else (made, after)

    def read(self, tokens: Tensor, state: State, *, first: bool) -> tuple[Any, State]:
        """Features of each token, and the state after the last; `first`: nothing is in the state, nor needs to be."""
        raise NotImplementedError

    def scores(self, features: Any) -> Tensor:
        """[b, t, vocabulary]"""
        raise NotImplementedError

    def costs(self, features: Any, targets: Tensor) -> Tensor:
        """[b, t]"""
        return cross_entropy(self.scores(features), targets)


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """-log p(target), [b, t], of scores [b, t, vocabulary]; in float32 at least."""
    flat = precise(scores).flatten(0, -2)
    return nn.functional.cross_entropy(flat, targets.flatten(), reduction="none").view_as(targets)


def precise(tensor: Tensor) -> Tensor:
    """The tensor in float32, if it is less precise."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
