"""Build language models by name, at any width: LSTM (tied or not), pointer sentinel LSTM, and a small GPT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.errors import TaskError
from ticketry.registry import digest_source
from ticketry.tasks.models import widest_network_within
from ticketry.tasks.network_name import LANGUAGE_MODELS, NetworkName, unknown_network_error

State = dict[str, Tensor]
"""Tensors [batch, ...] that a recurrent model passes from one segment of a text to the next; empty if not recurrent."""


class LanguageModel(nn.Module):
    """A model that predicts each next token of a text.

    Called with tokens only, int64 [b, t], which begin a text, the model returns scores [b, t, vocabulary]: log
    probabilities, up to a constant, of the next token after each token. Given a `State` too, the model continues from
    this state and also returns the new state. Given targets too, int64 [b, t], it returns the loss of each token,
    [b, t], instead of the scores. The loss is -log p(target); in training mode, a model may add the terms of its paper.
    """

    carries: ClassVar[bool] = True
    """Whether the model passes a state from one segment of the text to the next."""
    follows: Mapping[str, tuple[int, str, int]] = {}
    """State entries with a dimension of units of the network, see `tasks.task.Session.follows`."""

    def begin(self, batch: int) -> State:
        """Return the initial state for a batch of `batch` texts."""
        return {}

    def forward(self, tokens: Tensor, state: State | None = None, targets: Tensor | None = None) -> Any:
        past = self.begin(tokens.shape[0]) if state is None else state
        features, after = self.read(tokens, past, first=state is None)
        made = self.scores(features) if targets is None else self.costs(features, targets)
        return made if state is None else (made, after)

    def read(self, tokens: Tensor, state: State, *, first: bool) -> tuple[Any, State]:
        """Return the features of each of `tokens`, int64 [b, t], and the state after the last token.

        `state` is the state before the first token; `first` says whether this is the initial state.
        """
        raise NotImplementedError

    def scores(self, features: Any) -> Tensor:
        """Return scores [b, t, vocabulary] from the features that `read` returned."""
        raise NotImplementedError

    def costs(self, features: Any, targets: Tensor) -> Tensor:
        """Return the loss of each token, [b, t], from the features that `read` returned."""
        return cross_entropy(self.scores(features), targets)


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Return -log p(target) [b, t] for scores [b, t, vocabulary], computed in float32 or better."""
    flat = to_float32(scores).flatten(0, -2)
    return nn.functional.cross_entropy(flat, targets.flatten(), reduction="none").view_as(targets)


