"""A small transformer that reads from left to right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.errors import TaskError
from ticketry.tasks.models.language.base import LanguageModel, State

_START = 0.02


class GPT(LanguageModel):
    """Four blocks of width 128 with 4 heads, norms before attention and feed-forward layers, and tied embeddings.

    The form of GPT-2 (Radford et al. 2019): learned positions, GELU, weights that start from N(0, 0.02²), those that
    end a residual branch with a standard deviation smaller by sqrt(2 * blocks). Queries, keys and values are three
    layers. With a context of 64 and WikiText-2's 33,278 words 5,061,120 parameters, 0.8 million of them in blocks. It
    carries nothing along the text.
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
        self.blocks = nn.ModuleList(_Block(size, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        _draw(self, blocks)

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


class _Block(nn.Module):
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
    """Every token attends to itself and to those before it. The width of a head stays where heads are removed."""

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
def _draw(model: GPT, blocks: int) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            ends = name.endswith(("attention.out.weight", "down.weight"))
            parameter.normal_(0.0, _START / (2 * blocks) ** 0.5 if ends else _START)
        elif name.endswith("bias"):
            parameter.zero_()
