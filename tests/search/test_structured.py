"""Searches that choose whole channels and train on in a smaller network: bare PyTorch, chains."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import ticketry as tk
from samples import sample
from search.bare import BATCH, SEED, Training
from ticketry.core.structure import channels, rebuild, shrink_optimizer, shrink_plan
from ticketry.lab.search_result import trained_steps
from ticketry_engine.support.seeds import mix_seeds

TOTAL = 24
SGD = tk.Recipe(
    length=f"{TOTAL}it", batch=BATCH, optimizer="sgd", lr=0.05, momentum=0.9, weight_decay=1e-3, schedule="cosine"
)
ADAM = SGD.changed(optimizer="adam", lr=2e-3, clip=1.0)
FILTERS = {"score": "l1", "distribution": "uniform", "structure": "channels"}


def convolutional() -> tk.Task:
    """Digits with a small residual network that has norms."""
    return tk.task("digits", model="resnet-20@0.125")


def found_by(
    lab: tk.Lab, method: Any, task: tk.Task | None = None, recipe: tk.Recipe = SGD, **settings: Any
) -> list[tk.search.Found]:
    chosen = method.Settings(**{"structure": "channels", "density": (0.4,), **settings})
    return method(lab, task or tk.task("digits"), chosen, recipe=recipe, seeds=tk.search.Seeds.of(SEED))[0]


def masks_of(lab: tk.Lab, found: list[tk.search.Found]) -> list[tk.Mask]:
    return [lab.store.get_mask(item.mask) for item in found if item.mask]


def scored(task: tk.Task) -> list[tuple[torch.Tensor, torch.Tensor]]:
    train = task.load().train
    order = torch.randperm(
        len(train), generator=torch.Generator().manual_seed(mix_seeds(mix_seeds(SEED, "score"), "order", 0))
    )
    return [(task.prepare(train.inputs[rows]), train.targets[rows]) for rows in order[:40].split(20)]


@pytest.mark.parametrize(
    ("task", "recipe"), sample([(tk.task("digits"), SGD), (convolutional(), ADAM)], 1, ids=["sgd", "residual, adam"])
)
def test_early_pruning_is_that_of_a_plain_loop(tmp_path: Path, task: tk.Task, recipe: tk.Recipe) -> None:
    """Trained dense, scored by gates, shrunk with the optimiser's state, trained on: the same bits in float32."""
    total, when = 6, 2
    recipe = recipe.changed(length=f"{total}it")
    settings = {"when": f"{when}it", "iterations": 1, "batches": 2, "batch": 20}
    with tk.Lab(tmp_path, precision="fp32") as lab:
        ticket = found_by(lab, tk.search.early, task, recipe, **settings)[1]
        mine, layout = lab.state(ticket.result), ticket.result.segment.arithmetic
        (mask,) = masks_of(lab, [ticket])
    training = Training(task, recipe, total)
    layout.place(training.model)
    training.begin_optimizer()
    for step in range(total):
        images, classes = training.batch(step)
        if step == when:
            model = training.model
            by_hand = channels(
                model,
                images[:2],
                0.4,
                score="crop_gates",
                batches=scored(task),
                loss=lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
            )
            assert by_hand == mask
            plan = shrink_plan(model, mask, images[:2])
            training.model = rebuild(model, plan)
            training.optimizer = shrink_optimizer(training.optimizer, model, training.model, plan)
            training.parameters = dict(training.model.named_parameters())
        if layout.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        training.step(step, cross_entropy(training.model(images), classes))
    model = training.model
    for name, tensor in model.state_dict().items():
        assert torch.allclose(plan.cut(name, mine[name]), tensor, rtol=1e-5, atol=1e-6), name
    assert sum(value.numel() for value in model.parameters()) < 0.45 * sum(mask[name].numel() for name in mask)


def test_cut_at_a_step_one_shot_is_early_pruning_in_one_cut(tmp_path: Path) -> None:
    for structure in ("none", "channels"):
        with tk.Lab(tmp_path) as lab:
            words = {"structure": structure, "when": "7it", "score": "snip", "density": (0.5, 0.2)}
            early = found_by(lab, tk.search.early, iterations=1, **words)
            trained = lab.ledger.segments_trained
            once = found_by(lab, tk.search.oneshot, **words)
            assert [(item.mask, item.result.model) for item in early] == [
                (item.mask, item.result.model) for item in once
            ]
            assert lab.ledger.segments_trained == trained
            assert [trained_steps(item) for item in once] == [TOTAL] * 3
            assert once[1].moment is None


