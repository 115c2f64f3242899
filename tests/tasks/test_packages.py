"""Tasks, networks and data sets of installed packages, and custom networks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from cli.calling import call
from installed import install, site
from ticketry.errors import PluginError, TaskError
from ticketry.tasks import catalogue, models
from ticketry.tasks.task import Spec
from ticketry.tasks.user_task import OwnTask

__all__ = ["site"]  # a fixture

TASK = '''
import torch
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Classification, Split, Splits

class Moons(Classification):
    """Two half moons, told apart. By a perceptron."""
    name = "moons"
    recipe = Recipe(length="2ep", batch=8, lr=0.5)
    def __init__(self, hidden=4): self.hidden = hidden
    def build(self): return torch.nn.Sequential(torch.nn.Linear(2, self.hidden), torch.nn.Linear(self.hidden, 2))
    def load(self, data=None):
        part = Split(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2)
        return Splits(part, part, part)

def of_request(spec):
    made = Moons()
    made.name = f"{spec.name} {spec.model} {dict(spec.options)}"
    return made

nothing = 3
'''

NETWORKS = """
from torch import nn

class Wide(nn.Sequential):
    def __init__(self, shape, classes, *, scale):
        inputs, units = shape[0] * shape[1] * shape[2], scale(64)
        super().__init__(nn.Flatten(), nn.Linear(inputs, units), nn.Linear(units, classes))

def fixed(shape, classes):
    if shape[1] < 4:
        raise ValueError("too small for me")
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))

def no_network(depth): ...
"""

DATA = """
from ticketry.tasks.facts import LENET, ImageData

STRIPES = ImageData(
    title="Stripes", shape=(1, 8, 8), classes=2, examples=(8, 4, 4), mean=(0.5,), std=(0.5,), model="mlp-5",
    recipe=LENET, read="stripes.reader:read",
)
"""

READER = """
import torch
from ticketry.tasks.task import Split, Splits

def read(where):
    def part(count):
        images = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
        images[::2, :, ::2] = 255
        return Split(images, torch.arange(count) % 2)
    return Splits(part(8), part(4), part(4))
