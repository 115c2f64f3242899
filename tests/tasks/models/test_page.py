"""What docs/models.md says of networks and presets, read back and compared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ticketry.search import continuous
from ticketry.search.iterative import Settings
from ticketry.tasks import models
from ticketry.tasks.presets import EXPERIMENTS, LANGUAGE_PRESETS, experiment

PAGE = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")


def table(first: str) -> dict[str, list[str]]:
    """First cell -> the other cells, of the table whose first column is called so."""
    rows = PAGE.partition(f"\n| {first} |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {row[0]: row[1:] for row in cells}


NETWORKS, PRESETS, GATED = table("name"), table("preset"), table("preset with gates")


def test_every_network_and_preset_is_there() -> None:
    assert sorted(NETWORKS) == sorted(models.names())
    assert [*PRESETS, *GATED, *LANGUAGE_PRESETS] == list(EXPERIMENTS)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameter_counts(name: str) -> None:
    inputs, classes, parameters, _ = NETWORKS[name]
    height, width, channels = map(int, inputs.split("x"))
    with torch.device("meta"):
        model = models.build(name, shape=(channels, height, width), classes=int(classes))
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,}" == parameters


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    network, length, batch, rate, rewind, remaining = PRESETS[name]
    tables = experiment(name)
    recipe, settings = tables["recipe"], Settings(**tables["settings"])
    assert network == f"{tables['model']}, {tables['task']}"
    assert (length, batch, rewind) == (recipe["length"], str(recipe["batch"]), settings.rewind)
    assert float(rate.split()[0]) == recipe["lr"]
    warmup = re.search(r"after (\S+) of warm-up", rate)
    assert recipe["warmup"] == (warmup[1] if warmup else "0it")
    assert remaining == f"{100 * settings.targets[-1]:.1f} %"


@pytest.mark.parametrize("name", GATED)
def test_presets_with_gates(name: str) -> None:
    network, length, batch, rate, gate_rate, rounds, tickets = GATED[name]
    tables = experiment(name)
    recipe, settings = tables["recipe"], continuous.Settings(**tables["settings"])
    assert network == f"{tables['model']}, {tables['task']}"
    assert (length, batch, rounds) == (recipe["length"], str(recipe["batch"]), str(settings.rounds))
    assert (float(rate.split()[0]), float(gate_rate)) == (recipe["lr"], settings.gate_lr)
    assert tickets == f"{settings.rewind}, {settings.retrain}"


def test_code() -> None:
    """Each line that has its value as a comment has that value."""
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    values: dict[str, object] = {}
    lines = code.splitlines()
    exec("\n".join(lines[:3]), values)
    shown = [re.fullmatch(r"(models\..*?\))\s+# ([^;]*)(;.*)?", line) for line in lines[3:]]
    assert [repr(eval(line[1], values)) for line in shown] == [line[2] for line in shown]
