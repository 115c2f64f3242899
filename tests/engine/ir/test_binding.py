"""What a compiled model returns in the place of its model's own classes."""

from __future__ import annotations

import copy
from collections import UserDict
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers.utils import ModelOutput

import ticketry as tk
from ticketry_engine.bench.compare import compare
from ticketry_engine.bench.dense_engines import Sparse, rivals
from ticketry_engine.bench.timing import Case, Timing
from ticketry_engine.ir.binding import Fields, OutputRecord


class Both(NamedTuple):
    scores: Tensor
    hidden: Tensor


@dataclass
class Output(ModelOutput):
    scores: Tensor
    hidden: Tensor | None = None


class Net(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        hidden = torch.relu(self.first(x)) * scale
        return self.kind(scores=self.second(hidden), hidden=hidden)


def test_tensors_are_found_in_outputs_of_a_models_own_class() -> None:
    """By torch's `tree_map`, and by a comparison with dense engines, which had found none."""
    torch.manual_seed(0)
    for kind, stands in ((Both, Fields), (Output, OutputRecord)):
        model = Net(kind).eval()
        mask = tk.prune(model, 0.5)
        given = {"scale": torch.rand(2, 1), "x": torch.randn(2, 6)}
        masked = mask.apply_(copy.deepcopy(model))
        fast = tk.compile(model, mask, UserDict(given))
        made = fast(**given)
        assert type(made) is stands
        torch.testing.assert_close(made.hidden, masked(**given).hidden)
        doubled = tree_map(lambda leaf: 2 * leaf, made)
        assert type(doubled) is stands
        torch.testing.assert_close(doubled.scores, 2 * made[0])
        found = compare(
            Case(masked, given), [*rivals(["eager"]), Sparse(lambda case, fast=fast: fast)], Timing(rounds=1)
        )
        assert [row.engine for row in found.times if row.timed] == ["eager", "ticketry"]
