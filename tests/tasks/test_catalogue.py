from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from ticketry.errors import DataError, TaskError
from ticketry.step import Step
from ticketry.tasks import catalogue, facts, models
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Spec, Task
from ticketry.tasks.user_task import OwnTask

GOOD = """
import torch
from ticketry.errors import DataError
from ticketry.tasks.task import Split, Splits
from ticketry.tasks.task import Classification
from ticketry.tasks.recipe import Recipe

class Own(Classification):
    name = "own"
    recipe = Recipe(lr=0.5)
    def __init__(self, width=3, rate=0.1, deep=False, title="t", model="mlp"):
        self.given = (width, rate, deep, title, model)
    def build(self):
        return torch.nn.Linear(2, self.given[0])
    def load(self, data=None):
        part = Split(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))
        return Splits(part, part, part)

def function(width=4):
    return Own(width=width)

def returns_none():
    pass

def fails():
    raise ValueError("not today")

def refuses():
    raise DataError("no data today")

class Keyed(Own):
    def key(self):
        return {"mine": 1}

class NoLoss(Own):
    loss = Own.__mro__[2].loss

class NoRecipe(Own):
    recipe = {"lr": 0.1}

class NoSmoothing(Own):
    def loss(self, outputs, targets):
        return 0

class NoFolder(Own):
    def load(self):
        return None

instance = Own()
number = 3
c_function = dict
class Holder:
    inner = Own
"""

