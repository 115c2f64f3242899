"""The presets against the numbers of arXiv 1903.01611 v3, written down here by hand."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from ticketry.errors import UsageError
from ticketry.experiments.run_file import format_run_file, read_run_file
from ticketry.lab.training.optimizer import learning_rate
from ticketry.search import method
from ticketry.search.iterative import Settings
from ticketry.step import Step
from ticketry.tasks import models
from ticketry.tasks.facts import DATA_SETS
from ticketry.tasks.images import folder
from ticketry.tasks.presets import IMP_PRESETS, experiment
from ticketry.tasks.recipe import Recipe, recipe_from
from ticketry.tasks.task import Spec

PAPER = {
    # Figure 2; drops of ResNet and VGG as in `imp_presets`. iterations, batch, optimizer, peak, drops, warm-up, rewind.
    "lenet": (50_000, 60, "adam", 1.2e-3, [], 0, 0),
    "resnet-20": (30_000, 128, "sgd", 0.1, [20_000, 25_000], 0, 500),  # rewind: sections 3 and 4
    "resnet-20-low": (30_000, 128, "sgd", 0.01, [20_000, 25_000], 0, 0),
    "resnet-20-warmup": (30_000, 128, "sgd", 0.03, [20_000, 25_000], 20_000, 0),
    "vgg-19": (112_000, 64, "sgd", 0.1, [56_000, 84_000], 0, 100),  # rewind: sections 3 and 4
    "vgg-19-low": (112_000, 64, "sgd", 0.01, [56_000, 84_000], 0, 0),
    "vgg-19-warmup": (112_000, 64, "sgd", 0.1, [56_000, 84_000], 10_000, 0),
    # 90 epochs of 1,252 steps (1,281,167 images in batches of 1024); drops at 30, 60, 80; 5 of warm-up; rewound to 6
    "resnet-50": (112_680, 1024, "sgd", 0.4, [37_560, 75_120, 100_160], 6_260, 7_512),
    "resnet-50-imagenet": (112_680, 1024, "sgd", 0.4, [37_560, 75_120, 100_160], 6_260, 7_512),
}
EXAMPLES = {"mnist": 55_000, "cifar10": 45_000, "imagefolder": 1_281_167, "imageshards": 1_281_167}

REMAINING = {  # figure 3, weights remaining in percent; ResNet-50: 80 % removed
    "lenet": 10.7,
    "resnet-20": 16.7,
    "resnet-20-low": 16.7,
    "resnet-20-warmup": 16.7,
    "vgg-19": 2.2,
    "vgg-19-low": 2.2,
    "vgg-19-warmup": 2.2,
    "resnet-50": 20.0,
    "resnet-50-imagenet": 20.0,
}

PARAMETERS = {"lenet": 266_000, "resnet-20": 274_000, "vgg-19": 20_000_000}
"""Figure 2, with ResNet-20's running statistics; rounded as printed."""


def read(name: str) -> tuple[dict[str, Any], Recipe, Settings]:
    """A preset as the command line reads a run file."""
    tables = experiment(name)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in tables["settings"].items()}
    return tables, recipe_from(tables["recipe"]), Settings(**values)


