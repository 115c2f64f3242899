"""What lists say of a score, against what it does: whether it opens data, how often it differentiates, its papers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import ticketry as tk
from ticketry.core import score
from ticketry.core.scope import scope
from ticketry.core.score.registry import about
from ticketry.core.structure.channel_scores import CHANNEL_SCORES
from ticketry.errors import ScoreError, UsageError

"""arXiv numbers, which the scores' own texts name."""

FIRST_AUTHORS = {
    "crop": "Rachwan et al. 2022",
    "fisher": "Theis et al. 2018",
    "grasp": "Wang et al. 2020",
    "grasp200": "Wang et al. 2020",
    "kfac": "Martens & Grosse 2015",
    "magnitude": "Han et al. 2015",
    "random": "a control",
    "snip": "Lee et al. 2019",
    "synflow": "Tanaka et al. 2020",
    "taylor": "Molchanov et al. 2019",
}


def derivatives(monkeypatch: pytest.MonkeyPatch, work: Any) -> int:
    """Of the highest order that `work` asks autograd for."""
    orders = [0]
    plain = torch.autograd.grad

    def counted(*arguments: Any, **named: Any) -> Any:
        orders.append(2 if named.get("create_graph") else 1)
        return plain(*arguments, **named)

    with monkeypatch.context() as changed:
        changed.setattr(torch.autograd, "grad", counted)
        work()
    return max(orders)


@pytest.mark.parametrize("name", sorted(FIRST_AUTHORS))
def test_the_scores_below_0_are_those_called_signed(build, name):
    case = build("resnet")
    found = score.get(name)(case.model, scope(case.model), batches=case.batches[:2], loss=case.loss)
    assert any(bool((values < 0).any()) for values in found.values()) == about(name).signed


@pytest.mark.parametrize("name", sorted(FIRST_AUTHORS))
def test_a_score_needs_the_data_and_the_derivatives_that_lists_name(build, monkeypatch, name):
    case, facts = build("resnet"), about(name)
    known, function = scope(case.model), score.get(name)
    seen = []

    def loss(model, batch):
        seen.append(batch)
        return case.loss(model, batch)

    order = derivatives(monkeypatch, lambda: function(case.model, known, batches=case.batches[:1], loss=loss))
    assert order == facts.order
    if not seen:
        assert facts.data == "no"
        assert function(case.model, known)
        return
    with pytest.raises(UsageError, match="give batches="):
        function(case.model, known)
    nothing = [(torch.full_like(images, float("nan")), labels) for images, labels in case.batches[:1]]
    try:
        found = function(case.model, known, batches=nothing, loss=case.loss)
    except ScoreError:
        assert facts.data == "yes"
        return
    assert facts.data == "shapes"  # no value is looked at
    plain = function(case.model, known, batches=case.batches[:1], loss=case.loss)
    assert all(torch.equal(found[key], plain[key]) for key in plain)


@pytest.mark.parametrize("name", sorted(FIRST_AUTHORS))
def test_a_form_for_channels_is_one_that_there_is(name):
    forms = re.split(r", ", about(name).channels)
    assert forms == ["summed"] or all(form in CHANNEL_SCORES for form in forms)


def test_an_attribute_of_that_name_for_another_purpose_is_no_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a list of all scores would end at it."""

    def mine(model: Any, scope: Any, *, batches: Any = None, loss: Any = None, seed: int = 0) -> Any:
        return {name: weight.detach().abs() for name, weight in scope.parameters(model).items()}

    mine.about = "a text of my own"  # type: ignore[attr-defined]
    monkeypatch.setattr(score.SCORES, "_make", None)
    monkeypatch.setitem(score.SCORES._built, "magnitude", mine)
    assert about("magnitude") == score.About()
    pruning = tk.gradual(torch.nn.Linear(4, 4), 0.5, steps=10, score=mine)
    assert pruning.done == 0