Written = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """Writes a module into the current directory of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)

    def written(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield written
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_names_and_lines_need_no_torch() -> None:
    code = (
        "import sys; from ticketry.tasks import catalogue\n"
        "print([catalogue.describe(name) for name in catalogue.names()]); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines, imported = done.stdout.splitlines()
    assert imported == "False"
    assert "CIFAR-10, photographs of objects: 32x32x3, 10 classes, 45,000 / 5,000 / 10,000 examples" in lines


@pytest.mark.parametrize("name", facts.DATA_SETS.built_in)
@pytest.mark.parametrize("model", [None, "resnet-20-8"])
def test_built_in_tasks_have_a_model_and_can_be_made_again(name: str, model: str | None) -> None:
    task = catalogue.get(name, model=model)
    assert task.name == name
    assert task.spec == Spec(name, model)
    again = catalogue.create_task(task.spec)
    assert (again.key(), again.recipe) == (task.key(), task.recipe)
    inputs = task.prepare(torch.zeros(2, *facts.DATA_SETS.get(name).shape, dtype=torch.uint8))
    assert task.build()(inputs).shape == (2, facts.DATA_SETS.get(name).classes)
    assert (task.metric.name, task.metric.unit, task.metric.higher_is_better) == ("accuracy", "%", True)


def test_recipe_follows_model_and_data() -> None:
    assert catalogue.get("cifar10").recipe == facts.RESIDUAL
    assert catalogue.get("cifar10", model="vgg-16").recipe == facts.RESIDUAL
    assert catalogue.get("cifar10", model="conv-4").recipe == facts.CONV
    assert catalogue.get("cifar10", model="wrn-28-10").recipe == facts.WIDE
    assert catalogue.get("fashion-mnist", model="lenet-5").recipe == facts.LENET
    assert catalogue.get("digits").recipe == facts.DIGITS
    assert catalogue.get("mnist", model="resnet-20").recipe == facts.RESIDUAL.changed(augment=())
    assert set(facts._IMAGE_RECIPES) == set(models.names())


def test_residual_recipe_is_that_of_open_lth() -> None:
    recipe, per_epoch = facts.RESIDUAL, 351  # 45,000 / 128
    total = recipe.steps(per_epoch)
    assert total == 160 * per_epoch
    milestones = [Step.parse(step).at(total=total, per_epoch=per_epoch) for step in recipe.milestones]
    assert milestones == [80 * per_epoch, 120 * per_epoch]


@pytest.mark.parametrize(
    ("recipe", "epochs"),
    [(facts.WIDE, [60, 120, 160]), (facts.IMAGENET, [30, 60, 80]), (facts.VGG19, [80, 120])],
)
def test_learning_rate_drops_at_the_papers_epochs(recipe: Recipe, epochs: list[int]) -> None:
    per_epoch = 704  # 45,000 / 64
    total = recipe.steps(per_epoch)
    drops = [Step.parse(step).at(total=total, per_epoch=per_epoch) for step in recipe.milestones]
    assert drops == [epoch * per_epoch for epoch in epochs]


def test_lengths_are_the_papers() -> None:
    """Frankle and Carbin 2019 and Frankle et al. 2019, figure 2: 20K, 25K, 30K of 60 examples, 112K of 64."""
    lengths = [facts.DATA_SETS.get("cifar10").recipe_of(name).length for name in ("conv-2", "conv-4", "conv-6")]
    assert lengths == ["20000it", "25000it", "30000it"]
    assert facts.VGG19.steps(704) // 1_000 == 112


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"name": "imagenet"}, r"no task 'imagenet': choose one of digits, mnist, fashion-mnist, cifar10"),
        ({"name": "mnist", "model": "alexnet"}, "no network 'alexnet': choose one of lenet-300-100"),
        ({"name": "digits", "model": "vgg-16"}, "at least 16x16 pixels, not 8x8"),
        ({"name": "mnist", "model": "resnet-18-imagenet"}, "at least 32x32 pixels, not 28x28"),
        ({"name": "mnist", "options": {"a": "1"}}, "mnist has no option a: it has train"),
        ({"name": "mnist", "options": {"train": "1e3"}}, "a number of training examples, not '1e3'"),
    ],
)
def test_wrong_requests(arguments: dict[str, object], reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        catalogue.get(**arguments)


def test_describe_of_an_unknown_task() -> None:
    with pytest.raises(TaskError, match="choose one of digits"):
        catalogue.describe("imagenet")


def test_digits_default_recipe_reaches_its_accuracy() -> None:
    """98.2 % is stated; 96.5 % is eight standard deviations below."""
    task = catalogue.get("digits")
    splits, recipe = task.load(), task.recipe
    torch.manual_seed(0)
    model = task.build()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    inputs = task.prepare(splits.train.inputs)
    for _ in range(recipe.steps(per_epoch=1)):
        for indices in torch.randperm(len(inputs)).split(recipe.batch):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[indices]), splits.train.targets[indices]).backward()
            optimizer.step()
    with torch.no_grad():
        sums = task.measure(model(task.prepare(splits.test.inputs)), splits.test.targets)
    assert task.summary({name: float(value) for name, value in sums.items()}, 400)["accuracy"] > 96.5


@pytest.mark.parametrize("target", ["Own", "function", "instance", "Holder.inner"])
def test_own_task_by_class_function_or_instance(write: Written, target: str) -> None:
    write("mine", GOOD)
    task = catalogue.get(f"mine:{target}")
    assert (task.name, task.recipe.lr, task.spec) == ("own", 0.5, Spec(f"mine:{target}"))
    assert task.build().weight.shape[1] == 2
    again = catalogue.create_task(task.spec)
    assert again.key() == task.key()
    assert json.loads(json.dumps(task.key())) == task.key()


def test_options_are_converted_and_passed_on(write: Written) -> None:
    write("mine", GOOD)
    options = {"width": "5", "rate": "1e-3", "deep": "True", "title": "5x"}
    task = catalogue.get("mine:Own", model="cnn", options=options)
    assert isinstance(task, OwnTask)
    assert task.inner.given == (5, 0.001, True, "5x", "cnn")
    assert task.spec == Spec("mine:Own", "cnn", (("deep", "True"), ("rate", "1e-3"), ("title", "5x"), ("width", "5")))
    assert catalogue.create_task(task.spec).inner.given == task.inner.given
    assert task.key() != catalogue.get("mine:Own", options=options).key()
    assert task.key() == catalogue.get("mine:Own", model="cnn", options={**options, "rate": "0.001"}).key()


@pytest.mark.parametrize(
    ("text", "value"),
    [("-3", -3), ("2.5", 2.5), (".5", 0.5), ("1E5", 1e5), ("false", False), ("nan", "nan"), ("1_0", "1_0"), ("", "")],
)
def test_what_an_option_looks_like(write: Written, text: str, value: object) -> None:
    write("mine", GOOD)
    given = catalogue.get("mine:Own", options={"title": text}).inner.given[3]
    assert (given, type(given)) == (value, type(value))


def test_key_holds_name_source_options_and_own_key(write: Written, tmp_path: Path) -> None:
    import hashlib

    write("mine", GOOD)
    key = catalogue.get("mine:Keyed", options={"width": "2"}).key()
    source = hashlib.sha256((tmp_path / "mine.py").read_bytes()).hexdigest()
    assert key == {"name": "mine:Keyed", "source": source, "options": {"width": 2}, "key": {"mine": 1}}
    write("mine", GOOD + "# changed\n")
    del sys.modules["mine"]  # as in another process
    assert catalogue.get("mine:Keyed", options={"width": "2"}).key()["source"] != source


def test_key_sees_the_module_that_defines_a_re_exported_class(write: Written) -> None:
    write("defining", GOOD)
    write("passing_on", "from defining import Own")
    before = catalogue.get("passing_on:Own").key()
    write("defining", GOOD + "# changed\n")
    del sys.modules["defining"], sys.modules["passing_on"]  # as in another process
    assert catalogue.get("passing_on:Own").key() != before


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("absent:Own", "the module 'absent' cannot be imported from .*ModuleNotFoundError: No module named 'absent'"),
        (":Own", "cannot be imported"),
        ("broken:Own", "cannot be imported from .*SyntaxError"),
        ("exits:Own", "cannot be imported from .*SystemExit: 3"),
        ("mine:Missing", r"the module mine \(.*mine.py\) has no 'Missing'"),
        ("mine:", "has no ''"),
        ("mine:number", "is no task but 3"),
        ("mine:c_function", "is no task but <class 'dict'>"),
        ("mine:returns_none", "returned no task but None"),
        ("mine:fails", r"mine:fails failed with \{\}: ValueError: not today"),
        ("mine:NoLoss", "NoLoss has no loss, see ticketry.tasks.task.Task"),
        ("mine:NoRecipe", "a task's recipe is a Recipe"),
        (
            "mine:NoSmoothing",
            r"loss of NoSmoothing takes \(outputs, targets\) and is called as loss\(outputs, targets, label_smo",
        ),
        ("mine:NoFolder", r"load of NoFolder takes \(\) and is called as load\(data\): too many positional arguments"),
        ("sys:exit", "sys:exit is no task but <built-in function exit>: name a Task, a subclass of Task or a function"),
        ("subprocess:Popen", "subprocess:Popen is no task but <class 'subprocess.Popen'>"),
    ],
)
def test_what_is_no_task_says_why(write: Written, target: str, reason: str) -> None:
    write("mine", GOOD)
    write("broken", "def (")
    write("exits", "raise SystemExit(3)")
    with pytest.raises(TaskError, match=reason):
        catalogue.get(target)


def test_a_tasks_own_error_is_passed_on(write: Written) -> None:
    write("mine", GOOD)
    with pytest.raises(DataError, match="no data today"):
        catalogue.get("mine:refuses")


def test_options_that_do_not_fit(write: Written) -> None:
    write("mine", GOOD)
    with pytest.raises(TaskError, match=r"mine:function takes \(width=4\), but got \{'depth': 3\}"):
        catalogue.get("mine:function", options={"depth": "3"})
    with pytest.raises(TaskError, match="is a task already and takes no options, but got "):
        catalogue.get("mine:instance", options={"depth": "3"})


def test_own_task_hands_every_method_on() -> None:
    methods = {name for name, value in vars(Task).items() if callable(value) and not name.startswith("_")}
    data = {"load", "course", "prepare", "example", "augment", "steps_per_epoch", "scored"}
    others = {"key", "build", "narrower", "loss", "measure", "summary", "of_replicate", "unfit", "untrained"}
    assert methods == data | others
    assert methods <= set(vars(OwnTask))


def test_a_task_without_augmentations_says_so(write: Written) -> None:
    write("mine", GOOD)
    task = catalogue.get("mine:Own")
    inputs = torch.zeros(1, 2)
    assert task.augment(inputs, (), torch.Generator()) is inputs
    assert task.prepare(inputs) is inputs
    with pytest.raises(TaskError, match="the task own has no augmentation 'flip'"):
        task.augment(inputs, ("flip",), torch.Generator())
