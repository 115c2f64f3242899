"""Gradual pruning in a loop of one's own, against one that prunes and masks by hand."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.core.sparse_training.gradual import PruneOptions, gradual
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


@pytest.mark.parametrize("stop", [1, 6, 17])
def test_it_goes_on_from_a_checkpoint(stop, tmp_path):
    model, batches = case()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with gradual(model, density=0.2, steps=STEPS, **CUTS) as pruning:
        for batch in batches:
            one_step(model, optimizer, batch)
            pruning.step()
            if pruning.done == stop:
                parts = {"model": model, "optimizer": optimizer, "pruning": pruning}
                torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "checkpoint")
    again, _ = case()
    optimizer = OPTIMIZERS["adamw"](again.parameters())
    stored = torch.load(tmp_path / "checkpoint", weights_only=True)
    again.load_state_dict(stored["model"])
    optimizer.load_state_dict(stored["optimizer"])
    with gradual(again, density=0.2, steps=STEPS, **CUTS) as second:
        second.load_state_dict(stored["pruning"])
        for batch in batches[stop:]:
            one_step(again, optimizer, batch)
            second.step()
    assert second.mask == pruning.mask
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))


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
    """Or its model would train as a dense one does to the next cut, or to the end behind the last."""
    model, batches = case()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    pruning = gradual(model, 0.2, steps=STEPS, **CUTS)

    def train(model, optimizer, pruning, batches):
        for batch in batches:
            one_step(model, optimizer, batch)
            pruning.step()

    train(model, optimizer, copied(pruning), [])  # before the first cut there is nothing to hold
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
    assert {"collapse", "keep_at_least"} <= PruneOptions.__annotations__.keys(), "what a type checker lets through"


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
        for batch in batches:
            one_step(model, optimizer, batch)
            pruning.step()
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


@pytest.mark.parametrize("score", ["snip", "kfac", "synflow", "inverted:snip", tk.score.snip])
def test_a_score_that_needs_data_is_refused_before_anything_is_trained(score):
    """And not at the first cut, a quarter of the training later."""
    with pytest.raises(UsageError, match=r"no data for a score, and .*(snip|kfac|synflow).* needs some"):
        gradual(case()[0], 0.3, steps=STEPS, score=score)


@pytest.mark.parametrize("score", ["random", "shuffled:magnitude", lambda model, scope, **_: scope.parameters(model)])
def test_a_score_without_data_is_taken(score):
    gradual(case()[0], 0.3, steps=STEPS, score=score)
