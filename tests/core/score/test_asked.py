"""What a score of one's own gives back is looked at before a mask is made of it."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from ticketry.core import score as scores
from ticketry.core.prune import prune
from ticketry.core.scope import scope
from ticketry.core.score.protocol import evaluate_partial_score
from ticketry.core.structure import channels
from ticketry.errors import ScoreError, UsageError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))


def magnitudes(model, chosen):
    return {name: weight.detach().abs() for name, weight in chosen.parameters(model).items()}


def gives(change):
    """A score called `mine`, of magnitudes changed."""

    def mine(model, scope, *, batches=None, loss=None, seed=0):
        return change(magnitudes(model, scope))

    return mine


def of_each(change):
    return gives(lambda found: {name: change(values) for name, values in found.items()})


def exits(model, scope, *, batches=None, loss=None, seed=0):
    raise SystemExit(3)


WRONG = {
    "no mapping": (gives(lambda found: None), "gives nothing, and a score gives a mapping"),
    "a list": (gives(lambda found: list(found.values())), "gives a list, and a score gives a mapping"),
    "sums over rows": (of_each(lambda v: v.sum(0)), r"of shape \(3, 3, 3\) for '0.weight', .* \(4, 3, 3, 3\)"),
    "the first layer left out": (gives(lambda found: {"4.weight": found["4.weight"]}), "gives nothing for '0.weight'"),
    "more than the scope": (gives(lambda found: {**found, "4.bias": torch.zeros(10)}), "'4.bias', not in scope"),
    "lists": (of_each(lambda v: v.tolist()), "gives a list for '0.weight'"),
    "arrays": (of_each(lambda v: v.numpy()), "gives a ndarray for '0.weight', and not a tensor: use torch.as_tensor"),
    "complex": (of_each(lambda v: v * 1j), "gives complex numbers for '0.weight'"),
    "NaN": (of_each(lambda v: v / 0 * 0), "gives NaN for '0.weight'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_score_is_refused_by_the_scores_name(name):
    wrong, message = WRONG[name]
    told = f"the score 'mine' of {__name__} .*{message}"
    with pytest.raises(ScoreError, match=told):
        prune(network(), 0.5, score=wrong)
    with pytest.raises(ScoreError, match=told):
        prune(network(), flops=0.5, example_inputs=torch.zeros(1, 3, 5, 5), score=wrong)
    with pytest.raises(ScoreError, match=told):
        prune(network(), 0.5, score=wrong, iterations=2)
    with pytest.raises(ScoreError, match=told):
        prune(network(), 0.5, score=scores.inverted(partial(wrong)))
    with pytest.raises(ScoreError, match=told):
        prune(network(), 0.5, score=scores.shuffled(wrong))


def test_scores_of_channels_are_looked_at_too():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(ScoreError, match=r"the score 'mine' of .* of shape"):
        channels(model, torch.zeros(1, 8), 0.5, score=of_each(lambda v: v.sum(0)))


def test_a_score_that_ends_the_process_is_told_of():
    with pytest.raises(ScoreError, match=r"the score 'exits' of .* ends the process \(SystemExit: 3\)"):
        prune(network(), 0.5, score=exits)


def test_the_order_of_the_answer_decides_no_tie():
    backwards = gives(lambda found: {name: torch.ones_like(values) for name, values in reversed(found.items())})
    kept = prune(network(), 0.5, score=backwards)
    assert list(kept) == ["0.weight", "4.weight"]
    assert kept["0.weight"].all()  # the earlier of equals: 108 of 234
    assert kept["4.weight"].sum() == 126


def test_scores_in_the_graph_whole_numbers_and_infinite_ones_are_scores():
    model = network()
    weights = {name: weight.detach() for name, weight in scope(model).parameters(model).items()}

    def live(model, scope, *, batches=None, loss=None, seed=0):
        return {name: weight.abs() for name, weight in scope.parameters(model).items()}

    assert prune(model, 0.5, score=live) == prune(model, 0.5)
    assert prune(model, 0.5, score=of_each(lambda v: (v * 2**20).long())).kept == round(0.5 * 468)
    spare_the_eighth = of_each(lambda v: v.masked_fill(torch.arange(v.numel()).view(v.shape) == 7, math.inf))
    spared = prune(model, 0.3, score=spare_the_eighth)
    assert all(spared[name].flatten()[7] for name in weights)


def test_a_score_of_channels_may_be_of_norms_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    chosen = scope(model)
    factors = {"1.weight": torch.tensor([1.0, 2.0])}
    found = evaluate_partial_score(lambda *_, **__: factors, model, chosen)
    assert found.keys() == factors.keys()
    assert torch.equal(found["1.weight"], factors["1.weight"])
    for wrong, said in (({}, "an empty mapping"), ({"2.weight": factors["1.weight"]}, "no such parameters")):
        with pytest.raises(ScoreError, match=said):
            evaluate_partial_score(lambda *_, found=wrong, **__: found, model, chosen)
    with pytest.raises(ScoreError, match=r"shape \(3,\) for '1.weight'"):
        evaluate_partial_score(lambda *_, **__: {"1.weight": torch.ones(3)}, model, chosen)


class Magnitude:
    def __call__(self, model, scope, *, batches=None, loss=None, seed=0):
        return magnitudes(model, scope)


def without_seed(model, scope, *, batches=None, loss=None):
    return magnitudes(model, scope)


def only_by_place(model, scope, batches, loss, seed, /):
    return magnitudes(model, scope)


def test_a_class_in_place_of_its_object_is_refused():
    said = r"the class Magnitude, and a score is .* such as Magnitude\(\)"
    with pytest.raises(UsageError, match=f"'Magnitude' of {__name__} cannot be used: .*{said}"):
        prune(network(), 0.5, score=Magnitude)
    with pytest.raises(UsageError, match=f"score '{__name__}:Magnitude' is not known: .*{said}"):
        scores.get(f"{__name__}:Magnitude")
    assert prune(network(), 0.5, score=Magnitude()) == prune(network(), 0.5)


@pytest.mark.parametrize("wrong", [without_seed, only_by_place])
def test_a_score_that_takes_other_arguments_is_refused_before_it_is_called(wrong):
    said = r"it takes \(model, scope.* and is called as score\(model, scope, batches=None, loss=None, seed=0\)"
    for asked_for in (wrong, f"{__name__}:{wrong.__name__}"):
        with pytest.raises(UsageError, match=said):
            scores.get(asked_for)


def test_whatever_takes_a_scores_arguments_may_be_one():
    bound = partial(scores.magnitude, seed=1)
    for one in (Magnitude(), lambda model, scope, **_: None, bound, scores.inverted("snip")):
        assert scores.get(one) is one
    assert scores.get(max) is max  # whose arguments nobody knows
