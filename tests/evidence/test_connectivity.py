"""Barriers against slow loops written from the definition, and against what is known of convex and permuted nets."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ticketry import search
from ticketry.errors import UsageError
from ticketry.evidence.connectivity import (
    barrier,
    instability,
    interpolate_states,
    metric_to_error,
    stability,
    train_two_data_orders,
)
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Found, Seeds
from ticketry.lab.training.data_loading import DataOrder
from ticketry.lab.training.segment import Result
from ticketry.records.metric import Metric
from ticketry.tasks import catalogue
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Classification, Split, Splits
from ticketry_engine.support.seeds import mix_seeds


def blobs(count: int, seed: int, shape: tuple[int, ...]) -> Split:
    """Three classes of noisy patterns."""
    patterns = torch.randn(3, *shape, generator=torch.Generator().manual_seed(99))
    draw = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (count,), generator=draw)
    return Split(patterns[targets] + 2 * torch.randn(count, *shape, generator=draw), targets)


class Logistic(Classification):
    """Logistic regression, judged by its cross entropy: convex in the weights."""

    name = "logistic"
    recipe = Recipe(length="30it", batch=20, optimizer="sgd", lr=0.1)
    metric = Metric("loss", "", higher_is_better=False)
    shape: tuple[int, ...] = (6,)

    def key(self) -> Mapping[str, object]:
        return {"name": self.name}

    def build(self) -> nn.Module:
        return nn.Linear(6, 3)

    def load(self, data: Path | None = None) -> Splits:
        return Splits(*(blobs(count, seed, self.shape) for seed, count in enumerate((110, 40, 50))))


class Normed(Logistic):
    """A small convolutional network with two batch norms, and dropout that must not act."""

    name = "normed"
    metric = Metric("accuracy", "%")
    shape = (1, 6, 6)

    def build(self) -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)),
            *(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, momentum=0.3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)),
        )


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("barriers") / "store", device="cpu", precision="fp32") as found:
        yield found


def two(lab: Lab, task: Classification, recipe: Recipe | None = None) -> tuple[Result, Result]:
    """Networks of two initialisations and data orders."""
    one, other = (lab.train(lab.segment(task, start=seed, order_seed=seed, recipe=recipe)) for seed in (1, 2))
    return one, other


def test_a_convex_loss_has_no_barrier_above_the_chord(lab):
    task = Logistic()
    one, other = two(lab, task)
    found = barrier(lab, task, one, other, points=21)
    first, last = one.metrics["test"]["loss"], other.metrics["test"]["loss"]
    assert found.errors[::20] == pytest.approx((first, last), abs=1e-6)
    assert found.height == pytest.approx(abs(first - last) / 2, abs=1e-6)
    for alpha, error in zip(found.alphas, found.errors, strict=True):
        assert error <= (1 - alpha) * first + alpha * last + 1e-6
    slopes = [later - earlier for earlier, later in pairwise(found.errors)]
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(slopes))


def permuted(state: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """The same function: LeNet's 300 hidden units in another order."""
    order = torch.randperm(300, generator=torch.Generator().manual_seed(seed))
    moved = {"fc1.weight": state["fc1.weight"][order], "fc1.bias": state["fc1.bias"][order]}
    return {**state, **moved, "fc2.weight": state["fc2.weight"][:, order]}


