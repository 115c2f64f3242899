"""LSTM language models, with tied weights or without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ticketry.tasks.models.language.base import LanguageModel, State

_START = 0.1


class LSTM(LanguageModel):
    """Two LSTM layers of 200 units over an embedding of that width, and a linear layer over the vocabulary.

    The form of Zaremba, Sutskever & Vinyals (2014, arXiv 1409.2329): dropout on what goes up from layer to layer, not
    on what goes along the text. Sizes, dropout and the start of embedding and last layer, U(-0.1, 0.1), are those of
    PyTorch's example word_language_model. With `tied` the last layer's weight is the embedding's (Press & Wolf 2017;
    Inan et al. 2017): on Penn Treebank's 10,000 words 2,653,200 parameters instead of 4,653,200.

    Each layer is a module of its own, so that its hidden units can be fewer than another's.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        context: int,
        dropout: float,
        scale: Callable[[int], int],
        width: int = 200,
        layers: int = 2,
        tied: bool = False,
    ) -> None:
        super().__init__()
        size = scale(width)
        self.encoder = nn.Embedding(vocabulary, size)
        self.layers = nn.ModuleList(nn.LSTM(size, size, batch_first=True) for _ in range(layers))
        self.decoder = nn.Linear(size, vocabulary)
        self.dropout = nn.Dropout(dropout)
        nn.init.uniform_(self.encoder.weight, -_START, _START)
        nn.init.uniform_(self.decoder.weight, -_START, _START)
        nn.init.zeros_(self.decoder.bias)
        if tied:
            self.decoder.weight = self.encoder.weight
        self.follows = {
            f"{layer}/{part}": (1, f"layers.{layer}.weight_hh_l0", 1) for layer in range(layers) for part in "hc"
        }

    @property
    def recurrent(self) -> list[nn.LSTM]:
        """Its LSTM layers, from input to output."""
        return [cast(nn.LSTM, layer) for layer in self.layers]

    def begin(self, batch: int) -> State:
        """Hidden state and cell of each layer, [b, units], all 0."""
        of = self.encoder.weight
        return {
            f"{number}/{part}": torch.zeros(batch, layer.hidden_size, dtype=of.dtype, device=of.device)
            for number, layer in enumerate(self.recurrent)
            for part in "hc"
        }

    def read(self, tokens: Tensor, state: State, *, first: bool) -> tuple[Any, State]:
        hidden = self.dropout(self.encoder(tokens))
        after: State = {}
        for number, layer in enumerate(self.recurrent):
            past = (state[f"{number}/h"][None], state[f"{number}/c"][None])
            hidden, (h, c) = layer(hidden if number == 0 else self.dropout(hidden), past)
            after |= {f"{number}/h": h[0], f"{number}/c": c[0]}
        return hidden, after

    def scores(self, features: Any) -> Tensor:
        scores: Tensor = self.decoder(self.dropout(features))
        return scores


class TiedLSTM(LSTM):
    """With the embedding's weight for the last layer."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, tied=True, **named)