"""


@pytest.fixture
def moons(site: Path) -> Path:
    (site / "moons.py").write_text(TASK)
    install(
        site,
        "half-moons",
        {"moons": "moons:Moons", "asked": "moons:of_request", "odd": "moons:nothing"},
        group="ticketry.tasks",
    )
    return site / "moons.py"


def test_a_task_of_a_package(moons: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert catalogue.names()[-3:] == ("asked", "moons", "odd")
    assert (catalogue.find_origin("moons"), catalogue.find_origin("digits")) == ("half-moons 1.2", "built in")
    assert catalogue.describe("moons") == "Two half moons, told apart. By a perceptron"
    code, out, _ = call(capsys, "list", "tasks", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert (code, rows["moons"]["from"], rows["gym:ENVIRONMENT"]["from"]) == (0, "half-moons 1.2", "built in")
    task = catalogue.get("moons", options={"hidden": "7"})
    assert isinstance(task, OwnTask)
    assert task.build()[0].weight.shape == (7, 2)
    assert task.spec == Spec("moons", None, (("hidden", "7"),))
    source = hashlib.sha256(moons.read_bytes()).hexdigest()
    assert task.key() == {"name": "moons", "source": source, "options": {"hidden": 7}, "key": None}
    assert catalogue.create_task(task.spec).key() == task.key()
    with pytest.raises(TaskError, match=r"moons takes \(hidden=4\), but got"):
        catalogue.get("moons", options={"depth": "7"})


def test_a_function_of_the_request(moons: Path) -> None:
    assert catalogue.get("asked", model="cnn", options={"any": "thing"}).name == "asked cnn {'any': 'thing'}"


def test_broken_tasks_are_named_and_the_others_work(moons: Path, site: Path) -> None:
    install(site, "broken", {"missing": "no_such_module:Task", "digits": "moons:Moons"}, group="ticketry.tasks")
    with pytest.raises(TaskError, match="odd is no task but 3"):
        catalogue.get("odd")
    with pytest.raises(PluginError, match=r"the task 'missing' of the package broken 1.2 cannot be used"):
        catalogue.get("missing")
    assert "broken 1.2 cannot be used" in catalogue.describe("missing")
    assert catalogue.find_origin("digits") == "built in"
    assert not isinstance(catalogue.get("digits"), OwnTask)


@pytest.fixture
def networks(site: Path) -> Path:
    (site / "my_networks.py").write_text(NETWORKS)
    install(site, "my-networks", {"wide": "my_networks:Wide", "bad": "my_networks:no_network"}, group="ticketry.models")
    return site / "my_networks.py"


@pytest.mark.parametrize("name", ["wide", "my_networks:Wide"])
def test_a_custom_network(networks: Path, name: str) -> None:
    shape = (1, 8, 8)
    assert models.build(name, shape=shape, classes=10)(torch.zeros(2, *shape)).shape == (2, 10)
    assert models.parameters(name, shape=shape, classes=10) == 64 * 64 + 64 + 64 * 10 + 10
    assert models.parameters(f"{name}@0.5", shape=shape, classes=10) == 64 * 32 + 32 + 32 * 10 + 10
    assert models.narrower(name, shape=shape, classes=10, parameters=2410) == f"{name}@0.5"
    source = hashlib.sha256(networks.read_bytes()).hexdigest()
    assert models.network_key(f"{name}@0.50") == {"model": f"{name}@0.5", "source": source}
    task = catalogue.get("digits", model=name)
    assert task.key()["source"] == source
    assert task.recipe == catalogue.get("digits", model="resnet-20").recipe
    assert task.narrower(2410) == f"{name}@0.5"


def test_a_network_of_one_width(networks: Path) -> None:
    name, shape = "my_networks:fixed", (1, 8, 8)
    assert models.parameters(name, shape=shape, classes=10) == 650
    assert catalogue.get("digits", model=name).narrower(100) is None
    with pytest.raises(TaskError, match="does not take `scale`"):
        models.check(f"{name}@0.5", shape=shape)
    with pytest.raises(
        TaskError, match=r"cannot be built for inputs of \(1, 2, 2\) and 10 classes: ValueError: too small"
    ):
        models.build(name, shape=(1, 2, 2), classes=10)


def test_wrong_networks(networks: Path) -> None:
    assert {"wide", "bad"} <= set(models.names())
    with pytest.raises(
        PluginError, match=r"the network 'bad' of the package my-networks 1.2 cannot be used: .*no class or"
    ):
        models.check("bad", shape=(1, 8, 8))
    with pytest.raises(TaskError, match="has no 'Missing'"):
        models.check("my_networks:Missing", shape=(1, 8, 8))
    with pytest.raises(TaskError, match="no network 'wid': did you mean wide"):
        models.check("wid", shape=(1, 8, 8))


def test_a_data_set_of_a_package_is_a_task(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path / "cache"))
    (site / "stripes").mkdir()
    (site / "stripes" / "__init__.py").write_text(DATA)
    (site / "stripes" / "reader.py").write_text(READER)
    install(site, "stripes", {"stripes": "stripes:STRIPES", "mnist": "stripes:STRIPES"}, group="ticketry.data")
    assert "stripes" in catalogue.names()
    assert (catalogue.find_origin("stripes"), catalogue.find_origin("mnist")) == ("stripes 1.2", "built in")
    assert catalogue.describe("stripes").startswith("Stripes: 8x8x1, 2 classes, 8 / 4 / 4 examples")
    task = catalogue.get("stripes")
    assert task.load().train.inputs.shape == (8, 1, 8, 8)
    source = hashlib.sha256((site / "stripes" / "reader.py").read_bytes()).hexdigest()
    assert task.key()["data_source"] == source
    assert [file.name for file in (tmp_path / "cache" / "prepared").iterdir()] == [
        f"stripes-1-{source[:16]}.safetensors"
    ]
    assert "data_source" not in catalogue.get("digits").key()


def test_a_language_model_of_a_package(site: Path, tmp_path: Path) -> None:
    (site / "my_lstms.py").write_text("from ticketry.tasks.models.language import LSTM\n\nclass Mine(LSTM): ...\n")
    offers = {"mine": "my_lstms:Mine", "none": "json:loads"}
    install(site, "my-lstms", offers, group="ticketry.language_models")
    (tmp_path / "text.txt").write_text("abc " * 500)
    for name in ("mine", "my_lstms:Mine"):
        task = catalogue.get(f"text:{tmp_path / 'text.txt'}", model=f"{name}@0.5")
        assert task.build()(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 256)
        assert task.key()["model"] == f"{name}@0.5"
        assert task.key()["source"] == hashlib.sha256((site / "my_lstms.py").read_bytes()).hexdigest()
    assert "source" not in catalogue.get("ptb").key()
    with pytest.raises(
        PluginError, match=r"the language model .none. of the package my-lstms 1\.2 cannot be used: it has no"
    ):
        catalogue.get("ptb", model="none").build()
