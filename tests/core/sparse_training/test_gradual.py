"""Gradual pruning in a loop of one's own, against one that prunes and masks by hand."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.core.sparse_training.gradual import Gradual, gradual
from ticketry.errors import HoldError, LayerCollapseError, MaskError, UsageError

STEPS, CUTS = 20, {"begin": "2it", "end": "14it", "frequency": "3it"}
AT = [5, 8, 11, 14]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
}


def case() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    inputs = torch.randn(STEPS, 12, 6)
    return model, [(batch, (batch.sum(1) > 0).long() + (batch[:, 0] > 1).long()) for batch in inputs]


def one_step(model, optimizer, batch, clip=1.0, masked=lambda: None) -> None:
    inputs, targets = batch
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    masked()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


def train(model, optimizer, pruning, batches):
    for batch in batches:
        one_step(model, optimizer, batch)
        pruning.step()


def masked_by(weights, mask) -> None:
    for name, kept in mask.items():
        weights[name].grad *= torch.from_numpy(kept)


def by_hand(model, optimizer, batches, density):
    """Masks, gradients, weights and state multiplied at every step; the mask by a plain sort in NumPy."""
    names = [name for name, parameter in model.named_parameters() if parameter.dim() > 1]
    weights = dict(model.named_parameters())
    mask = {name: np.ones(weights[name].shape, dtype=bool) for name in names}
    total = sum(kept.size for kept in mask.values())
    for done, batch in enumerate(batches, start=1):
        one_step(model, optimizer, batch, masked=partial(masked_by, weights, mask))
        if done in AT:
            share = density + (1 - density) * (1 - (done - 2) / 12) ** 3
            sizes = np.concatenate([np.where(mask[n], np.abs(weights[n].detach().numpy()), -1).ravel() for n in names])
            chosen = np.zeros(total, dtype=bool)
            chosen[np.argsort(-sizes, kind="stable")[: int(share * total + 0.5)]] = True
            parts = np.split(chosen, np.cumsum([mask[n].size for n in names])[:-1])
            mask = {n: part.reshape(mask[n].shape) for n, part in zip(names, parts, strict=True)}
        with torch.no_grad():
            for name in names:
                kept = torch.from_numpy(mask[name])
                weights[name] *= kept
                for value in optimizer.state[weights[name]].values():
                    if isinstance(value, torch.Tensor) and value.dim():
                        value *= kept
    return {name: torch.from_numpy(kept) for name, kept in mask.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_same_bits_as_by_hand(optimizer):
    """After each step removed weights and their state are 0; cuts are where the schedule has them."""
    model, batches = case()
    other = copy.deepcopy(model)
    mine, theirs = OPTIMIZERS[optimizer](model.parameters()), OPTIMIZERS[optimizer](other.parameters())
    cut = []
    with gradual(model, density=0.1, steps=STEPS, **CUTS) as pruning:
        before = pruning.mask
        assert before.density == 1
        for done, batch in enumerate(batches, start=1):
            one_step(model, mine, batch)
            pruning.check(mine)  # the optimiser's state too
            if pruning.step():
                assert pruning.mask.density < before.density
                cut.append(done)
            assert pruning.mask <= before
            before = pruning.mask
            pruning.check()
    assert cut == AT
    assert pruning.mask == tk.Mask(by_hand(other, theirs, batches, 0.1))
    assert pruning.mask.kept == round(0.1 * pruning.mask.total)
    assert all(not parameter._backward_hooks for parameter in model.parameters())
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_an_earlier_state_takes_a_later_mask_back():
    model, _ = case()
    pruning = gradual(model, density=0.2, steps=STEPS, **CUTS)
    dense = pruning.state_dict()
    for _ in range(6):
        pruning.step()
    assert pruning.mask.density < 1
    pruning.load_state_dict(dense)
    assert (pruning.mask.density, pruning.done) == (1, 0)
    assert all(not parameter._backward_hooks for parameter in model.parameters())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_is_told_that_it_holds_nothing_and_goes_on_from_its_state(copied):
    model, batches = case()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    pruning = gradual(model, 0.2, steps=STEPS, **CUTS)

    copied(pruning).check(optimizer)  # before the first cut there is nothing to hold
    train(model, optimizer, pruning, batches[:15])
    twin, own, other = copied((model, optimizer, pruning))
    for use in (lambda: other.step(), lambda: other.check(own), lambda: copied(other).step()):
        with pytest.raises(
            UsageError, match=r"copies hold no weights: .*copy\.load_state_dict\(copy\.state_dict\(\)\)"
        ):
            use()
    assert other.done == 15
    other.load_state_dict(other.state_dict())
    for one in ((model, optimizer, pruning), (twin, own, other)):
        train(*one, batches[15:])
        one[2].check(one[1])
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_a_layer_that_is_emptied_on_the_way_or_kept():
    model, _ = case()
    with torch.no_grad():
        model[2].weight.mul_(1e-9)
    with pytest.raises(
        LayerCollapseError, match=r"^on the way to density 0\.02: density 0\.\d+ would leave no weight in 2"
    ):
        run_through(tk.gradual(copy.deepcopy(model), 0.02, steps=STEPS, **CUTS))
    kept = run_through(tk.gradual(model, 0.02, steps=STEPS, keep_at_least=2, **CUTS))
    assert [layer.kept for layer in kept.table()][1] == 2


def run_through(pruning):
    with pruning:
        for _ in range(STEPS):
            pruning.step()
        return pruning.mask


def test_a_block_that_is_left_too_early_warns(recwarn):
    model, _ = case()
    nothing_done = "left at density 1 and not 0.2: 0 steps were made"
    with pytest.warns(UserWarning, match=nothing_done) as warned, gradual(model, density=0.2, steps=STEPS, **CUTS):
        pass
    assert warned[0].filename == __file__
    last = max(AT)
    with gradual(model, density=0.2, steps=STEPS, **CUTS) as pruning:
        for _ in range(AT[0]):
            pruning.step()
        so_far = f"{pruning.mask.density:.4g} and not 0.2: {AT[0]} steps were made of steps={STEPS}, .* step {last};"
        with pytest.warns(UserWarning, match=so_far):
            pruning.__exit__(None, None, None)
        with pytest.raises(ZeroDivisionError), pruning:  # what went wrong is told by itself
            1 / 0  # noqa: B018
        while pruning.done < last:
            pruning.step()
    assert not recwarn.list, "at the last cut the end is reached"


def test_scope_and_distribution():
    model, batches = case()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scope = tk.scope(model, spare="0")
    with tk.gradual(model, 0.3, steps=STEPS, scope=scope, distribution="uniform", **CUTS) as pruning:
        train(model, optimizer, pruning, batches)
    assert list(pruning.mask) == ["2.weight", "4.weight"]
    assert [layer.kept for layer in pruning.mask.table()] == [77, 14]  # 76.8 and 14.4 of 256 and 48
    assert model[0].weight.detach().all()


def test_blocks_leave_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 10), nn.Linear(10, 4))
    with gradual(model, density=0.3, steps=10, begin="1it", end="8it", frequency="2it", pattern="4x1") as pruning:
        for _ in range(10):
            pruning.step()
    for kept in pruning.mask.values():
        for rows in kept.split(4):
            assert torch.equal(rows.all(0), rows.any(0))
    assert pruning.mask.kept == pytest.approx(0.3 * pruning.mask.total, abs=2)
    with pytest.raises(UsageError, match="no mask of pattern 2:4 is so dense"):
        gradual(model, density=0.3, steps=10, pattern="2:4")


def test_weights_from_elsewhere_are_told():
    model, _ = case()
    with pytest.raises(HoldError), gradual(model, 0.3, steps=STEPS, **CUTS) as pruning:  # noqa: PT012
        for _ in range(5):
            pruning.step()
        nn.init.ones_(model[0].weight)


def test_wrong_states_and_words():
    model, _ = case()
    pruning = gradual(model, 0.3, steps=STEPS)
    for state in ({}, {"done": 3}):
        with pytest.raises(MaskError, match="no state of gradual pruning"):
            pruning.load_state_dict(state)
    with pytest.raises(MaskError, match="another model or scope"):
        pruning.load_state_dict({"done": 1, "mask": {"0.weight": torch.ones(2, 2, dtype=torch.bool)}})
    for wrong in ({"score": "nothing"}, {"distribution": "fair"}, {"begin": "1ep"}, {"density": 0.1, "sparsity": 0.9}):
        with pytest.raises(UsageError):
            gradual(model, **{"density": 0.3, "steps": STEPS, **wrong})
    with pytest.raises(UsageError, match="no scoring: weights are chosen by collapse, distribution"):
        gradual(model, 0.3, steps=STEPS, scoring="magnitude")
    with pytest.raises(UsageError, match="collapse is raise or keep"):
        gradual(model, 0.3, steps=STEPS, collapse="ignore")


@pytest.mark.parametrize("score", ["snip", "synflow", "inverted:snip", tk.score.snip])
def test_a_score_that_needs_data_is_refused_before_anything_is_trained(score):
    with pytest.raises(UsageError, match=r"no data for a score, and .*(snip|synflow).* needs some"):
        gradual(case()[0], 0.3, steps=STEPS, score=score)
    for fine in ("random", "shuffled:magnitude", lambda model, scope, **_: scope.parameters(model)):
        gradual(case()[0], 0.3, steps=STEPS, score=fine)


class Training:
    def __init__(self, steps: int, density: float = 0.3, **options: object) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.pruning = gradual(self.model, density, steps=steps, distribution="layerwise", **options)  # type: ignore

    def run(self, until: int) -> Training:
        while self.pruning.done < until:
            inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(self.pruning.done))
            self.optimizer.zero_grad()
            (self.model(inputs) - inputs).square().mean().backward()
            self.optimizer.step()
            self.pruning.step()
        return self

    def state(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "pruning": self.pruning}
        return {name: part.state_dict() for name, part in parts.items()}

    def load(self, state: dict[str, Any]) -> Training:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.pruning.load_state_dict(state["pruning"])
        return self


def test_a_finished_pruning_keeps_its_mask_in_a_longer_training() -> None:
    finished = Training(STEPS).run(STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left to prune, so nothing can differ
        longer = Training(2 * STEPS).load(finished.state()).run(2 * STEPS)
    assert longer.pruning.mask == finished.pruning.mask
    assert longer.pruning.mask.kept == round(0.3 * longer.pruning.mask.total)
    longer.pruning.check(longer.optimizer)
    assert not longer.pruning.describe_early_end()
    for steps in (8, 16, 17):
        assert Training(steps).load(finished.state()).pruning.mask == finished.pruning.mask


@pytest.mark.parametrize("stop", [6, 10, 14])
def test_a_longer_training_continues_along_the_schedule_of_the_state(stop: int, tmp_path: Path) -> None:
    """The truth: a training with that schedule from the start, in which nothing was interrupted."""
    part = Training(STEPS).run(stop)
    torch.save(part.state(), tmp_path / "checkpoint")
    longer = Training(2 * STEPS)
    with pytest.warns(UserWarning, match=r"cuts at steps 6 to 15.*not along the one of this training .*11 to 30 of 40"):
        longer.load(torch.load(tmp_path / "checkpoint", weights_only=True))
    longer.run(2 * STEPS)
    whole = Training(2 * STEPS, begin="5it", end="15it", frequency="1it").run(2 * STEPS)
    assert list(whole.pruning.cuts) == list(range(6, 16))  # 25 % and 75 % of 20 steps, each step between
    assert longer.pruning.mask == whole.pruning.mask
    assert all(map(torch.equal, longer.model.parameters(), whole.model.parameters()))


@pytest.mark.parametrize("stop", [6, 10])
def test_a_training_too_short_for_the_schedule_of_the_state_is_refused(stop: int) -> None:
    """Else its own last cut would be over, and the mask would stay at a density that nobody requested."""
    state = Training(STEPS).run(stop).state()
    for steps in (8, 12, 15):
        with pytest.raises(MaskError, match=rf"10 cuts at steps 6 to 15, and this training has only {steps} steps"):
            Training(steps).load(state)
    with pytest.warns(UserWarning, match="continues along that schedule"):
        shorter = Training(16).load(state).run(16)
    assert shorter.pruning.mask.kept == round(0.3 * shorter.pruning.mask.total)


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_another_final_density_is_refused(density: float) -> None:
    state = Training(STEPS).run(16).state()
    with pytest.raises(MaskError, match=rf"to density 0\.3, .*and density {density:g} is requested now"):
        Training(STEPS, density).load(state)


def test_before_the_first_cut_the_schedule_of_this_training_applies() -> None:
    """Such a state is that of a dense training."""
    state = Training(STEPS).run(5).state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps, first in ((2 * STEPS, 11), (STEPS, 6)):
            resumed = Training(steps, 0.2).load(state)
            assert min(resumed.pruning.cuts) == first
        assert resumed.run(STEPS).pruning.mask.kept == round(0.2 * resumed.pruning.mask.total)
    with pytest.raises(MaskError, match="only 15 steps"):  # its own first cut is over
        Training(15).load(state)


def older(state: dict[str, Any]) -> dict[str, Any]:
    pruning = dict(state["pruning"])
    del pruning["cuts"]
    return {**state, "pruning": pruning}


@pytest.mark.parametrize("written", [dict, older])
@pytest.mark.parametrize("stop", [3, 6, 10, 15, 18])
def test_a_state_resumes_in_a_training_of_the_same_length(stop: int, written: Callable[[Any], dict[str, Any]]) -> None:
    whole = Training(STEPS).run(STEPS)
    resumed = Training(STEPS).load(written(Training(STEPS).run(stop).state())).run(STEPS)
    assert resumed.pruning.mask == whole.pruning.mask
    assert all(map(torch.equal, resumed.model.parameters(), whole.model.parameters()))


@pytest.mark.parametrize(("stop", "steps"), [(20, 40), (10, 40), (8, 10), (7, 8)])
def test_states_without_a_schedule_are_refused_where_they_do_not_fit(stop: int, steps: int) -> None:
    state = older(Training(STEPS).run(stop).state())
    with pytest.raises(MaskError, match=rf"after {stop} steps, which gradual pruning to density 0\.3, .* of {steps}"):
        Training(steps).load(state)


def test_a_refused_state_changes_nothing() -> None:
    training = Training(8)
    before = training.pruning.state_dict()
    with pytest.raises(MaskError):
        training.pruning.load_state_dict(Training(STEPS).run(10).pruning.state_dict())
    after = training.pruning.state_dict()
    assert (after["done"], after["cuts"]) == (0, before["cuts"])
    assert training.pruning.mask.density == 1


@pytest.mark.parametrize("cuts", [[], [[3]], [[0, 0.5]], [[5, 0.5], [4, 0.3]], [[5, 1.5]], 7, {"a": 1}, [["x", "y"]]])
def test_what_is_no_schedule(cuts: object) -> None:
    state = Training(STEPS).run(10).pruning.state_dict()
    with pytest.raises(MaskError, match="cuts are no schedule"):
        Training(STEPS).pruning.load_state_dict({**state, "cuts": cuts})


def test_the_state_is_plain() -> None:
    state = tk.gradual(nn.Linear(8, 8), 0.25, steps=40).state_dict()
    assert json.loads(json.dumps(state["cuts"])) == state["cuts"]
    assert Gradual(nn.Linear(8, 8), dict(state["cuts"]), steps=40).cuts == dict(state["cuts"])