def to_float32(tensor: Tensor) -> Tensor:
    """Return `tensor`, converted to float32 if its type is less precise."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


_LSTM_INIT_LIMIT = 0.1


class LSTM(LanguageModel):
    """An LSTM language model: an embedding of width 200, two LSTM layers of 200 units, and a linear layer.

    As in Zaremba, Sutskever & Vinyals (2014, arXiv 1409.2329), dropout acts between layers, not between time steps.
    Sizes, dropout and the initialisation U(-0.1, 0.1) of embedding and last layer are those of PyTorch's example
    word_language_model. With `tied`, embedding and last layer share a weight (Press & Wolf 2017; Inan et al. 2017): for
    the 10,000 words of Penn Treebank, this reduces 4,653,200 parameters to 2,653,200.

    Each layer is a separate module, so that pruning can leave the layers different numbers of hidden units.
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
        nn.init.uniform_(self.encoder.weight, -_LSTM_INIT_LIMIT, _LSTM_INIT_LIMIT)
        nn.init.uniform_(self.decoder.weight, -_LSTM_INIT_LIMIT, _LSTM_INIT_LIMIT)
        nn.init.zeros_(self.decoder.bias)
        if tied:
            self.decoder.weight = self.encoder.weight
        self.follows = {
            f"{layer}/{part}": (1, f"layers.{layer}.weight_hh_l0", 1) for layer in range(layers) for part in "hc"
        }

    @property
    def recurrent(self) -> list[nn.LSTM]:
        """The LSTM layers, in order from input to output."""
        return [cast(nn.LSTM, layer) for layer in self.layers]

    def begin(self, batch: int) -> State:
        """Return zeros [b, units] for the hidden state and the cell of each layer."""
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
    """`LSTM` whose last layer shares its weight with the embedding."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, tied=True, **named)


_NO_WORD = -1
"""Token number that stands for the missing words before the beginning of a text."""


@dataclass(frozen=True)
class _PointerFeatures:
    """The features that `PointerLSTM` computes for tokens [b, t]; `past` earlier words precede the tokens."""

    outputs: Tensor
    """[b, t, units] outputs of the LSTM."""
    attention: Tensor
    """[b, t, past + t + 1] log probabilities of pointing at each word; the last entry is log g, of the sentinel."""
    words: Tensor
    """[b, past + t] token numbers of the words that may be pointed at."""


class PointerLSTM(LSTM):
    """Pointer sentinel LSTM: an `LSTM` that can also point at one of the last 100 words.

    Merity, Xiong, Bradbury & Socher, "Pointer Sentinel Mixture Models" (2016, arXiv 1609.07843), section 2. Let h_t be
    the output of the LSTM at token t. A query q = tanh(W h_t + b) is compared with the outputs h_i at the last L = 100
    words x_i, and with a trained vector s, the sentinel: a = softmax(q·h_i, …, q·s). The last entry of a, called g, is
    the weight of the usual softmax over the vocabulary: p(w) = g p_vocab(w) + the sum of a_i over all i with x_i = w.
    In training, the loss of the attention, -log(g + the sum of a_i where x_i is the target), is added to -log p.

    The state contains outputs and words of the last L tokens, so that the model can point into earlier segments of the
    text. Two things differ from the paper: layers and sizes are those of `LSTM`, and gradients stop at the start of a
    segment (in the paper, they reach back over L words). With the words of Penn Treebank, the model has 4,693,600
    parameters.
    """

    def __init__(
        self, vocabulary: int, *, context: int, dropout: float, scale: Callable[[int], int], window: int = 100
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
        """Return the initial state: that of `LSTM`, and ``outputs`` [b, L, units] and ``words`` [b, L], all empty."""
        size = self.recurrent[-1].hidden_size
        return {
            **super().begin(batch),
            "outputs": torch.zeros(batch, self.window, size, dtype=self.sentinel.dtype, device=self.sentinel.device),
            "words": torch.full((batch, self.window), _NO_WORD, device=self.sentinel.device),
        }

    def read(self, tokens: Tensor, state: State, *, first: bool) -> tuple[Any, State]:
        outputs, after = super().read(tokens, state, first=first)
        keys, words = outputs, tokens
        if not first:
            keys = torch.cat([state["outputs"].to(outputs.dtype), outputs], 1)
            words = torch.cat([state["words"], tokens], 1)
            after |= {"outputs": keys[:, -self.window :], "words": words[:, -self.window :]}
        query = torch.tanh(self.query(outputs))
        at = torch.arange(words.shape[1], device=words.device)
        now = at[words.shape[1] - tokens.shape[1] :, None]
        # A token cannot point at words after it, more than L words before it, or before the beginning of the text.
        unreachable = ((at > now) | (at <= now - self.window)) | (words == _NO_WORD)[:, None]
        scores = to_float32(query @ keys.mT).masked_fill(unreachable, float("-inf"))
        sentinel = to_float32(query @ self.sentinel)[..., None]
        attention = torch.cat([scores, sentinel], -1).log_softmax(-1)
        return _PointerFeatures(outputs, attention, words), after

    def scores(self, features: Any) -> Tensor:
        """Return the log probabilities [b, t, vocabulary] of each next word."""
        read: _PointerFeatures = features
        pointed, log_g = read.attention[..., :-1].exp(), read.attention[..., -1:]
        vocabulary = to_float32(super().scores(read.outputs)).log_softmax(-1)
        places = read.words.clamp(min=0)[:, None].expand_as(pointed)  # nothing is pointed at where there is no word
        return torch.logaddexp(
            log_g + vocabulary, _log_with_floor(torch.zeros_like(vocabulary).scatter_add(-1, places, pointed))
        )

    def costs(self, features: Any, targets: Tensor) -> Tensor:
        read: _PointerFeatures = features
        log_g = read.attention[..., -1]
        hits = read.words[:, None] == targets[..., None]
        pointed = _log_with_floor((read.attention[..., :-1].exp() * hits).sum(-1))
        vocabulary = -cross_entropy(super().scores(read.outputs), targets)
        costs = -torch.logaddexp(log_g + vocabulary, pointed)
        return costs - torch.logaddexp(log_g, pointed) if self.training else costs


def _log_with_floor(mass: Tensor) -> Tensor:
    """Return log(max(`mass`, smallest normal number)), so that the gradient is never NaN."""
    return mass.clamp(min=torch.finfo(mass.dtype).tiny).log()


_GPT_INIT_SD = 0.02


class GPT(LanguageModel):
    """A small GPT-2 (Radford et al. 2019): four blocks of width 128 with 4 heads, and tied embeddings.

    Norms precede attention and feed-forward layers, positions are learned, and the nonlinearity is GELU. Weights are
    drawn from N(0, 0.02²); in the last layer of each residual branch, the standard deviation is divided by
    sqrt(2 * blocks). Queries, keys and values are separate layers. With a context of 64 and the 33,278 words of
    WikiText-2, the model has 5,061,120 parameters, 0.8 million of them in blocks. It has no state: each segment of
    a text is read alone.
    """

    carries = False

    def __init__(
        self,
        vocabulary: int,
        *,
        context: int,
        dropout: float,
        scale: Callable[[int], int],
        width: int = 128,
        heads: int = 4,
        blocks: int = 4,
    ) -> None:
        super().__init__()
        size = heads * scale(width // heads)
        self.context = context
        self.tokens = nn.Embedding(vocabulary, size)
        self.positions = nn.Embedding(context, size)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_TransformerBlock(size, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        _initialise_gpt(self, blocks)

    def read(self, tokens: Tensor, state: State, *, first: bool) -> tuple[Any, State]:
        length = tokens.shape[1]
        if length > self.context:
            raise TaskError(f"this GPT sees {self.context} tokens at once, not {length}: cut the text into pieces")
        hidden = self.dropout(self.tokens(tokens) + self.positions.weight[:length])
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden), {}

    def scores(self, features: Any) -> Tensor:
        scores: Tensor = self.head(features)
        return scores


class _TransformerBlock(nn.Module):
    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(size), _Attention(size, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(size), nn.Linear(size, 4 * size), nn.Linear(4 * size, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        out: Tensor = x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))
        return out


class _Attention(nn.Module):
    """Causal multi-head self-attention; heads can be pruned without changing the width of the others."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.width = size // heads
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.out = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.width)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


