"""Presets against the numbers of the papers and of docs/models.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ticketry.errors import UsageError
from ticketry.experiments.run_file import format_run_file, read_run_file
from ticketry.lab.training.state import learning_rate
from ticketry.search import continuous, method
from ticketry.search.iterative import Settings
from ticketry.step import Step
from ticketry.tasks import images, models
from ticketry.tasks.catalogue import CS_PRESETS, EXPERIMENTS, IMP_PRESETS, LANGUAGE_PRESETS, experiment
from ticketry.tasks.facts import DATA_SETS
from ticketry.tasks.recipe import Recipe, recipe_from_dict
from ticketry.tasks.task import Spec

PAPER = {  # arXiv 1903.01611 v3
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

REMAINING = {"lenet": 10.7, "resnet-20": 16.7, "vgg-19": 2.2, "resnet-50": 20.0}
"""Figure 3, weights remaining in percent; ResNet-50: 80 % removed."""

PARAMETERS = {"lenet": 266_000, "resnet-20": 274_000, "vgg-19": 20_000_000}
"""Figure 2, with ResNet-20's running statistics; rounded as printed."""


def read(name: str) -> tuple[dict[str, Any], Recipe, Settings]:
    """A preset as the command line reads a run file."""
    tables = experiment(name)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in tables["settings"].items()}
    return tables, recipe_from_dict(tables["recipe"]), Settings(**values)


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


