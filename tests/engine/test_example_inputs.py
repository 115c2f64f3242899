"""Batches made of example inputs, and how far outputs are apart."""

from __future__ import annotations

from collections import UserDict

import pytest
import torch

from ticketry.errors import EngineError, UsageError
from ticketry_engine.example_inputs import as_arguments, at_batch, batch_of, difference


def test_batches_of_any_size_whose_examples_all_differ() -> None:
    x, tokens, shared = torch.randn(2, 3, 4), torch.tensor([[1, 2], [3, 4]]), torch.randn(3)
    made = at_batch((x, tokens, shared, None), 5)
    assert made[0].shape == (5, 3, 4)
    assert torch.equal(made[1], tokens[[0, 1, 0, 1, 0]])
    assert made[2] is shared
    assert made[3] is None
    assert len({tuple(row.flatten().tolist()) for row in made[0]}) == 5
    assert 0.5 < float(made[0].std() / x.std()) < 2
    assert torch.equal(at_batch(x, 5, seed=1)[0], at_batch(x, 5, seed=1)[0])
    assert not torch.equal(at_batch(x, 5, seed=1)[0], at_batch(x, 5, seed=2)[0])


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_arguments_by_name(kind: type) -> None:
    """Tokenizers give mappings of their own, that are no dict."""
    x, tokens = torch.randn(2, 3), torch.tensor([[1, 2], [3, 4]])
    given = kind(x=x, tokens=tokens)
    assert batch_of(given) == 2
    made = at_batch(given, 3, seed=1)
    assert list(made) == ["x", "tokens"]
    assert torch.equal(made["tokens"], tokens[[0, 1, 0]])
    assert torch.equal(made["x"], at_batch(x, 3, seed=1)[0])


def test_the_batch_is_the_first_size_of_the_first_tensor() -> None:
    assert batch_of((3, torch.tensor(1.0), torch.zeros(4, 2))) == 4
    with pytest.raises(UsageError, match="no tensor"):
        batch_of((1, "two"))
    assert as_arguments((1, 2)) == (1, 2)


def test_the_difference_is_relative_in_norm() -> None:
    exact = torch.tensor([3.0, 4.0])
    assert difference([exact + torch.tensor([0.0, 0.05])], [exact]) == pytest.approx(0.01, rel=1e-4)
    assert difference([exact, exact], [exact, 2 * exact]) == pytest.approx(0.5)
    assert difference([torch.tensor([0.25, 0.0])], [torch.zeros(2)]) == pytest.approx(0.25)
    for odd in (float("nan"), float("inf")):
        assert difference([torch.tensor([odd, 4.0])], [exact]) == float("inf")
        assert difference([exact], [torch.tensor([3.0, float("-inf")])]) == float("inf")
    with pytest.raises(EngineError, match="shapes"):
        difference([exact.view(1, 2)], [exact])
    with pytest.raises(EngineError, match="shapes"):
        difference([], [exact])


def test_both_parts_of_complex_numbers_count() -> None:
    exact = torch.tensor([3 + 4j, 0j])
    assert difference([exact.conj()], [exact]) == pytest.approx(8 / 5)
    assert difference([exact.conj().conj()], [exact]) == 0


def test_infinities_that_are_the_same_do_not_differ() -> None:
    masked = torch.tensor([3.0, float("-inf"), 4.0])
    assert difference([masked], [masked]) == 0
    assert difference([masked + torch.tensor([0.0, 0.0, 0.05])], [masked]) == pytest.approx(0.01, rel=1e-4)
    assert difference([-masked], [masked]) == float("inf")
    with pytest.raises(EngineError, match="the model itself gives NaN"):
        difference([masked], [torch.tensor([3.0, float("nan"), 4.0])])


def test_a_mask_of_infinities_stays_one_and_the_rest_has_noise() -> None:
    mask = torch.zeros(2, 3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), float("-inf"))
    made = at_batch(mask + 0.1 * torch.randn(2, 3, 3), 4)[0]
    assert torch.equal(made.isinf(), (mask[:1] < 0).expand(4, 3, 3))
    assert not made.isnan().any()
    assert 0 < float(made[made.isfinite()].std()) < 1
