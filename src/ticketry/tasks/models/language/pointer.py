"""The pointer sentinel mixture LSTM: a word is taken from the vocabulary, or pointed at in what was read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.tasks.models.language.base import State, cross_entropy, precise
from ticketry.tasks.models.language.lstm import LSTM

_NONE = -1
"""In place of a word that is not there, before the text began."""


@dataclass(frozen=True)
class _Read:
    """What the outputs of an LSTM for each token [b, t] make of it."""

    outputs: Tensor
    """[b, t, units]"""
    attention: Tensor
    """[b, t, past + t + 1]: log probabilities of pointing at each word, the last entry of the sentinel, log g."""
    words: Tensor
    """[b, past + t]: the words that are pointed at."""


class PointerLSTM(LSTM):
    """Merity, Xiong, Bradbury & Socher, "Pointer Sentinel Mixture Models" (2016, arXiv 1609.07843), section 2.

    With h the outputs of the LSTM, a query q = tanh(W h_t + b) is compared with the outputs h_i at the last L = 100
    words x_i, and with a trained sentinel s: a = softmax(q·h_i, …, q·s). The sentinel's share g goes to the usual
    softmax over the vocabulary: p(w) = g p_vocab(w) + the sum of a_i over all i with x_i = w. In training the attention
    is supervised besides: -log(g + the sum of a_i where x_i is the target) is added to -log p, as in the paper.

    The window goes on over pieces of the text: outputs and words of the last L are carried. Ours: the layers and sizes
    of `LSTM`, and gradients that end where a piece does (the paper's reach back over the whole window). On Penn
    Treebank's words 4,693,600 parameters.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        context: int,
        dropout: float,
        scale: Callable[[int], int],
        window: int = 100,
    ) -> None:
        super().__init__(vocabulary, context=context, dropout=dropout, scale=scale)
        size = self.recurrent[-1].hidden_size
        decoder = self.decoder
        del self.decoder  # the last layer in the order of definition is that of the outputs, here too
        self.query = nn.Linear(size, size)
        self.decoder = decoder
        self.sentinel = nn.Parameter(torch.empty(size).uniform_(-0.1, 0.1))
        self.window = window
        last = len(self.layers) - 1
        self.follows = {**self.follows, "outputs": (2, f"layers.{last}.weight_hh_l0", 1)}

    def begin(self, batch: int) -> State:
        """As of `LSTM`, with ``outputs`` [b, L, units] and ``words`` [b, L] of a past that is empty."""
        size = self.recurrent[-1].hidden_size
        return {
            **super().begin(batch),
            "outputs": torch.zeros(batch, self.window, size, dtype=self.sentinel.dtype, device=self.sentinel.device),
            "words": torch.full((batch, self.window), _NONE, device=self.sentinel.device),
        }

    def read(self, tokens: Tensor, state: State, *, first: bool) -> tuple[Any, State]:
        outputs, after = super().read(tokens, state, first=first)
        keys, words = outputs, tokens
        if not first:
            keys = torch.cat([state["outputs"].to(outputs.dtype), outputs], 1)
            words = torch.cat([state["words"], tokens], 1)
            after |= {"outputs": keys[:, -self.window :], "words": words[:, -self.window :]}
        query = torch.tanh(self.query(outputs))
        scores = precise(query @ keys.mT).masked_fill(self._hidden(words, tokens.shape[1]), float("-inf"))
        sentinel = precise(query @ self.sentinel)[..., None]
        attention = torch.cat([scores, sentinel], -1).log_softmax(-1)
        return _Read(outputs, attention, words), after

    def scores(self, features: Any) -> Tensor:
        """Log probabilities of the mixture."""
        read: _Read = features
        pointed, log_g = read.attention[..., :-1].exp(), read.attention[..., -1:]
        vocabulary = precise(super().scores(read.outputs)).log_softmax(-1)
        places = read.words.clamp(min=0)[:, None].expand_as(pointed)  # nothing is pointed at where there is no word
        return torch.logaddexp(log_g + vocabulary, _log(torch.zeros_like(vocabulary).scatter_add(-1, places, pointed)))

    def costs(self, features: Any, targets: Tensor) -> Tensor:
        read: _Read = features
        log_g = read.attention[..., -1]
        hits = read.words[:, None] == targets[..., None]
        pointed = _log((read.attention[..., :-1].exp() * hits).sum(-1))
        vocabulary = -cross_entropy(super().scores(read.outputs), targets)
        costs = -torch.logaddexp(log_g + vocabulary, pointed)
        return costs - torch.logaddexp(log_g, pointed) if self.training else costs

    def _hidden(self, words: Tensor, length: int) -> Tensor:
        """[b, length, past + length]: whether a word is later than a token, too long ago, or no word."""
        past = words.shape[1] - length
        now = torch.arange(past, words.shape[1], device=words.device)[:, None]
        at = torch.arange(words.shape[1], device=words.device)
        return ((at > now) | (at <= now - self.window)) | (words == _NONE)[:, None]


def _log(mass: Tensor) -> Tensor:
    """The logarithm, of 0 that of the smallest number, whose gradient is 0."""
    return mass.clamp(min=torch.finfo(mass.dtype).tiny).log()