@pytest.mark.parametrize("name", PAPER)
def test_training_is_that_of_the_paper(name: str) -> None:
    total, batch, optimizer, peak, drops, warmup, rewind = PAPER[name]
    _, recipe, _ = read(name)
    assert (recipe.batch, recipe.optimizer, recipe.lr) == (batch, optimizer, peak)
    assert steps(name) == (total, drops, warmup, rewind)
    if drops:
        assert (recipe.schedule, recipe.gamma, recipe.momentum) == ("multistep", 0.1, 0.9)
    for step in {0, 1, 10, warmup // 2, *(drop - 1 for drop in drops), *drops, total - 1}:
        expected = peak * (step + 1) / warmup if step < warmup else peak * 0.1 ** sum(step >= drop for drop in drops)
        found = learning_rate(recipe, step, total=total, per_epoch=per_epoch(name))
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", PAPER)
def test_levels_end_at_the_density_of_the_paper(name: str) -> None:
    _, _, settings = read(name)
    found = settings.targets
    previous = 1.0
    for density in found[:-1]:  # 20 % of what remains, a level
        assert density == pytest.approx(0.8 * previous, rel=1e-9)
        previous = density
    assert found[-1] >= 0.8 * previous * (1 - 1e-9)
    assert abs(100 * found[-1] - REMAINING["-".join(name.split("-")[:2])]) < 0.1
    assert (settings.distribution, settings.score, settings.effective_retrain) == ("global", "magnitude", "continue")
    assert not settings.spare_output
    assert not settings.spare


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_size_of_the_paper(name: str) -> None:
    tables = experiment(name)
    preset = DATA_SETS.get(tables["task"])
    found = models.parameters(tables["model"], shape=preset.shape, classes=preset.classes)
    assert abs(found / PARAMETERS[name] - 1) < 0.01


@pytest.mark.parametrize("name", ["resnet-20-short", "vgg-19-short"])
def test_short_presets_keep_the_shape_of_the_training(name: str) -> None:
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
def test_a_run_file_holds_a_preset(name: str, tmp_path: Any) -> None:
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
    shape = DATA_SETS.get(tables["task"]).shape if tables["task"] in DATA_SETS.built_in else (3, 224, 224)
    models.check(tables["model"], shape=shape)


def test_presets_are_looked_up_by_name() -> None:
    with pytest.raises(UsageError, match=r"no preset 'resnet20': did you mean resnet-20.*choose one of lenet"):
        experiment("resnet20")
    assert list(EXPERIMENTS) == [*IMP_PRESETS, *CS_PRESETS, *LANGUAGE_PRESETS]
    assert IMP_PRESETS["resnet-50"].recipe == images.default_recipe("resnet-50-imagenet", 224)
    experiment("vgg-19-short")["settings"]["densities"].append(0.01)
    experiment("vgg-19-short")["recipe"]["milestones"].clear()
    assert experiment("vgg-19-short")["settings"]["densities"] == [0.5, 0.2, 0.1, 0.05]
    assert experiment("vgg-19-short")["recipe"]["milestones"] == ["4ep", "6ep"]


# -- Continuous Sparsification: its official code ----------------------------------------------------------------------

PER_EPOCH = 352
"""45,000 images in batches of 128."""


def gated_settings(name: str) -> continuous.Settings:
    return continuous.Settings(**experiment(name)["settings"])


def test_continuous_sparsification_is_that_of_the_official_code() -> None:
    recipe = recipe_from_dict(experiment("cs-resnet-20")["recipe"])
    total = recipe.steps(PER_EPOCH)
    changes = [0, 56 * PER_EPOCH - 1, 56 * PER_EPOCH, 71 * PER_EPOCH - 1, 71 * PER_EPOCH, 85 * PER_EPOCH - 1]
    rates = [learning_rate(recipe, step, total=total, per_epoch=PER_EPOCH) for step in changes]
    assert total == 85 * PER_EPOCH
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert (recipe.optimizer, recipe.momentum, recipe.nesterov, recipe.weight_decay) == ("sgd", 0.9, True, 1e-4)
    assert recipe.batch == 128
    settings = gated_settings("cs-resnet-20")
    assert (settings.inits_and_penalties, settings.final_temperature, settings.temperature) == (
        ((0.0, 1e-8),),
        200,
        "epoch",
    )
    assert (settings.gate_optimizer, settings.gate_lr, settings.gate_lr_schedule) == ("sgd", 0.1, "recipe")
    assert (settings.gate_momentum, settings.gate_nesterov, settings.gate_weight_decay) == (0.9, True, 0)
    assert (settings.rounds, Step.parse(settings.rewind), settings.retrain) == (3, Step.parse("2ep"), "restart")
    assert settings.reset == "paper"
    assert settings.spare_output
    for name in CS_PRESETS:
        tables = experiment(name)
        assert method(tables["method"]).Settings is continuous.Settings
        assert gated_settings(name)
        preset = DATA_SETS.get(tables["task"]) if tables["task"] in DATA_SETS else None
        models.check(tables["model"], shape=preset.shape if preset else (3, 224, 224))


# -- docs/models.md ----------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")


def table(first: str) -> dict[str, list[str]]:
    """Return first cell -> other cells, of the table with this heading of the first column."""
    rows = PAGE.partition(f"\n| {first} |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {row[0]: row[1:] for row in cells}


def test_the_page_shows_all_networks_with_their_parameters() -> None:
    networks = table("name")
    assert sorted(networks) == sorted(models.names())
    for name, (inputs, classes, parameters, _) in networks.items():
        height, width, channels = map(int, inputs.split("x"))
        assert f"{models.parameters(name, shape=(channels, height, width), classes=int(classes)):,}" == parameters


def test_the_page_shows_all_presets_with_their_settings() -> None:
    presets, gated = table("preset"), table("preset with gates")
    assert [*presets, *gated, *LANGUAGE_PRESETS] == list(EXPERIMENTS)
    for name, (network, length, batch, rate, *others) in {**presets, **gated}.items():
        tables = experiment(name)
        recipe = tables["recipe"]
        assert network == f"{tables['model']}, {tables['task']}"
        assert (length, batch, float(rate.split()[0])) == (recipe["length"], str(recipe["batch"]), recipe["lr"])
        if name in gated:
            gate_rate, rounds, tickets = others
            settings = gated_settings(name)
            assert (float(gate_rate), int(rounds)) == (settings.gate_lr, settings.rounds)
            assert tickets == f"{settings.rewind}, {settings.retrain}"
        else:
            rewind, remaining = others
            warmup = re.search(r"after (\S+) of warm-up", rate)
            assert recipe["warmup"] == (warmup[1] if warmup else "0it")
            settings = Settings(**tables["settings"])
            assert (rewind, remaining) == (settings.rewind, f"{100 * settings.targets[-1]:.1f} %")


def test_the_code_of_the_page_gives_the_values_in_its_comments() -> None:
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    values: dict[str, object] = {}
    lines = code.splitlines()
    exec("\n".join(lines[:3]), values)
    shown = [re.fullmatch(r"(models\..*?\))\s+# ([^;]*)(;.*)?", line) for line in lines[3:]]
    assert [repr(eval(line[1], values)) for line in shown] == [line[2] for line in shown]
