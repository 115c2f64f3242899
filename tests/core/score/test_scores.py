"""What lists say of a score, against what it does: whether it opens data, how often it differentiates, its papers."""

from __future__ import annotations

import re
import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import ticketry as tk
from ticketry.core import score
from ticketry.core.prune import prune
from ticketry.core.scope import scope
from ticketry.core.score.registry import about
from ticketry.core.structure.channel_scores import CHANNEL_SCORES
from ticketry.errors import ScoreError, UsageError
from ticketry_engine.support.seeds import generator


def test_magnitude_is_no_view_of_the_weights():
    model = nn.Linear(2, 2)
    score.magnitude(model, scope(model))["weight"].zero_()
    assert model.weight.abs().sum() > 0


def test_magnitude_of_a_computed_weight_is_of_what_the_layer_uses():
    """w = g v / |v|, row by row, by hand: g of 6 and 10, rows of v of length 3 and 5."""
    model = parametrizations.weight_norm(nn.Linear(2, 2))
    with torch.no_grad():
        model.parametrizations.weight.original0.copy_(torch.tensor([[6.0], [-10.0]]))
        model.parametrizations.weight.original1.copy_(torch.tensor([[0.0, 3.0], [-3.0, 4.0]]))
    found = score.magnitude(model, scope(model))
    torch.testing.assert_close(found, {"parametrizations.weight.original1": torch.tensor([[0.0, 6.0], [6.0, 8.0]])})


def test_magnitude_of_a_parameter_of_another_shape_than_its_weight_is_its_own():
    """The lengths g of weight_norm, which are in scope only if they are asked for."""
    model = parametrizations.weight_norm(nn.Linear(2, 2))
    lengths = "parametrizations.weight.original0"
    with torch.no_grad():
        model.get_parameter(lengths).copy_(torch.tensor([[6.0], [-10.0]]))
    assert score.magnitude(model, scope(model, include=[lengths]))[lengths].tolist() == [[6.0], [10.0]]


def test_random_is_that_of_a_generator_of_its_own():
    """Each tensor's numbers are those of a generator whose seed is mixed from the seed, a word and its place."""
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    for seed, given in ((0, {}), (3, {"seed": 3})):
        for index, values in enumerate(score.random(model, scope(model), **given).values()):
            drawn = torch.rand((20, 20), dtype=torch.float64, generator=generator(seed, "random", index))
            torch.testing.assert_close(values, drawn, rtol=0, atol=0)


def test_names_and_functions_are_found():
    for name in score.names():
        assert score.get(name).__name__ == name
        assert getattr(score, name) is score.get(name)


def test_a_score_of_ones_own_is_named_by_its_place(tmp_path, monkeypatch):
    (tmp_path / "scores_of_mine.py").write_text(
        "from ticketry.core.score import About, described\n\n"
        "@described(About(paper='nobody', data='no'))\n"
        "def signed(model, scope, *, batches=None, loss=None, seed=0):\n"
        "    return {name: p.detach() for name, p in scope.parameters(model).items()}\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-2.0, 1.0], [3.0, -4.0]]))
    assert prune(model, 0.5, score="scores_of_mine:signed")["weight"].tolist() == [[False, True], [True, False]]
    kept = prune(model, 0.5, score="inverted:scores_of_mine:signed")
    assert kept["weight"].tolist() == [[True, False], [False, True]]
    assert score.about("shuffled:scores_of_mine:signed").paper == "nobody"
    assert score.source_of("magnitude") == score.source_of("inverted:snip") == score.source_of("l1") == ""
    assert len(score.source_of("scores_of_mine:signed")) == 64
    assert score.source_of("inverted:scores_of_mine:signed") == score.source_of("scores_of_mine:signed")
    before = score.source_of("scores_of_mine:signed")
    with (tmp_path / "scores_of_mine.py").open("a") as file:
        file.write("# changed\n")
    del sys.modules["scores_of_mine"]  # as in another process: what is loaded stays what it is
    assert score.source_of("scores_of_mine:signed") != before
    for wrong in ("scores_of_mine:number", "scores_of_mine:absent", "no_such_module:signed"):
        with pytest.raises(UsageError, match=rf"^score '{wrong}' is not known"):
            score.get(wrong)


def test_half_precision_loses_nothing_in_squares():
    model = nn.Linear(2, 1, bias=False).half()
    model.weight.data.fill_(0.5)
    batches = [torch.tensor([[1e-5, 2e-5]], dtype=torch.float16)]
    found = tk.score.fisher(model, tk.scope(model), batches=batches, loss=lambda model, batch: model(batch).sum())
    wanted = 0.5**2 / 2 * batches[0].double().square()
    torch.testing.assert_close(found["weight"].double(), wanted, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["snip", "taylor", "fisher", "grasp", "crop"])
def test_sparse_gradients_of_an_embedding_score_as_dense_ones(kind):
    batches = [(torch.tensor([[0, 3], [3, 5]]), torch.tensor([0, 1])), (torch.tensor([[2, 0]]), torch.tensor([1]))]

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(7, 4, sparse=sparse), nn.Flatten(), nn.Tanh(), nn.Linear(8, 2))
        found.append(score.get(kind)(model, scope(model, embeddings=True), batches=batches, loss=loss))
    dense, sparse = found
    assert dense["0.weight"][[0, 2, 3, 5]].any()
    assert not sparse["0.weight"][[1, 4, 6]].any(), "rows that no batch has"
    torch.testing.assert_close(sparse, dense)


