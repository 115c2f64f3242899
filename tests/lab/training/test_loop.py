"""The training loop against a loop written out in plain PyTorch, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ticketry.core.mask import Mask
from ticketry.core.prune import prune
from ticketry.errors import HoldError, TaskError, TrainingError
from ticketry.lab.lab import Lab
from ticketry.lab.training.state import copy_state, rebuild_model
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task
from ticketry_engine.support.seeds import generator, mix_seeds

STEPS = 23  # of 10 an epoch: two whole epochs and a part, with their smaller last batches


def bare_loop(task: Task, recipe: Recipe, mask: Mask | None, *, seed: int, order_seed: int, fused: bool = True):
    """Weights, losses and optimiser of `STEPS` steps: what the lab promises, in as few words as PyTorch needs."""
    torch.manual_seed(mix_seeds(seed, "initialisation"))
    model = task.build()
    parameters = dict(model.named_parameters())
    keep = {name: mask[name].float() for name in mask} if mask else {}
    for name in keep:
        parameters[name].data *= keep[name]
    settings = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": fused}
    if recipe.optimizer == "sgd":
        settings |= {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
        optimizer = torch.optim.SGD(model.parameters(), **settings)
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
        optimizer = kind(model.parameters(), betas=(recipe.momentum, recipe.beta2), **settings)
    warmup = int(recipe.warmup.removesuffix("it"))
    scheduler = LambdaLR(optimizer, lambda step: min((step + 1) / max(warmup, 1), 1))
    train, losses = task.load().train, []
    while len(losses) < STEPS:
        epoch = len(losses) // -(-len(train) // recipe.batch)
        order = torch.randperm(len(train), generator=generator(order_seed, "order", epoch))
        for batch in order.split(recipe.batch)[: STEPS - len(losses)]:
            inputs = train.inputs[batch]
            if recipe.augment:
                inputs = task.augment(inputs, recipe.augment, generator(order_seed, "augment", len(losses)))
            torch.manual_seed(mix_seeds(order_seed, "step", len(losses)))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(
                model(task.prepare(inputs)), train.targets[batch], label_smoothing=recipe.label_smoothing
            )
            loss.backward()
            for name in keep:
                parameters[name].grad *= keep[name]
            if recipe.clip:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            scheduler.step()
            losses.append(float(loss.detach()))
    return model.state_dict(), losses, optimizer


RECIPES = {
    "sgd with all of it": Recipe(
        lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3, clip=0.7, label_smoothing=0.1, warmup="8it"
    ),
    "adam": Recipe(optimizer="adam", lr=2e-3, momentum=0.85, beta2=0.99, weight_decay=1e-3, clip=0.5, warmup="20it"),
    "adamw": Recipe(optimizer="adamw", lr=2e-3, weight_decay=0.1, label_smoothing=0.2),
    "augmented": Recipe(lr=0.05, augment=("crop", "flip")),
}


@pytest.mark.parametrize(
    ("name", "masked"), [("sgd with all of it", True), ("adam", False), ("adamw", True), ("augmented", False)]
)
def test_digits_as_in_a_bare_loop(lab, digits, equal_bits, name, masked):
    recipe = RECIPES[name].changed(length="3ep", batch=128)
    mask = prune(digits.build(), 0.3, score="random", seed=4) if masked else None
    wanted, losses, _ = bare_loop(digits, recipe, mask, seed=5, order_seed=6)
    segment = lab.segment(digits, start=5, order_seed=6, recipe=recipe, mask=mask, last=STEPS)
    result = lab.train(segment)
    assert equal_bits(lab.state(result), wanted)
    assert lab.store.get_tensors(result.training)["losses"].tolist() == losses
    if mask:
        assert not any(lab.state(result)[layer][~mask[layer]].any() for layer in mask)


def test_the_fused_optimizer_is_the_plain_one_but_for_rounding(lab, digits):
    recipe = RECIPES["adamw"].changed(length="3ep", batch=64)
    wanted, losses, _ = bare_loop(digits, recipe, None, seed=0, order_seed=0, fused=False)
    result = lab.train(lab.segment(digits, start=0, recipe=recipe, last=STEPS))
    assert lab.store.get_tensors(result.training)["losses"].tolist() == pytest.approx(losses, rel=1e-4)
    for layer, tensor in lab.state(result).items():
        torch.testing.assert_close(tensor, wanted[layer], rtol=1e-3, atol=1e-5)


def test_dropout_and_norms_as_in_a_bare_loop(lab, points, equal_bits):
    recipe = points.recipe.changed(length=f"{STEPS}it")
    wanted, losses, optimizer = bare_loop(points, recipe, None, seed=1, order_seed=2)
    result = lab.train(lab.segment(points, start=1, order_seed=2, recipe=recipe, last=STEPS))
    assert equal_bits(lab.state(result), wanted)
    # The end of the schedule keeps no optimiser; one step more of the schedule does.
    longer = recipe.changed(length=f"{STEPS + 1}it")
    kept = lab.train(lab.segment(points, start=1, order_seed=2, recipe=longer, last=STEPS))
    training = lab.store.get_tensors(kept.training)
    assert training.pop("losses").tolist() == losses
    theirs = {
        f"optimizer/{name}/{entry}": value
        for (name, _), state in zip(points.build().named_parameters(), optimizer.state.values(), strict=True)
        for entry, value in state.items()
    }
    assert equal_bits(training, theirs)
    assert result.training is None


def test_the_global_random_state_is_left_alone(lab, points):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    lab.train(lab.segment(points, start=0))
    assert torch.equal(torch.get_rng_state(), before)


class RandomFeatures(nn.Module):
    """Draws what no state dict has: a buffer that is not persistent, and one that is a plain attribute."""

    def __init__(self, moving=False):
        super().__init__()
        self.moving = moving
        self.register_buffer("frequencies", torch.randn(2, 16), persistent=False)
        self.phases = torch.rand(16)
        self.out = nn.Linear(16, 2)

    def forward(self, x):
        if self.moving and self.training:
            self.frequencies.mul_(0.99)
        return self.out(torch.cos(x @ self.frequencies + self.phases))


def _with_features(kind: type, moving: bool = False) -> Task:
    return type("Features", (kind,), {"build": lambda self: RandomFeatures(moving)})()


def test_what_a_model_draws_outside_its_state_dict_is_the_same_every_time(tmp_path, points_class, equal_bits):
    task, ends = _with_features(points_class), []
    for seed in range(2):
        torch.manual_seed(seed)  # whatever the process did before
        with Lab(tmp_path / str(seed)) as lab:
            result = lab.train(lab.segment(task, start=0))
            ends.append((lab.state(result), result.metrics))
            model = lab.model(task, result).eval()
            inputs, targets = task.load().test.inputs, task.load().test.targets
            right = (model(inputs).argmax(1) == targets).double().mean().item()
            assert 100 * right == pytest.approx(result.metrics["test"]["accuracy"], abs=1e-4)
    (one, metrics), (other, others) = ends
    assert equal_bits(one, other)
    assert metrics == others


def test_a_buffer_that_no_checkpoint_has_and_training_changes_is_told(lab, points_class):
    with pytest.raises(TaskError, match=r"changes the buffer frequencies .* persistent=True"):
        lab.train(lab.segment(_with_features(points_class, moving=True), start=0))


def test_metrics_in_small_units_keep_their_digits(lab, points_class):
    class InSmallUnits(points_class):
        def summary(self, sums, count):
            return {name: value * 1e-9 for name, value in super().summary(sums, count).items()}

    plain = lab.train(lab.segment(points_class(), start=0)).metrics["test"]
    small = lab.train(lab.segment(InSmallUnits(), start=0)).metrics["test"]
    assert small["accuracy"] == pytest.approx(plain["accuracy"] * 1e-9, rel=1e-5)
    assert plain["accuracy"] == round(plain["accuracy"], 6)


def _breaks_at(kind: type, step: int, value: float) -> Task:
    class Breaking(kind):
        calls = 0

        def loss(self, outputs, targets, *, label_smoothing=0.0):
            found = super().loss(outputs, targets, label_smoothing=label_smoothing)
            self.calls += 1
            return found * value if self.calls == step + 1 else found

    return Breaking()


@pytest.mark.parametrize(("step", "value"), [(0, float("inf")), (149, float("nan"))])
def test_a_loss_that_is_no_number_is_told_with_its_step(lab, points_class, step, value):
    """Losses are looked at in hundreds; the step that is named is the one all the same."""
    task = _breaks_at(points_class, step, value)
    recipe = task.recipe.changed(length="150it", warmup="10it")
    segment = lab.segment(task, start=0, recipe=recipe)
    with pytest.raises(TrainingError) as caught:
        lab.train(segment)
    lr = recipe.lr * min((step + 1) / 10, 1)
    told = str(caught.value)
    assert told.startswith(f"the loss is {value} at step {step} (epoch {step / 7:.2f}, learning rate {lr:g}): ")
    assert "lower the learning rate" in told
    assert lab.store.load_result(segment.trajectory, 150) is None


def test_a_state_is_a_copy_and_goes_back(points, equal_bits):
    model = points.build()
    with torch.no_grad():
        model[1].running_mean.fill_(3)
    state = copy_state(model)
    again = rebuild_model(points, state)
    assert equal_bits(state, again.state_dict())
    model[0].weight.data.zero_()
    assert state["0.weight"].any()


def test_the_step_is_counted_from_the_start_of_the_schedule(lab, points_class):
    task = _breaks_at(points_class, 20, float("nan"))
    segment = lab.segment(task, start=0, first=60, last=160, recipe=task.recipe.changed(length="200it"))
    with pytest.raises(TrainingError, match="at step 80 "):
        lab.train(segment)


def test_a_bad_loss_is_never_stored_on_the_way(lab, points_class):
    """Neither in a checkpoint nor in a kept state, though nobody looks at losses in between."""
    task = _breaks_at(points_class, 30, float("nan"))
    with Lab(lab.store.paths.root, checkpoint_seconds=1e-9) as eager:
        segment = eager.segment(task, start=0, recipe=task.recipe.changed(length="60it"))
        with pytest.raises(TrainingError, match="at step 30 "):
            eager.train(segment, keep=(20, 50))
        assert eager.store.stored_steps(segment.trajectory) == [20]
        step, tensors = eager.store.newest_checkpoint(segment.trajectory, 60)
        assert step == 30
        assert tensors["losses"].isfinite().all()


def _writes_to_its_weights(kind: type) -> Task:
    class Drifting(nn.Linear):
        """A layer that meddles with its own weights, as weight standardisation in place does."""

        def forward(self, inputs):
            with torch.no_grad():
                self.weight.add_(1e-3)
            return super().forward(inputs)

    class DriftingTask(kind):
        def build(self):
            model = super().build()
            model[0] = Drifting(2, 16)
            return model

    return DriftingTask()


def test_a_pruned_weight_that_is_written_is_told(lab, points_class, half):
    task = _writes_to_its_weights(points_class)
    segment = lab.segment(task, start=0, mask=half)
    with pytest.raises(HoldError, match=r"weights of '0\.weight' are not 0"):
        lab.train(segment)
    assert lab.store.stored_steps(segment.trajectory) == []
    lab.train(lab.segment(task, start=0))  # dense, it may do as it likes
