"""Divergences between outputs, against torch's own distributions; what has no class scores is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from lines import Lines
from ticketry.errors import TaskError
from ticketry.search.gating.gating import check_scores, check_task, divergence


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 12), count=st.integers(1, 9), scale=st.floats(0.01, 30))
def test_divergence_is_torch_s(seed: int, classes: int, count: int, scale: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    outputs, bare = (scale * torch.randn(count, classes, generator=draw, dtype=torch.float64) for _ in range(2))
    p, q = Categorical(logits=outputs), Categorical(logits=bare)
    assert float(divergence(outputs, bare, reverse=True)) == pytest.approx(float(kl_divergence(p, q).mean()), abs=1e-9)
    assert float(divergence(outputs, bare, reverse=False)) == pytest.approx(float(kl_divergence(q, p).mean()), abs=1e-9)
    assert float(divergence(outputs, outputs + 3, reverse=True)) == pytest.approx(0, abs=1e-9)


def test_each_place_of_a_sequence_counts() -> None:
    outputs, bare = torch.randn(4, 7, 5), torch.randn(4, 7, 5)
    flat = [x.transpose(1, 2).reshape(20, 7) for x in (outputs, bare)]
    torch.testing.assert_close(divergence(outputs, bare, reverse=True), divergence(*flat, reverse=True))


NAMED = SimpleNamespace(name="lines")


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.zeros(4, 1), torch.zeros(4, 1)),  # regression
        (torch.zeros(4), torch.zeros(4)),
        (torch.zeros(4, 3), torch.zeros(4, 3)),  # three values each
        (torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)),  # a single logit
        (torch.zeros(4, 5, 3), torch.zeros(4, 4, dtype=torch.int64)),
    ],
)
def test_no_class_scores(outputs: torch.Tensor, targets: torch.Tensor) -> None:
    with pytest.raises(TaskError, match=r"'lines' has outputs .*\(--objective loss\)"):
        check_scores(NAMED, outputs, targets)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_class_scores(shape: tuple[int, ...]) -> None:
    check_scores(NAMED, torch.zeros(4, 3, *shape), torch.zeros(4, *shape, dtype=torch.int64))  # type: ignore[arg-type]


def test_a_task_is_checked_before_anything_is_trained(lab, digits) -> None:
    with pytest.raises(TaskError, match="lines"):
        check_task(lab, Lines())
    check_task(lab, digits)
    assert lab.ledger.segments_asked == 0


def test_what_is_known_is_not_loaded_again(lab, digits, monkeypatch) -> None:
    check_task(lab, digits)
    monkeypatch.setattr(type(digits), "load", lambda self, data=None: pytest.fail("loaded again"))
    check_task(lab, digits)
