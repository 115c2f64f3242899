"""The presets of Continuous Sparsification against the numbers of its official code, written down here by hand."""

from __future__ import annotations

import pytest

from ticketry.lab.training.optimizer import learning_rate
from ticketry.search import continuous, method
from ticketry.step import Step
from ticketry.tasks import models
from ticketry.tasks.facts import DATA_SETS
from ticketry.tasks.presets import CS_PRESETS, EXPERIMENTS, IMP_PRESETS, LANGUAGE_PRESETS, experiment
from ticketry.tasks.recipe import recipe_from

PER_EPOCH = 352
"""Of 45,000 images in batches of 128."""


def settings_of(name: str) -> continuous.Settings:
    return continuous.Settings(**experiment(name)["settings"])


def test_the_training_of_the_official_code() -> None:
    recipe = recipe_from(experiment("cs-resnet-20")["recipe"])
    total = recipe.steps(PER_EPOCH)
    rates = [learning_rate(recipe, step, total=total, per_epoch=PER_EPOCH) for step in range(total)]
    wanted = [0.1] * 56 * PER_EPOCH + [0.01] * 15 * PER_EPOCH + [0.001] * 14 * PER_EPOCH
    assert rates == pytest.approx(wanted)
    assert (recipe.optimizer, recipe.momentum, recipe.nesterov, recipe.weight_decay) == ("sgd", 0.9, True, 1e-4)
    assert recipe.batch == 128


def test_the_gates_of_the_official_code() -> None:
    settings = settings_of("cs-resnet-20")
    assert (settings.members, settings.final_temperature, settings.temperature) == (((0.0, 1e-8),), 200, "epoch")
    assert (settings.gate_optimizer, settings.gate_lr, settings.gate_lr_schedule) == ("sgd", 0.1, "recipe")
    assert (settings.gate_momentum, settings.gate_nesterov, settings.gate_weight_decay) == (0.9, True, 0)
    assert (settings.rounds, Step.parse(settings.rewind), settings.retrain) == (3, Step.parse("2ep"), "restart")
    assert settings.reset == "paper"
    assert settings.spare_output


@pytest.mark.parametrize("name", CS_PRESETS)
def test_every_preset_can_be_carried_out(name: str) -> None:
    tables = experiment(name)
    assert method(tables["method"]).Settings is continuous.Settings
    assert settings_of(name)
    preset = DATA_SETS.get(tables["task"]) if tables["task"] in DATA_SETS else None
    models.check(tables["model"], shape=preset.shape if preset else (3, 224, 224))


def test_names_are_those_of_one_paper_each() -> None:
    assert list(EXPERIMENTS) == [*IMP_PRESETS, *CS_PRESETS, *LANGUAGE_PRESETS]
    assert all(name.startswith("cs-") for name in CS_PRESETS)


def test_the_short_form_says_that_it_is_short() -> None:
    assert "shortened" in CS_PRESETS["cs-resnet-20-short"].title
    assert "our own choice" in CS_PRESETS["cs-resnet-20-short"].source
