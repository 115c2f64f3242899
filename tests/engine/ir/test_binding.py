"""What a compiled model binds and returns, and arithmetic on sizes that a file may ask for."""

from __future__ import annotations

import copy
from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers.utils import ModelOutput

import ticketry as tk
from ticketry.errors import GraphError
from ticketry_engine.bench.compare import compare
from ticketry_engine.bench.dense_engines import Sparse, rivals
from ticketry_engine.bench.timing import Case, Timing
from ticketry_engine.ir import binding
from ticketry_engine.ir.aten import OPERATORS
from ticketry_engine.ir.binding import Fields, OutputRecord, dense_dispatch_keys


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
        self.kind, self.first, self.second = kind, nn.Linear(6, 8), nn.Linear(8, 3)

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
        engines = [*rivals(["eager"]), Sparse(lambda case, fast=fast: fast)]
        found = compare(Case(masked, given), engines, Timing(rounds=1))
        assert [row.engine for row in found.times if row.timed] == ["eager", "ticketry"]


def test_keys_are_those_of_new_tensors_inside_of_inference_mode_and_outside():
    found = set()
    for inference in (False, True):
        with torch.inference_mode(inference):
            found.add(torch._C._dispatch_keys(torch.empty(2)).raw_repr())
    assert dense_dispatch_keys("cpu") == found


def test_a_call_leaves_the_tracers_of_other_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's stack of tracers belongs to the process: whoever sets it aside takes it from a thread that records."""
    model, x = nn.Linear(4, 3).eval(), torch.ones(2, 4)
    monkeypatch.setattr(binding, "_disable_current_modes", None)
    torch.testing.assert_close(tk.compile(model, None, x, threads=1)(x), model(x).detach())


@pytest.mark.parametrize(("numbers", "made"), [((3, 4), 81), ((2, 62), 1 << 62), ((4, -0.5), 0.5), ((2, -1), 0.5)])
def test_powers_of_sizes(numbers: tuple[Any, ...], made: Any) -> None:
    found = OPERATORS["pow"][1](*numbers)
    assert (found, type(found)) == (made, type(made))


@pytest.mark.parametrize("numbers", [(10, 1 << 62), (3, 63), (-2.0, 0.5), (0, -1)])
def test_powers_that_are_no_sizes_are_refused(numbers: tuple[Any, ...]) -> None:
    with pytest.raises(GraphError, match="no number that sizes"):
        OPERATORS["pow"][1](*numbers)
