from __future__ import annotations

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.budgets.request import score_finder
from ticketry.core.output_change import output_change
from ticketry.core.prune import prune
from ticketry.core.scope import scope
from ticketry.errors import UsageError


@pytest.mark.parametrize("name", ["resnet", "lstm", "transformer"])
def test_the_largest_weights_are_kept(build, name):
    model = build(name).model
    mask = prune(model, 0.5)
    parameters = scope(model).parameters(model)
    kept = torch.cat([parameters[key].detach()[mask[key]].abs() for key in mask])
    removed = torch.cat([parameters[key].detach()[~mask[key]].abs() for key in mask])
    assert kept.min() >= removed.max()
    assert mask.kept == (scope(model).total + 1) // 2
    assert prune(model, sparsity=0.5) == mask


def test_a_score_by_name_or_function(build):
    model = build("resnet").model

    def smallest(model, scope, *, batches=None, loss=None, seed=0):
        return {name: -parameter.detach().abs() for name, parameter in scope.parameters(model).items()}

    assert prune(model, 0.3, score=smallest) == ~prune(model, 0.7)
    assert prune(model, 0.5, score="random", seed=1) == prune(model, 0.5, score="random", seed=1)
    assert prune(model, 0.5, score="random", seed=1) != prune(model, 0.5, score="random", seed=2)
    with pytest.raises(UsageError, match="'size' is not known"):
        prune(model, 0.5, score="size")


def test_a_function_gets_what_it_needs(build):
    case = build("resnet")
    seen = {}

    def spy(model, scope, *, batches=None, loss=None, seed=0):
        seen.update(model=model, batches=batches, loss=loss, seed=seed)
        return {name: torch.rand(shape) for name, shape in scope.shapes.items()}

    prune(case.model, 0.5, score=spy, batches=case.batches, loss=case.loss, seed=9)
    assert seen == {"model": case.model, "batches": case.batches, "loss": case.loss, "seed": 9}


def test_the_scope_is_the_callers_or_that_of_within(build):
    model = build("resnet").model
    spared = scope(model, spare=("fc",))
    first = prune(model, 0.5, scope=spared)
    assert set(first) == set(spared)
    second = prune(model, 0.25, within=first)
    assert set(second) == set(spared)
    assert second <= first
    assert second.kept == (2 * 25 * spared.total + 100) // 200


def test_without_a_budget_every_way_to_say_one_is_named():
    with pytest.raises(UsageError) as told:
        prune(nn.Linear(4, 2))
    assert all(f"{name}=" in str(told.value) for name in ("density", "sparsity", "flops", "time", "bytes"))
    assert prune(nn.Linear(4, 2), pattern="2:4").density == 0.5, "N:M says it"


@pytest.mark.parametrize("given", [{"batches": []}, {"loss": nn.functional.mse_loss}], ids=["batches", "loss"])
def test_data_for_no_score_is_refused_rather_than_not_looked_at(given):
    model = nn.Linear(4, 2)
    with pytest.raises(UsageError, match="without a score, magnitudes decide"):
        prune(model, 0.5, **given)
    assert prune(model, 0.5, score="magnitude", **given) == prune(model, 0.5), (
        "a score that is named may be one of many"
    )


def test_options_reach_allocate(build):
    model = build("resnet").model
    assert [round(row.density, 1) for row in prune(model, 0.5, distribution="uniform").table()] == [0.5] * 7
    half = prune(model, 0.5, half_rate=("fc.weight",))
    assert int(half["fc.weight"].sum()) == 30
    assert prune(model, 0.5, half_rate=("fc",)) == half
    assert all(row.kept for row in prune(model, 0.01, collapse="keep").table())
    assert all(row.kept >= 9 for row in prune(model, 0.1, keep_at_least=9).table())


def test_the_default_score_of_blocks_is_one_that_can_be_added_up() -> None:
    """It is kfac with batches, and the change of the outputs without."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    known, batches = tk.scope(model), [(torch.randn(8, 6), torch.arange(8) % 3)]
    examples = batches[0][0]

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def found(name: str | None, structure: str, inputs: tk.score.ScoreInputs) -> dict[str, torch.Tensor]:
        return score_finder(name, model, known, None, inputs, structure, examples)()

    seen, none = tk.score.ScoreInputs(batches, loss), tk.score.ScoreInputs()
    kfac = tk.score.kfac(model, known, batches=batches, loss=loss)
    for structure in ("auto", "weights", "rows:4"):
        given = found(None, structure, seen)
        assert all(torch.equal(given[name], values) for name, values in kfac.items())
        change = found(None, structure, none)
        assert all(torch.equal(change[name], values) for name, values in output_change(model, known, examples).items())
        with pytest.raises(UsageError, match="which magnitudes cannot be: leave the score out"):
            found("magnitude", structure, seen)
    plain = found(None, "none", seen)
    assert all(torch.equal(plain[key], values) for key, values in tk.score.magnitude(model, known).items())
    for name, structure in (("taylor", "auto"), ("magnitude", "none")):
        given = found(name, structure, seen)
        assert given is not None
        plain = tk.score.get(name)(model, known, batches=batches, loss=loss)
        assert all(torch.equal(given[key], values) for key, values in plain.items())