@pytest.mark.parametrize("split", ["train", "test"])
def test_permuted_units_make_a_barrier_as_a_slow_loop_finds_it(lab, split):
    task = catalogue.get("digits")
    one = lab.train(lab.segment(task, start=1, recipe=task.recipe.changed(length="60it")))
    state = lab.state(one)
    turned = permuted(state, 5)
    found = barrier(lab, task, one, replace(one, model=lab.store.put_tensors(turned)), points=7, split=split)

    examples = getattr(task.load(None), split)
    inputs = task.prepare(examples.inputs).flatten(1).double().numpy()
    errors = []
    for index in range(7):
        w = {n: (1 - index / 6) * state[n].double().numpy() + index / 6 * turned[n].double().numpy() for n in state}
        hidden = np.maximum(inputs @ w["fc1.weight"].T + w["fc1.bias"], 0)
        hidden = np.maximum(hidden @ w["fc2.weight"].T + w["fc2.bias"], 0)
        answers = (hidden @ w["fc3.weight"].T + w["fc3.bias"]).argmax(1)
        errors.append(100 * float((answers != examples.targets.numpy()).mean()))
    assert found.errors == pytest.approx(errors, abs=1e-9)
    assert found.alphas == pytest.approx([index / 6 for index in range(7)])
    assert found.errors[0] == found.errors[-1]
    assert found.height == pytest.approx(max(errors) - (errors[0] + errors[-1]) / 2)
    assert found.height > 2
    assert (found.split, found.recalibrated) == (split, 0)


def test_interpolation_keeps_ends_zeros_and_whole_numbers():
    one = {"w": torch.tensor([0.1, 0.0, 3.0]), "steps": torch.tensor(7), "used": torch.tensor(True)}
    other = {"w": torch.tensor([0.7, 0.0, -1.0]), "steps": torch.tensor(90), "used": torch.tensor(False)}
    assert torch.equal(interpolate_states(one, other, 0, 10)["w"], one["w"])
    assert torch.equal(interpolate_states(one, other, 10, 10)["w"], other["w"])
    middle = interpolate_states(one, other, 1, 4)
    assert middle["w"].dtype == torch.float32
    assert middle["w"].tolist() == pytest.approx([0.25, 0.0, 2.0])
    assert (int(middle["steps"]), bool(middle["used"])) == (7, True)


@pytest.mark.parametrize(
    ("metric", "value", "error"),
    [
        (Metric("accuracy", "%"), 97.5, 2.5),
        (Metric("perplexity", "", higher_is_better=False), 12.0, 12.0),
        (Metric("error", "%", higher_is_better=False), 3.0, 3.0),
        (Metric("return", ""), 450.0, -450.0),
        (Metric("loss", "", higher_is_better=False), float("nan"), float("inf")),
    ],
)
def test_an_error_is_lower_when_better(metric, value, error):
    assert metric_to_error(metric, value) == error


