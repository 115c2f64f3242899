from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import ticketry as tk
from ticketry.core import score
from ticketry.core.prune import prune
from ticketry.core.scope import scope
from ticketry.errors import UsageError
from ticketry_engine.support.seeds import generator


@pytest.mark.parametrize("name", ["resnet", "lstm", "transformer"])
@pytest.mark.parametrize("kind", ["magnitude", "random"])
def test_every_weight_in_scope_has_a_score_and_the_model_is_left_alone(build, name, kind):
    model = build(name).model
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    found = score.get(kind)(model, scope(model))
    assert {key: tuple(tensor.shape) for key, tensor in found.items()} == dict(scope(model).shapes)
    assert not any(tensor.requires_grad for tensor in found.values())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


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


class TestRandom:
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))

    def scores(self, seed: int) -> dict[str, torch.Tensor]:
        return score.random(self.model, scope(self.model), seed=seed)

    def test_is_that_of_seed_0_by_default_and_of_a_generator_of_its_own(self):
        """Each tensor's numbers are those of a generator whose seed is mixed from the seed, a word and its place."""
        plain = score.random(self.model, scope(self.model))
        for index, (name, values) in enumerate(plain.items()):
            drawn = torch.rand((20, 20), dtype=torch.float64, generator=generator(0, "random", index))
            assert values.dtype == torch.float64
            assert torch.equal(values, drawn)
            assert torch.equal(values, self.scores(0)[name])


def test_names_and_functions_are_found():
    assert {"magnitude", "random"} <= set(score.names())
    for name in score.names():
        assert score.get(name).__name__ == name
        assert getattr(score, name) is score.get(name)

    def mine(model, scope, *, batches=None, loss=None, seed=0):
        return {}

    assert score.get(mine) is mine


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
    """Gradients of 1e-5 squared are 0 in float16: scores are by squares of what the gradients are."""
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