def test_inverted_keeps_what_the_score_removes(build):
    case = build("resnet")
    given = {"batches": case.batches, "loss": case.loss}
    best = prune(case.model, 0.3, score="snip", **given)
    assert prune(case.model, 0.7, score="inverted:snip", **given) == ~best
    assert prune(case.model, 0.7, score=score.inverted("snip"), **given) == ~best
    assert prune(case.model, 0.7, score=score.inverted(score.snip), **given) == ~best
    assert prune(case.model, 0.3, score="inverted:inverted:snip", **given) == best


def test_inverted_takes_scores_of_any_type():
    model = nn.Linear(2, 2)

    def of_bits(model, scope, *, batches=None, loss=None, seed=0):
        return {"weight": torch.tensor([[True, False], [False, True]])}

    assert prune(model, 0.5, score=score.inverted(of_bits))["weight"].tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("distribution", ["global", "erk"])
def test_shuffled_keeps_each_layers_count_and_no_more(distribution):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 60), nn.Linear(60, 60), nn.Linear(60, 20))
    given = {"distribution": distribution, "collapse": "keep"}
    mask, control = (prune(model, 0.2, score=name, **given) for name in ("magnitude", "shuffled:magnitude"))
    assert [row.kept for row in mask.table()] == [row.kept for row in control.table()]
    for name in mask:  # by chance alone: kept * density, within five standard deviations of a hypergeometric number
        kept, size = int(mask[name].sum()), mask[name].numel()
        share = kept / size
        deviation = (size * share**2 * (1 - share) ** 2) ** 0.5
        assert abs(int((mask[name] & control[name]).sum()) - size * share**2) < 5 * deviation
    assert not torch.equal(control["0.weight"], control["1.weight"])
    assert prune(model, 0.2, score="shuffled:magnitude", seed=1, **given) != control
    assert prune(model, 0.2, score="shuffled:magnitude", **given) == control


def test_a_control_hands_its_seed_on_and_keeps_the_names_of_its_score():
    model = nn.Linear(30, 20)
    for seed in (0, 3):
        plain = score.random(model, scope(model), seed=seed)["weight"].flatten().sort().values
        found = score.get("shuffled:random")(model, scope(model), seed=seed)["weight"]
        assert torch.equal(found.flatten().sort().values, plain)
        again = score.get("shuffled:random")(model, scope(model), **({"seed": seed} if seed else {}))["weight"]
        assert torch.equal(found, again)
    assert score.shuffled("snip").__name__ == "shuffled:snip"


def test_a_control_takes_the_options_of_its_score(build):
    case = build("resnet")
    known = scope(case.model)
    given = {"batches": case.batches, "loss": case.loss}
    running = score.snip(case.model, known, norms="running", **given)
    for control in (score.inverted("snip"), score.inverted(partial(score.snip, norms="running"))):
        options = given if "partial" in control.__name__ else given | {"norms": "running"}
        found = control(case.model, known, **options)
        assert all(torch.equal(found[key], -running[key]) for key in running)


@pytest.mark.parametrize(
    "name", ["inverted:", "inverted:snap", "upside-down:snip", "inverted", "_gradients", "inverted:_measure"]
)
def test_an_unknown_name_is_refused(name):
    with pytest.raises(UsageError, match=r"is not known: .*snip.*; or a control of one, such as inverted:magnitude"):
        score.get(name)


NAMES = ("crop", "fisher", "grasp", "grasp200", "kfac", "magnitude", "random", "snip", "synflow", "taylor")


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


@pytest.mark.parametrize("name", NAMES)
def test_the_scores_below_0_are_those_called_signed(build, name):
    case = build("resnet")
    found = score.get(name)(case.model, scope(case.model), batches=case.batches[:2], loss=case.loss)
    assert any(bool((values < 0).any()) for values in found.values()) == about(name).signed


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", NAMES)
def test_a_form_for_channels_is_one_that_there_is(name):
    forms = re.split(r", ", about(name).channels)
    assert forms == ["summed"] or all(form in CHANNEL_SCORES for form in forms)


def test_an_attribute_of_that_name_for_another_purpose_is_no_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(model: Any, scope: Any, *, batches: Any = None, loss: Any = None, seed: int = 0) -> Any:
        return {name: weight.detach().abs() for name, weight in scope.parameters(model).items()}

    mine.about = "a text of my own"  # type: ignore[attr-defined]
    monkeypatch.setattr(score.SCORES, "_make", None)
    monkeypatch.setitem(score.SCORES._built, "magnitude", mine)
    assert about("magnitude") == score.About()
    pruning = tk.gradual(torch.nn.Linear(4, 4), 0.5, steps=10, score=mine)
    assert pruning.done == 0