def normed_by_hand(state, splits, indices) -> torch.Tensor:
    """Predictions of `Normed` on the test split, its statistics being averages over the batches of `indices`."""

    def convolved(x, layer):
        return F.conv2d(x, state[f"{layer}.weight"], state[f"{layer}.bias"])

    def scaled(x, layer, mean, variance):
        shape = (1, -1, 1, 1)
        normal = (x - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
        return (normal * state[f"{layer}.weight"].view(shape) + state[f"{layer}.bias"].view(shape)).relu()

    kept = {1: [], 5: []}
    for index in indices:
        x = splits.train.inputs[index]
        for conv, norm in ((0, 1), (4, 5)):
            x = convolved(x, conv)
            flat = x.transpose(0, 1).flatten(1)
            kept[norm].append((flat.mean(1), flat.var(1, unbiased=True)))
            x = scaled(x, norm, flat.mean(1), flat.var(1, unbiased=False))
    x = splits.test.inputs
    for conv, norm in ((0, 1), (4, 5)):
        mean, variance = (torch.stack(parts).mean(0) for parts in zip(*kept[norm], strict=True))
        x = scaled(convolved(x, conv), norm, mean, variance)
    return F.linear(x.flatten(1), state["8.weight"], state["8.bias"])


class NormedLoss(Normed):
    """Judged by its loss, which shows differences that accuracy hides."""

    name = "normed-loss"
    metric = Metric("loss", "", higher_is_better=False)


@pytest.mark.parametrize("batches", [1, 8])
def test_recalibration_is_the_average_over_batches_at_every_alpha(lab, batches):
    """8 batches of 20 go beyond the 110 examples of an epoch."""
    task = NormedLoss()
    one, other = two(lab, task)
    found = barrier(lab, task, one, other, points=4, recalibrate=batches)
    states, splits = (lab.state(one), lab.state(other)), task.load()
    order = DataOrder(mix_seeds("recalibrate"), 110, 20)
    indices = [order.batch(step) for step in range(batches)]
    wanted = []
    for index in range(4):
        outputs = normed_by_hand(interpolate_states(*states, index, 3), splits, indices)
        wanted.append(float(F.cross_entropy(outputs, splits.test.targets)))
    assert found.errors == pytest.approx(wanted, rel=1e-5)
    assert found.recalibrated == batches
    plain = barrier(lab, task, one, other, points=4)
    assert plain.recalibrated == 0
    assert all(abs(a - b) > 1e-4 for a, b in zip(plain.errors, found.errors, strict=True))


def test_a_barrier_is_computed_once(lab, monkeypatch):
    task = NormedLoss()
    one, other = two(lab, task)
    calls = []
    module = sys.modules["ticketry.evidence.connectivity"]
    plain = module.evaluate
    monkeypatch.setattr(module, "evaluate", lambda *given: calls.append(1) or plain(*given))
    variants = [{"points": 5}, {"points": 6}, {"points": 5, "split": "validation"}, {"points": 5, "recalibrate": 2}]
    first = [barrier(lab, task, one, other, **settings) for settings in variants]
    assert len(calls) == 21
    assert len({found.errors for found in first}) == len(variants)
    monkeypatch.setattr(NormedLoss, "load", lambda *_: pytest.fail("data loaded again"))
    with Lab(lab.store.paths.root, device="cpu", precision="fp32") as again:
        assert [barrier(again, task, one, other, **settings) for settings in variants] == first
    assert len(calls) == 21


def test_bad_settings_are_refused_before_training(lab):
    task = Logistic()
    one, other = two(lab, task)
    found = Found(0, None, one, one, "continue", one)
    asked = lab.ledger.segments_asked
    for settings, said in (
        ({"points": 2}, "at least 3"),
        ({"split": "x"}, "train"),
        ({"recalibrate": -1}, "at least 0"),
    ):
        with pytest.raises(UsageError, match=said):
            barrier(lab, task, one, other, **settings)
        with pytest.raises(UsageError, match=said):
            instability(lab, task, task.recipe, found, Seeds(1, 1, 1), **settings)
    assert lab.ledger.segments_asked == asked


def test_networks_of_two_tasks_have_no_line_between_them(lab):
    one, other = two(lab, Logistic())[0], two(lab, Normed())[0]
    for task in (Logistic(), Normed()):
        with pytest.raises(UsageError, match=r"trained on '(logistic|normed)'"):
            barrier(lab, task, one, other)


def test_instability_is_the_barrier_between_children_and_trains_them_once(tmp_path):
    seeds = Seeds.of(4)
    task = catalogue.get("digits")
    recipe = task.recipe.changed(length="16it")
    with Lab(tmp_path / "store", device="cpu") as lab:
        chosen = search.iterative.Settings(rewind="6it", densities=(0.2,))
        ((dense, ticket),) = search.iterative(lab, task, chosen, recipe=recipe, seeds=seeds)
        for found, control in (*((ticket, name) for name in (None, "random_reinit", "shuffled")), (dense, None)):
            before = lab.ledger.segments_trained
            measured = instability(lab, task, recipe, found, seeds, control=control, points=5, split="validation")
            trained = lab.ledger.segments_trained
            assert trained - before == {None: 1, "random_reinit": 3}.get(control, 2)
            pair = train_two_data_orders(lab, task, recipe, found, seeds, control=control)
            assert measured == barrier(lab, task, *pair, points=5, split="validation")
            ends = [100 - child.metrics["validation"]["accuracy"] for child in pair]
            assert measured.errors[::4] == pytest.approx(ends, abs=1e-5)
            if found is ticket and control != "random_reinit":
                stability(lab, task, recipe, ticket, seeds, control=control)
            assert lab.ledger.segments_trained == trained