def per_epoch(name: str) -> int:
    tables, recipe, _ = read(name)
    examples = int(tables["options"].get("train", EXAMPLES[tables["task"]]))
    return -(-examples // recipe.batch)


def steps(name: str) -> tuple[int, list[int], int, int]:
    """Length, drops, warm-up and rewind step in iterations."""
    _, recipe, settings = read(name)
    size = per_epoch(name)
    total = recipe.steps(size)
    drops = [Step.parse(step).at(total=total, per_epoch=size) for step in recipe.milestones]
    warmup, rewind = (Step.parse(step).at(total=total, per_epoch=size) for step in (recipe.warmup, settings.rewind))
    return total, drops, warmup, rewind


def test_every_preset_is_checked_here() -> None:
    assert set(IMP_PRESETS) == {*PAPER, "resnet-20-short", "vgg-19-short"}


@pytest.mark.parametrize("name", PAPER)
def test_training_is_the_papers(name: str) -> None:
    total, batch, optimizer, peak, drops, warmup, rewind = PAPER[name]
    _, recipe, _ = read(name)
    assert (recipe.batch, recipe.optimizer, recipe.lr) == (batch, optimizer, peak)
    assert steps(name) == (total, drops, warmup, rewind)
    if drops:
        assert (recipe.schedule, recipe.gamma, recipe.momentum) == ("multistep", 0.1, 0.9)


@pytest.mark.parametrize("name", PAPER)
def test_learning_rate_step_by_step(name: str) -> None:
    """Rising to the peak over the warm-up, then a tenth after each drop."""
    total, _, _, peak, drops, warmup, _ = PAPER[name]
    _, recipe, _ = read(name)
    for step in {0, 1, 10, warmup // 2, *(drop - 1 for drop in drops), *drops, total - 1}:
        expected = peak * (step + 1) / warmup if step < warmup else peak * 0.1 ** sum(step >= drop for drop in drops)
        found = learning_rate(recipe, step, total=total, per_epoch=per_epoch(name))
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", PAPER)
def test_levels_end_at_the_papers_share(name: str) -> None:
    _, _, settings = read(name)
    found = settings.targets
    previous = 1.0
    for density in found[:-1]:  # 20 % of what remains, a level
        assert density == pytest.approx(0.8 * previous, rel=1e-9)
        previous = density
    assert found[-1] >= 0.8 * previous * (1 - 1e-9)
    assert abs(100 * found[-1] - REMAINING[name]) < 0.1
    assert (settings.distribution, settings.score, settings.how_retrained) == ("global", "magnitude", "continue")
    assert not settings.spare_output
    assert not settings.spare


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_papers_size(name: str) -> None:
    tables = experiment(name)
    preset = DATA_SETS.get(tables["task"])
    found = models.parameters(tables["model"], shape=preset.shape, classes=preset.classes)
    assert abs(found / PARAMETERS[name] - 1) < 0.01


@pytest.mark.parametrize("name", ["resnet-20-short", "vgg-19-short"])
def test_short_forms_are_short_and_keep_the_shape_of_the_training(name: str) -> None:
    whole = name.removesuffix("-short")
    total, drops, warmup, rewind = steps(name)
    long_total, long_drops, _, _ = steps(whole)
    tables, recipe, settings = read(name)
    _, long_recipe, _ = read(whole)
    assert 5 <= total / per_epoch(name) <= 10
    assert [drop / total for drop in drops] == pytest.approx([drop / long_total for drop in long_drops], abs=1e-3)
    assert (recipe.batch, recipe.lr, warmup) == (long_recipe.batch, long_recipe.lr, 0)
    assert 0 < rewind < 0.08 * total
    assert settings.targets == (0.5, 0.2, 0.1, 0.05)
    assert tables["options"] == {"train": "10000"}
    sizes = [models.parameters(model, shape=(3, 32, 32), classes=10) for model in (tables["model"], whole)]
    assert sizes[0] < sizes[1] / 3
    assert "shortened" in IMP_PRESETS[name].title
    assert "our own choice" in IMP_PRESETS[name].source


@pytest.mark.parametrize("name", IMP_PRESETS)
def test_a_preset_is_what_a_run_file_holds(name: str, tmp_path: Any) -> None:
    tables, recipe, settings = read(name)
    assert method(tables["method"]).Settings is Settings
    assert recipe == IMP_PRESETS[name].recipe
    spec = Spec(tables["task"], tables["model"], tuple(tables["options"].items()))
    described = {**tables, "replicates": 3, "controls": [], "seeds": {}}
    path = tmp_path / "run.toml"
    path.write_text(format_run_file(described, spec))
    again = read_run_file(path)
    assert {key: again.get(key, {}) for key in tables} == tables
    assert settings.rewind


@pytest.mark.parametrize("name", IMP_PRESETS)
def test_presets_name_networks_that_take_their_tasks_images(name: str) -> None:
    tables = experiment(name)
    shape = DATA_SETS.get(tables["task"]).shape if tables["task"] in DATA_SETS.built_in else (3, 224, 224)
    models.check(tables["model"], shape=shape)


def test_resnet_50_is_trained_as_the_task_trains_it() -> None:
    assert IMP_PRESETS["resnet-50"].recipe == folder.recipe_of("resnet-50-imagenet", 224)


def test_tables_are_made_anew() -> None:
    experiment("vgg-19-short")["settings"]["densities"].append(0.01)
    experiment("vgg-19-short")["recipe"]["milestones"].clear()
    assert experiment("vgg-19-short")["settings"]["densities"] == [0.5, 0.2, 0.1, 0.05]
    assert experiment("vgg-19-short")["recipe"]["milestones"] == ["4ep", "6ep"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet20", r"no preset 'resnet20': did you mean resnet-20.*choose one of lenet, resnet-20, "),
        ("", "no preset '': choose one of lenet"),
    ],
)
def test_unknown_presets(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        experiment(name)


def test_presets_need_no_torch() -> None:
    code = "import sys; from ticketry.tasks.presets import experiment; experiment('lenet')"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