def test_filters_are_cut_layer_by_layer_and_fine_tuned(shared_store: Path) -> None:
    """EfficientConvNets: the smallest filters of each layer go, the same share of each."""
    with tk.Lab(shared_store) as lab:
        steps = SGD.changed(schedule="multistep", milestones=("50%",))
        dense, ticket = found_by(lab, tk.search.oneshot, recipe=steps, **FILTERS)
        (mask,) = masks_of(lab, [ticket])
        state = lab.state(dense.result)
    hidden = [name for name in mask if name.endswith("bias")]
    shares = [float(mask[name].float().mean()) for name in hidden]
    assert len(hidden) == 2
    assert max(shares) - min(shares) < 0.05
    first, second = state["fc1.weight"], state["fc2.weight"]
    worth = (first.abs().double().sum(1) + second.abs().double().sum(0)) / (first.shape[1] + second.shape[0])
    kept = mask["fc1.bias"]
    assert worth[kept].min() > worth[~kept].max()
    assert ticket.retrain == "finetune"


def test_controls_of_channel_scores(shared_store: Path) -> None:
    words = {"when": "0", "iterations": 1, "distribution": "uniform"}
    with tk.Lab(shared_store) as lab:
        best, worst, shuffled = (
            masks_of(lab, found_by(lab, tk.search.early, score=score, **words))[0]
            for score in ("l1", "inverted:l1", "shuffled:l1")
        )
    for name in ("fc1.bias", "fc2.bias"):
        assert best[name].sum() == worst[name].sum() == shuffled[name].sum()
        assert (best[name] & worst[name]).sum() < (best[name] & shuffled[name]).sum() < best[name].sum()


@pytest.mark.parametrize("density", [0.5, 0.05])
def test_the_detector_finds_a_moment_at_every_density(shared_store: Path, density: float) -> None:
    """The published structured threshold is 0 or less from density 0.1 down, and never met."""
    words = {"score": "magnitude", "every": "2it", "latest": f"{TOTAL}it", "iterations": 1}
    with tk.Lab(shared_store) as lab:
        ticket = found_by(lab, tk.search.early, density=(density,), **words)[1]
    moment = ticket.moment
    assert moment is not None
    assert moment.detected
    assert moment.detector == "distance"
    assert moment.threshold == max(density, 0.1)
    assert moment.step == ticket.behind == moment.measurements[-1][0] < TOTAL
    steps, far = zip(*moment.measurements, strict=True)
    assert list(steps) == list(range(2, moment.step + 1, 2))
    changes = [abs(later - earlier) for earlier, later in pairwise(far)]
    assert changes[-1] < moment.threshold * far[0] <= min(changes[:-1], default=1)


def test_channels_leave_a_few_at_a_time(shared_store: Path) -> None:
    points = {"begin": "2it", "end": "14it", "frequency": "4it"}
    with tk.Lab(shared_store) as lab:
        ticket = found_by(lab, tk.search.gradual, score="l1", **points)[1]
        chain = [*ticket.searched, ticket.result][1:]
        masks = [lab.store.get_mask(each.segment.mask) for each in chain]
    assert len(masks) == 3
    assert all(later <= earlier and later.kept < earlier.kept for earlier, later in pairwise(masks))
    assert all(each.segment.whole_channels for each in chain)
    assert abs(masks[-1].density - 0.4) < 0.02


@pytest.mark.slow
def test_the_channels_that_are_compared_are_chosen_as_the_tickets(tmp_path: Path) -> None:
    """By hand: the scales that `structure.channels` keeps, in blocks as large as the ticket's."""
    task = convolutional()
    chosen = {"keep_at_least": 2, "distribution": "uniform"}
    words = {"detector": "masks", "every": "2it", "latest": "10it", "iterations": 1, "score": "l1", **chosen}
    words["structure"] = "channels:2"
    with tk.Lab(tmp_path) as lab:
        ticket = found_by(lab, tk.search.early, task, **words)[1]
        whole, masks = ticket.dense.segment, []
        for step in range(2, 12, 2):
            model = lab.model(task, lab.train(whole.shortened_to(step), measure=False))
            x = task.prepare(task.load().train.inputs[:2])
            mask = channels(model, x, 0.4, score="slimming", multiple=2, **chosen)
            scales = [f"{name}.weight" for name, one in model.named_modules() if isinstance(one, nn.BatchNorm2d)]
            masks.append(tk.Mask({name: mask[name] for name in scales}))
    shares = [(one ^ other).kept / one.total for one, other in pairwise(masks)]
    assert ticket.moment is not None
    assert [share for _, share in ticket.moment.measurements] == shares[: len(ticket.moment.measurements)]


@pytest.mark.slow
def test_several_cuts_at_one_step(tmp_path: Path) -> None:
    task = convolutional()
    model, x = task.build(), task.prepare(task.load().train.inputs[:2])
    twice = channels(model, x, 0.3, iterations=2, schedule="exponential")
    first = channels(model, x, 0.3**0.5)
    assert twice <= first
    assert twice == channels(model, x, 0.3, within=first)
    assert channels(model, x, 0.9, within=first) == first
