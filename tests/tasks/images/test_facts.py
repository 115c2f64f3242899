"""Which recipe goes with which network."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ticketry.errors import TaskError
from ticketry.tasks import models
from ticketry.tasks.facts import DATA_SETS, IMAGENET, LENET, RESIDUAL, VGG19

CIFAR = DATA_SETS.get("cifar10")


@pytest.mark.parametrize("task", ["digits", "mnist", "fashion-mnist", "cifar10"])
@pytest.mark.parametrize("name", models.names())
def test_a_networks_recipe_is_that_of_any_width(task: str, name: str) -> None:
    preset = DATA_SETS.get(task)
    for width in ("0.5", "0.50", "1", "4"):
        assert preset.recipe_of(f"{name}@{width}") == preset.recipe_of(name)


def test_the_tasks_own_recipe_is_its_networks_at_any_width() -> None:
    assert DATA_SETS.get("digits").recipe_of("lenet-300-100@0.5") == DATA_SETS.get("digits").recipe
    assert CIFAR.recipe_of("vgg-19@0.25") == VGG19


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18", "timm:resnet-20"])
@pytest.mark.parametrize(
    ("side", "recipe"), [(32, RESIDUAL), (64, RESIDUAL), (95, RESIDUAL), (96, IMAGENET), (224, IMAGENET)]
)
def test_another_librarys_network_is_trained_by_the_size_of_the_images(name: str, side: int, recipe: object) -> None:
    assert replace(CIFAR, shape=(3, side, side)).recipe_of(name) == recipe


def test_another_librarys_network_is_never_the_tasks_own() -> None:
    assert DATA_SETS.get("digits").recipe_of("timm:lenet-300-100") == RESIDUAL.changed(augment=())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet20", "no network 'resnet20': did you mean resnet-20.*choose one of lenet-300-100"),
        ("resnet20@0.5", "no network 'resnet20': did you mean resnet-20"),
        ("alexnet", "no network 'alexnet': choose one of lenet-300-100"),
        ("resnet-20@0", "a width is a number above 0"),
        ("keras:resnet18", "before the colon stands timm or torchvision"),
    ],
)
def test_wrong_names(name: str, reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        CIFAR.recipe_of(name)


@pytest.mark.parametrize("task", ["digits", "mnist", "cifar10"])
def test_perceptrons_have_that_of_lenet(task: str) -> None:
    preset = DATA_SETS.get(task)
    assert preset.recipe_of("mlp-50-20") == preset.recipe_of("lenet-300-100").changed(
        length=LENET.length, batch=LENET.batch
    )
    with pytest.raises(TaskError, match="mlp-"):
        preset.recipe_of("mlp-")
