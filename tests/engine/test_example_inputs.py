"""Batches made of example inputs, and how far outputs are apart."""

from __future__ import annotations

import math
from collections import UserDict
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from ticketry.errors import EngineError, UsageError
from ticketry_engine.example_inputs import batch_size_of, relative_difference, resize_batch


def test_batches_of_any_size_whose_examples_all_differ() -> None:
    x, tokens, shared = torch.randn(2, 3, 4), torch.tensor([[1, 2], [3, 4]]), torch.randn(3)
    made = resize_batch((x, tokens, shared, None), 5)
    assert made[0].shape == (5, 3, 4)
    assert torch.equal(made[1], tokens[[0, 1, 0, 1, 0]])
    assert made[2] is shared
    assert made[3] is None
    assert len({tuple(row.flatten().tolist()) for row in made[0]}) == 5
    assert 0.5 < float(made[0].std() / x.std()) < 2
    assert torch.equal(resize_batch(x, 5, seed=1)[0], resize_batch(x, 5, seed=1)[0])
    assert not torch.equal(resize_batch(x, 5, seed=1)[0], resize_batch(x, 5, seed=2)[0])


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_arguments_by_name(kind: type) -> None:
    """Tokenizers give mappings of their own, that are no dict."""
    x, tokens = torch.randn(2, 3), torch.tensor([[1, 2], [3, 4]])
    assert batch_size_of((3, torch.tensor(1.0), x)) == 2
    with pytest.raises(UsageError, match="no tensor"):
        batch_size_of((1, "two"))
    given = kind(x=x, tokens=tokens)
    assert batch_size_of(given) == 2
    made = resize_batch(given, 3, seed=1)
    assert list(made) == ["x", "tokens"]
    assert torch.equal(made["tokens"], tokens[[0, 1, 0]])
    assert torch.equal(made["x"], resize_batch(x, 3, seed=1)[0])


def test_the_difference_is_relative_in_norm() -> None:
    exact = torch.tensor([3.0, 4.0])
    pair, masked = torch.tensor([3 + 4j, 0j]), torch.tensor([3.0, -math.inf, 4.0])
    for found, wanted, difference in (
        ([exact + torch.tensor([0.0, 0.05])], [exact], 0.01),
        ([exact, exact], [exact, 2 * exact], 0.5),
        ([torch.tensor([0.25, 0.0])], [torch.zeros(2)], 0.25),
        ([torch.tensor([math.nan, 4.0])], [exact], math.inf),
        ([torch.tensor([math.inf, 4.0])], [exact], math.inf),
        ([exact], [torch.tensor([3.0, -math.inf])], math.inf),
        ([pair.conj()], [pair], 8 / 5),
        ([masked], [masked], 0),
        ([-masked], [masked], math.inf),
    ):
        assert relative_difference(found, wanted) == pytest.approx(difference, rel=1e-4), (found, wanted)
    for found in ([exact.view(1, 2)], []):
        with pytest.raises(EngineError, match="shapes"):
            relative_difference(found, [exact])
    with pytest.raises(EngineError, match="the model itself gives NaN"):
        relative_difference([masked], [torch.tensor([3.0, math.nan, 4.0])])


def test_a_mask_of_infinities_stays_one_and_the_rest_has_noise() -> None:
    mask = torch.zeros(2, 3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), -math.inf)
    made = resize_batch(mask + 0.1 * torch.randn(2, 3, 3), 4)[0]
    assert torch.equal(made.isinf(), (mask[:1] < 0).expand(4, 3, 3))
    assert not made.isnan().any()
    assert 0 < float(made[made.isfinite()].std()) < 1


class Both(nn.Linear):
    def forward(self, x: Any, shift: Tensor | None = None) -> Tensor:
        x, shift = (x["x"], x["shift"]) if isinstance(x, dict) else (x, shift)
        made = super().forward(x)
        return made if shift is None else made + shift


X, SHIFT = torch.randn(4, 8), torch.randn(4, 8)
EXAMPLES: dict[str, Any] = {
    "tensor": X,
    "list": [X, SHIFT],
    "dict": {"x": X, "shift": SHIFT},
    "mapping": MappingProxyType({"x": X, "shift": SHIFT}),
    "container as the argument": ({"x": X, "shift": SHIFT},),
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_profile_and_tune_take_the_example_inputs(kind: str) -> None:
    fast = tk.compile(Both(8, 8).eval(), None, EXAMPLES[kind])
    rows = fast.profile(EXAMPLES[kind], rounds=1)
    assert any(row.kind == "linear" and row.seconds is not None for row in rows)
    assert fast.tune(EXAMPLES[kind]) is fast
    if kind == "list":
        assert fast.profile(X, shift=SHIFT, rounds=1), "a call too"
        with pytest.raises(EngineError, match="'shift' is missing"):
            fast.profile(X)
