"""Image classification: preparation, augmentation, loss, metrics, keys, and the recipe of each network."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

from ticketry.errors import TaskError
from ticketry.tasks import catalogue, models, recipe
from ticketry.tasks.facts import DATA_SETS, IMAGENET, LENET, RESIDUAL
from ticketry.tasks.images import _AUGMENTATIONS, FolderReader


@pytest.mark.parametrize("name", DATA_SETS.built_in)
def test_prepare_scales_and_centres_each_channel(name: str) -> None:
    task = catalogue.get(name)
    channels, height, width = task.shape
    stored = torch.randint(0, int(task.largest) + 1, (6, channels, height, width), dtype=torch.uint8)
    before = stored.clone()
    prepared = task.prepare(stored)
    assert prepared.dtype == torch.float32
    assert torch.equal(stored, before)
    for channel in range(channels):
        expected = (stored[:, channel].double() / task.largest - task.mean[channel]) / task.std[channel]
        torch.testing.assert_close(prepared[:, channel].double(), expected, rtol=0, atol=1e-6)


def test_prepare_does_not_write_to_inputs_that_are_float_already() -> None:
    task = catalogue.get("mnist")
    stored = torch.rand(2, 1, 28, 28)
    before = stored.clone()
    task.prepare(stored)
    assert torch.equal(stored, before)


def test_prepare_may_first_be_called_in_inference_mode() -> None:
    task = catalogue.get("digits")
    with torch.inference_mode():
        task.prepare(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    model = task.build()
    outputs = model(task.prepare(torch.ones(2, 1, 8, 8, dtype=torch.uint8)))
    task.loss(outputs, torch.tensor([0, 1])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_augment_applies_the_names_in_order() -> None:
    task = catalogue.get("cifar10")
    batch = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    one, two = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    expected = _AUGMENTATIONS["crop"](_AUGMENTATIONS["flip"](batch, one), one)
    assert torch.equal(task.augment(batch, ("flip", "crop"), two), expected)
    assert task.augment(batch, (), two) is batch


def test_every_augmentation_of_a_recipe_is_known() -> None:
    own = {"transforms"}  # those of a PyTorch data set, see `tk.dataset_task`
    assert {*_AUGMENTATIONS, *FolderReader.augmentations, *own} == set(get_args(recipe.Augmentation))
    with pytest.raises(TaskError, match=r"no augmentation 'mixup'.*flip, crop"):
        catalogue.get("cifar10").augment(torch.zeros(1, 3, 4, 4), ("mixup",), torch.Generator())


LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-3.0, 4.0, 1.0]])
TARGETS = torch.tensor([0, 1, 1])


def log_probability(row: list[float], target: int) -> float:
    return row[target] - math.log(sum(math.exp(value) for value in row))


def test_loss_is_mean_cross_entropy_with_smoothed_targets() -> None:
    task = catalogue.get("mnist")
    rows, targets = LOGITS.tolist(), TARGETS.tolist()
    plain = -sum(log_probability(row, target) for row, target in zip(rows, targets, strict=True)) / 3
    spread = -sum(log_probability(row, other) for row in rows for other in range(3)) / 9
    assert float(task.loss(LOGITS, TARGETS)) == pytest.approx(plain)
    assert float(task.loss(LOGITS, TARGETS, label_smoothing=0.3)) == pytest.approx(0.7 * plain + 0.3 * spread)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_over_batches_become_accuracy_and_loss(dtype: torch.dtype) -> None:
    task = catalogue.get("mnist")
    logits = LOGITS.to(dtype)
    parts = [task.measure(logits[:2], TARGETS[:2]), task.measure(logits[2:], TARGETS[2:])]
    sums = {name: sum(float(part[name]) for part in parts) for name in parts[0]}
    summary = task.summary(sums, 3)
    rows = logits.float().tolist()
    loss = -sum(log_probability(row, target) for row, target in zip(rows, TARGETS.tolist(), strict=True)) / 3
    assert summary["accuracy"] == pytest.approx(100 * 2 / 3)
    assert summary["loss"] == pytest.approx(loss, rel=1e-5)
    assert task.metric.name in summary


def test_keys_differ_and_are_json() -> None:
    keys = [catalogue.get(name).key() for name in DATA_SETS.built_in]
    keys.append(catalogue.get("mnist", model="lenet-5").key())
    texts = [json.dumps(key, sort_keys=True) for key in keys]
    assert [json.loads(text) for text in texts] == keys
    assert len(set(texts)) == len(texts)


def test_smaller_images_are_another_task() -> None:
    whole, same, small = (catalogue.get("cifar10", options=options) for options in ({}, {"size": "32"}, {"size": "16"}))
    assert same.key() == whole.key()
    assert small.key() != whole.key()
    assert small.shape == (3, 16, 16)
    assert small.recipe == whole.recipe
    assert small.build()(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


def test_crops_of_smaller_images_are_smaller() -> None:
    small = catalogue.get("cifar10", options={"size": "16"})
    batch = torch.zeros(400, 3, 16, 16, dtype=torch.uint8)
    batch[:, :, 8, 8] = 1
    moved = small.augment(batch, ("crop",), torch.Generator().manual_seed(0))
    assert sorted({row.nonzero()[0][1].item() - 8 for row in moved}) == [-2, -1, 0, 1, 2]
    whole = catalogue.get("cifar10").augment(batch, ("crop",), torch.Generator().manual_seed(0))
    assert sorted({row.nonzero()[0][1].item() - 8 for row in whole}) == list(range(-4, 5))


def test_sizes_that_whole_squares_of_pixels_do_not_give_are_refused() -> None:
    for size in ("64", "15"):
        with pytest.raises(TaskError, match=rf"option size of cifar10 is one of 32, 16, 8, 4, 2, 1 .*, not '{size}'"):
            catalogue.get("cifar10", options={"size": size})
    for size in ("0", "small"):
        with pytest.raises(TaskError, match=rf"option size of cifar10 is a whole number, at least 1, not '{size}'"):
            catalogue.get("cifar10", options={"size": size})


# -- recipes of networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_the_recipe_of_a_network_is_that_of_any_width(name: str) -> None:
    preset = DATA_SETS.get(name)
    for network in models.names():
        for width in ("0.50", "1", "4"):
            assert preset.recipe_of(f"{network}@{width}") == preset.recipe_of(network)
    assert preset.recipe_of(f"{preset.model}@0.5") == preset.recipe
    perceptron = preset.recipe_of("lenet-300-100").changed(length=LENET.length, batch=LENET.batch)
    assert preset.recipe_of("mlp-50-20") == perceptron
    with pytest.raises(TaskError, match="mlp-"):
        preset.recipe_of("mlp-")


def test_networks_of_other_libraries_are_trained_by_the_size_of_the_images() -> None:
    preset = DATA_SETS.get("cifar10")
    for side, expected in ((32, RESIDUAL), (95, RESIDUAL), (96, IMAGENET), (224, IMAGENET)):
        for name in ("timm:resnet18", "torchvision:resnet18", "timm:resnet-20"):
            assert replace(preset, shape=(3, side, side)).recipe_of(name) == expected
    assert DATA_SETS.get("digits").recipe_of("timm:lenet-300-100") == RESIDUAL.changed(augment=())
