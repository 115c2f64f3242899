"""Iterated scores against loops written out."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ticketry as tk
from ticketry.budgets.request import score_finder
from ticketry.core.output_change import output_change
from ticketry.core.prune import densities, prune
from ticketry.core.scope import scope
from ticketry.errors import LayerCollapseError, MaskError, UsageError


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
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    known, batches = tk.scope(model), [(torch.randn(8, 6), torch.arange(8) % 3)]
    examples = batches[0][0]

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def require(
        wanted: dict[str, torch.Tensor], name: str | None, structure: str, inputs: tk.score.ScoreInputs
    ) -> None:
        found = score_finder(name, model, known, None, inputs, structure, examples)()
        assert all(torch.equal(found[key], values) for key, values in wanted.items()), (name, structure)

    seen, none = tk.score.ScoreInputs(batches, loss), tk.score.ScoreInputs()
    kfac, change = tk.score.kfac(model, known, batches=batches, loss=loss), output_change(model, known, examples)
    for structure in ("auto", "weights", "rows:4"):
        require(kfac, None, structure, seen)
        require(change, None, structure, none)
        with pytest.raises(UsageError, match="which magnitudes cannot be: leave the score out"):
            score_finder("magnitude", model, known, None, seen, structure, examples)()
    require(tk.score.taylor(model, known, batches=batches, loss=loss), "taylor", "auto", seen)
    for name in (None, "magnitude"):
        require(tk.score.magnitude(model, known), name, "none", seen)


class TestDensities:
    def test_exponential(self):
        found = densities(0.01, 100)
        assert len(found) == 100
        assert found[-1] == 0.01
        for step, density in enumerate(found, start=1):
            assert density == pytest.approx(0.01 ** (step / 100), rel=1e-11)

    def test_halving_is_the_published_schedule(self):
        for sparsity, first in ((0.98, 0.5), (0.9, 0.5), (0.5, 0.25), (0.4, 0.25)):
            expected = [1 - (sparsity - (sparsity - first) * 0.5**index) for index in range(6)] + [1 - sparsity]
            assert densities(round(1 - sparsity, 6), 7, "halving") == pytest.approx(expected, rel=1e-9)

    @given(st.integers(1, 1000), st.integers(1, 1000), st.integers(1, 30), st.sampled_from(["exponential", "halving"]))
    def test_they_fall_to_what_is_asked_for(self, one, other, steps, schedule):
        low, high = sorted((one / 1000, other / 1000))
        found = densities(low, steps, schedule, initial=high)
        assert len(found) == steps
        assert found[-1] == low
        assert all(later <= earlier * (1 + 1e-9) for earlier, later in zip((high, *found), found, strict=False))

    def test_from_a_mask_on(self):
        assert densities(0.1, 2, initial=0.4) == (0.2, 0.1)

    def test_refused(self):
        with pytest.raises(UsageError, match="at least once, not 0 times"):
            densities(0.1, 0)
        with pytest.raises(UsageError, match="'linear' is not known: exponential, halving"):
            densities(0.1, 3, "linear")
        with pytest.raises(UsageError, match=r"density 0\.5 is above the 0\.2"):
            densities(0.5, 3, initial=0.2)


def best_of(scores: list[Tensor], candidates: list[Tensor], count: int) -> list[Tensor]:
    flat = torch.cat([torch.where(c, s, -torch.inf).flatten() for s, c in zip(scores, candidates, strict=True)])
    order = sorted(range(len(flat)), key=lambda place: -flat[place].item())
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[order[:count]] = True
    return [part.view(s.shape) for part, s in zip(chosen.split([s.numel() for s in scores]), scores, strict=True)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(6, 9), nn.Linear(9, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(torch.tanh(self.two(torch.tanh(self.one(inputs)))))


def build_net() -> tuple[Net, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(7)
    return Net().double(), [(torch.randn(10, 6).double(), torch.randint(3, (10,))) for _ in range(2)]


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def weights_of(model: Net) -> list[nn.Parameter]:
    return [model.one.weight, model.two.weight, model.out.weight]


def pruned_copy(model: Net, masks: list[Tensor]) -> Net:
    pruned = copy.deepcopy(model)
    for weight, mask in zip(weights_of(pruned), masks, strict=True):
        weight.data *= mask
    return pruned


def mean_loss(model: Net, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    return sum(cross_entropy(model, batch) for batch in batches) / len(batches)


def sensitivity(model: Net, masks: list[Tensor], batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """|dense weight * gradient of the pruned network|: FORCE's saliency, and on kept weights Iter-SNIP's."""
    pruned = pruned_copy(model, masks)
    mean_loss(pruned, batches).backward()
    return [(d.detach() * p.grad).abs() for d, p in zip(weights_of(model), weights_of(pruned), strict=True)]


def flow_change(model: Net, masks: list[Tensor], batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """|w * Hg| of the pruned network by half the gradient of its gradient flow, all kept weights at once."""
    pruned = pruned_copy(model, masks)
    gradients = torch.autograd.grad(mean_loss(pruned, batches), weights_of(pruned), create_graph=True)
    flow = sum((gradient * mask).square().sum() for gradient, mask in zip(gradients, masks, strict=True))
    slopes = torch.autograd.grad(flow, weights_of(pruned))
    return [(d.detach() * slope / 2).abs() for d, slope in zip(weights_of(model), slopes, strict=True)]


TOTAL = 6 * 9 + 9 * 8 + 8 * 3


@pytest.mark.parametrize("regrow", [False, True], ids=["monotone", "regrow"])
@pytest.mark.parametrize("name", ["snip", "crop"])
@pytest.mark.parametrize("schedule", ["exponential", "halving"])
def test_against_the_loop_written_out(name, schedule, regrow):
    model, batches = build_net()
    saliency = {"snip": sensitivity, "crop": flow_change}[name]
    masks = [torch.ones_like(weight, dtype=torch.bool) for weight in weights_of(model)]
    everything = masks
    returned = False
    for density in densities(0.15, 6, schedule):
        count = int(density * TOTAL + 0.5)
        chosen = best_of(saliency(model, masks, batches), everything if regrow else masks, count)
        returned |= any((new & ~old).any() for new, old in zip(chosen, masks, strict=True))
        masks = chosen
    before = copy.deepcopy(model.state_dict())
    mask = prune(
        model, 0.15, score=name, iterations=6, schedule=schedule, regrow=regrow, batches=batches, loss=cross_entropy
    )
    assert [mask[f"{layer}.weight"].tolist() for layer in ("one", "two", "out")] == [m.tolist() for m in masks]
    assert returned == regrow, "the case is one in which weights do return"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_from_a_mask_on_the_network_is_what_it_leaves():
    model, batches = build_net()
    first = prune(model, 0.5, score="snip", batches=batches, loss=cross_entropy)
    given = {"score": "crop", "within": first, "batches": batches, "loss": cross_entropy}
    dense = [prune(model, 0.2, iterations=steps, **given) for steps in (1, 3)]
    first.apply_(model)
    assert dense == [prune(model, 0.2, iterations=steps, **given) for steps in (1, 3)]
    assert all(mask <= first for mask in dense)


def test_a_mask_that_has_the_density_already_is_kept_in_any_number_of_cuts():
    """22 of 221 weights are 0.0995 of them: the tenth that they were asked for as, in one cut and in several."""
    model = nn.Linear(13, 17, bias=False)
    first = prune(model, 0.1)
    assert first.kept == 22
    assert first.density < 0.1
    for cuts in (1, 2, 5):
        assert prune(model, 0.1, within=first, iterations=cuts) == first
    for cuts in (1, 2):
        with pytest.raises(MaskError, match="the mask to go on from has only 22"):
            prune(model, 0.2, within=first, iterations=cuts)


def test_a_score_of_ones_own_sees_what_is_left():
    model, _ = build_net()
    seen = []

    def mine(model, scope, *, batches=None, loss=None, seed=0):
        parameters = scope.parameters(model)
        seen.append(sum(int((parameter != 0).sum()) for parameter in parameters.values()))
        return {name: parameter.detach().abs() for name, parameter in parameters.items()}

    mask = prune(model, 0.125, score=mine, iterations=3)
    assert seen == [TOTAL, TOTAL // 2, int(TOTAL / 4 + 0.5)]
    assert mask == prune(model, 0.125), "by magnitude, in steps or at once is the same"
    with pytest.raises(UsageError, match="regrow needs a score that rates removed weights"):
        prune(model, 0.5, score=mine, iterations=3, regrow=True)


def test_a_loader_is_opened_once_and_draws_from_the_seed():
    model, batches = build_net()
    inputs, targets = batches[0]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=4, shuffle=True)
    given = {"score": "snip", "batches": loader, "loss": cross_entropy, "iterations": 3, "seed": 5}
    state = torch.get_rng_state()
    mask = prune(model, 0.2, **given)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(1)
    assert prune(model, 0.2, **given) == mask


def test_collapse_and_keep_at_least_hold_on_the_way():
    model, batches = build_net()
    with torch.no_grad():
        model.two.weight.mul_(1e-12)
    given = {"score": "snip", "batches": batches, "loss": cross_entropy, "iterations": 4}
    with pytest.raises(LayerCollapseError, match=r"^density 0\.1 would leave no weight in .*two\.weight"):
        prune(model, 0.1, **given)
    with pytest.raises(
        LayerCollapseError, match=r"^on the way to density 0\.05: density 0\.\d+ would .*two\.w"
    ) as told:
        prune(model, 0.05, **given)
    assert f"density {densities(0.05, 4)[2]:g}" in str(told.value)
    assert "keep a weight in each (keep_at_least=1)" in str(told.value)
    mask = prune(model, 0.1, keep_at_least=3, **given)
    assert int(mask["two.weight"].sum()) == 3
    assert mask.kept == 15


def test_a_computed_weight_that_a_mask_makes_no_number_is_named():
    """weight_norm divides by the norm of each row: of one that a cut on the way empties there is none."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 9)), nn.ReLU(), nn.Linear(9, 3))
    with torch.no_grad():
        model[2].weight[:, 4] = 1e-12  # what the unit makes is next to nothing
    given = {"batches": [(torch.randn(8, 6), torch.arange(8) % 3)], "loss": cross_entropy, "iterations": 3}
    with pytest.raises(MaskError, match=r"original1' makes 2 of 9 rows .* row that is removed altogether"):
        prune(model, 0.3, score="snip", **given)


class TestWholeBlocks:
    @pytest.mark.parametrize("pattern", ["4x1", "16x1", "channel"])
    def test_densities_that_hardly_fall_ask_for_no_more_than_is_left(self, pattern: str) -> None:
        """Cuts are rounded to blocks, down as well as up: a hundred of them go through, and the last one is as near."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 10))
        mask = prune(model, 0.2, pattern=pattern, iterations=100, keep_at_least=1)
        once = prune(model, 0.2, pattern=pattern, keep_at_least=1)
        largest = 30 if pattern == "channel" else int(pattern.split("x")[0])
        assert abs(mask.kept - once.kept) < 2 * largest

    def test_a_block_that_is_missing_is_an_error_still(self) -> None:
        model = nn.Linear(8, 16)
        within = prune(model, 0.5, pattern="4x1")
        assert prune(model, (within.kept + 3) / 128, pattern="4x1", within=within) == within
        with pytest.raises(MaskError, match=r"has only 64: ask for at most 0\.5"):
            prune(model, (within.kept + 4) / 128, pattern="4x1", within=within)