@torch.no_grad()
def _initialise_gpt(model: GPT, blocks: int) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            ends = name.endswith(("attention.out.weight", "down.weight"))
            parameter.normal_(0.0, _GPT_INIT_SD / (2 * blocks) ** 0.5 if ends else _GPT_INIT_SD)
        elif name.endswith("bias"):
            parameter.zero_()


__all__ = ["LanguageModel", "build", "check", "is_recurrent", "names", "narrower", "network_key"]


def names() -> tuple[str, ...]:
    """Return the names of all registered language models; `build` also accepts NAME@W and module:object."""
    return LANGUAGE_MODELS.names()


def build(name: str, *, vocabulary: int, context: int, dropout: float) -> LanguageModel:
    """Return a new language model, with weights drawn from torch's global random state.

    A model without a state reads segments of at most `context` tokens.
    """
    parsed = check(name)
    made: LanguageModel = _find_model_class(parsed)(vocabulary, context=context, dropout=dropout, scale=parsed.scaled)
    return made


def check(name: str) -> NetworkName:
    """Return the parsed name of a model; raise the errors that `build` would raise."""
    parsed = NetworkName.parse(name)
    if parsed.library:
        raise TaskError(f"{name}: {parsed.library} has no language models: choose one of {', '.join(names())}")
    if parsed.base not in LANGUAGE_MODELS and ":" not in parsed.base:
        raise unknown_network_error(name, names())
    return parsed


def is_recurrent(name: str) -> bool:
    """Return whether the named model passes a state from one segment of a text to the next."""
    return bool(_find_model_class(check(name)).carries)


def network_key(name: str) -> dict[str, str]:
    """Return the entries of a task's key that identify the model: name, and a custom model's source digest."""
    parsed = check(name)
    target = LANGUAGE_MODELS.find_target(parsed.base)
    source = {} if parsed.base in LANGUAGE_MODELS.built_in else {"source": digest_source(target)}
    return {"model": str(parsed), **source}


def _find_model_class(name: NetworkName) -> Any:
    return LANGUAGE_MODELS.get(name.base)


def narrower(name: str, *, vocabulary: int, context: int, parameters: int) -> str | None:
    """Return the widest variant of the model, at most as wide as `name`, within `parameters` parameters, or None."""

    def count_parameters(candidate: NetworkName) -> int:
        with torch.device("meta"):
            model = build(str(candidate), vocabulary=vocabulary, context=context, dropout=0.0)
        return sum(parameter.numel() for parameter in model.parameters())

    return widest_network_within(check(name), count_parameters, parameters)
