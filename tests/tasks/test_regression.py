"""Regression on tables: metrics against scikit-learn, splits, keys, options, and tables that are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_squared_error, r2_score
from torch import nn

from samples import sample
from ticketry.errors import DataError, TaskError
from ticketry.lab.training.precision import Arithmetic
from ticketry.lab.training.supervised import course_of, evaluate
from ticketry.tasks import catalogue
from ticketry.tasks.facts import UCI
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.regression import Regression, standardise_splits
from ticketry.tasks.task import Splits, Task

DRAW = np.random.default_rng(0)
INPUTS = DRAW.normal(size=(1300, 3)) * [1, 100, 0.01] + [5, -300, 0]
TARGET = 1000 + 40 * INPUTS[:, 0] + 0.3 * INPUTS[:, 1] + DRAW.normal(size=1300)
TRAIN, VALIDATION, TEST = (np.arange(a, b) for a, b in ((0, 600), (600, 700), (700, 1300)))


def splits(target: np.ndarray = TARGET, inputs: np.ndarray = INPUTS) -> Splits:
    return standardise_splits(inputs, target, train=TRAIN, validation=VALIDATION, test=TEST, what="the table")


class Plain(Regression):
    name, recipe = "plain", Recipe()

    def build(self) -> nn.Module:
        return nn.Linear(3, 1)

    def load(self, data: Path | None = None) -> Splits:
        return splits()


def test_metrics_are_those_of_scikit_learn() -> None:
    torch.manual_seed(0)
    model, test = nn.Linear(3, 1), splits().test
    found = evaluate(Plain(), course_of(Plain()), model, "test", Arithmetic())
    scale, centre = TARGET[TRAIN].std(), TARGET[TRAIN].mean()
    predicted = model(test.inputs).detach().double().numpy()[:, 0] * scale + centre
    assert found["rmse"] == pytest.approx(mean_squared_error(TARGET[TEST], predicted) ** 0.5, rel=1e-5)
    assert found["r2"] == pytest.approx(r2_score(TARGET[TEST], predicted), rel=1e-4)
    assert found["loss"] == pytest.approx((found["rmse"] / scale) ** 2, rel=1e-5)
    loss = Plain().loss(model(test.inputs), test.targets).detach()
    assert float(loss) == pytest.approx(found["loss"], rel=1e-5)


def test_rows_are_standardised_by_the_training_rows() -> None:
    found = splits()
    assert torch.allclose(found.train.inputs.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(found.train.inputs.std(0, correction=0), torch.ones(3), atol=1e-5)
    expected = (INPUTS[TEST] - INPUTS[TRAIN].mean(0)) / INPUTS[TRAIN].std(0)
    assert np.allclose(found.test.inputs.numpy(), expected, atol=1e-5)
    moved = INPUTS.copy()
    moved[TEST] *= 7
    assert torch.equal(splits(inputs=moved).train.inputs, found.train.inputs)
    back = found.test.targets.double()
    assert np.allclose((back[:, 0] * back[:, 1]).numpy() + TARGET[TRAIN].mean(), TARGET[TEST], rtol=1e-5)


def test_constant_columns_are_centred_and_a_constant_target_is_refused() -> None:
    inputs, target = INPUTS.copy(), TARGET.copy()
    inputs[TRAIN, 1] = 0.1  # its computed deviation is 1.4e-17, not 0
    found = splits(inputs=inputs)
    assert not found.train.inputs[:, 1].any()
    assert np.allclose(found.test.inputs[:, 1].numpy(), inputs[TEST, 1] - 0.1, rtol=1e-5)
    target[TRAIN] = 0.1
    with pytest.raises(TaskError, match=r"the table: the target is 0\.1 in all 600 training rows"):
        splits(target)
    with pytest.raises(TaskError, match=r"no classes to smooth over: set recipe\.label_smoothing to 0"):
        Plain().loss(torch.zeros(2, 1), torch.zeros(2, 2), label_smoothing=0.1)


@pytest.mark.parametrize(("error", "r2"), [(0.0, 1.0), (0.5, 0.0)])
def test_r2_of_equal_targets_is_that_of_scikit_learn(error: float, r2: float) -> None:
    wanted = torch.tensor([[0.3, 2.0]]).repeat(700, 1)
    task, outputs = Plain(), wanted[:, :1] + error
    sums = {name: float(value) for name, value in task.measure(outputs, wanted).items()}
    found = task.summary(sums, 700)
    assert found["r2"] == r2 == r2_score([3.0] * 700, [3.0 + error] * 700)
    assert found["rmse"] == pytest.approx(2 * error)


# -- tasks ------------------------------------------------------------------------------------------------------------

ROWS = 40


@pytest.fixture
def file(tmp_path: Path) -> Path:
    numbers = np.random.default_rng(0).normal(size=(ROWS, 3)).round(3)
    lines = [f"{a},{b},{c},id{i}" for i, (a, b, c) in enumerate(numbers)]
    path = tmp_path / "my table.csv"
    path.write_text("\n".join(["a,b,the target,id", *lines]))
    return path


def task(file: Path, model: str | None = None, **options: str) -> Task:
    return catalogue.get(f"table:{file}", model=model, options={"target": "the target", "drop": "id", **options})


def rows_of(found: Task) -> list[list[tuple[float, ...]]]:
    """Return the standardised targets of each part."""
    splits = found.load()
    return [part.targets[:, 0].tolist() for part in (splits.train, splits.validation, splits.test)]


def test_the_splits_cover_the_table(file: Path) -> None:
    found = task(file, split="0", validation="0.25", test="0.2")
    sizes = [len(part) for part in rows_of(found)]
    assert sizes == [24, 8, 8]
    values = np.genfromtxt(file, delimiter=",", skip_header=1)[:, 2]
    splits = found.load()
    unit = splits.train.targets[0, 1].item()
    everything = torch.cat([part.targets[:, 0] for part in (splits.train, splits.validation, splits.test)]) * unit
    # Up to the mean of the training rows, the parts together hold each number of the column once.
    assert np.allclose(np.diff(np.sort(everything.numpy())), np.diff(np.sort(values)), atol=1e-5)
    assert splits.train.inputs.shape == (24, 2)


def test_splits_depend_on_their_number(file: Path) -> None:
    one, again, other = (rows_of(task(file, split=number)) for number in ("3", "3", "4"))
    assert one == again
    assert one[2] != other[2]
    assert rows_of(task(file)) == rows_of(task(file, split="0"))


def test_each_replicate_has_a_split(file: Path) -> None:
    each = task(file)
    third = catalogue.of_replicate(each, 3)
    assert third.key() == task(file, split="3").key()
    assert third.spec is not None
    assert catalogue.create_task(third.spec).key() == third.key()
    fixed = task(file, split="5")
    assert catalogue.of_replicate(fixed, 3) is fixed
    assert catalogue.of_replicate(catalogue.get("uci-yacht"), 19).key()["split"] == 19
    with pytest.raises(TaskError, match=r"up to 19, or each .* not '20': there are 20, so at most 20 replicates"):
        catalogue.of_replicate(catalogue.get("uci-yacht"), 20)


def test_the_key_depends_on_contents_and_options(file: Path, tmp_path: Path) -> None:
    key = task(file).key()
    assert json.loads(json.dumps(key)) == key
    assert str(tmp_path) not in json.dumps(key)
    copy = tmp_path / "elsewhere" / file.name
    copy.parent.mkdir()
    shutil.copy(file, copy)
    assert task(copy).key() == key
    keys = [
        task(file, **options).key()
        for options in ({"split": "1"}, {"test": "0.2"}, {"validation": "0.2"}, {"target": "a"}, {"drop": "id,b"})
    ]
    assert all(other != key for other in keys)
    assert task(file, model="mlp-50-50").key() != key
    copy.write_text(copy.read_text().replace("id0", "id_0"))
    assert task(copy).key() != key


def test_a_request_has_the_absolute_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    found = catalogue.get(f"table:{file.name}", options={"target": "a", "drop": "id"})
    monkeypatch.chdir("/")
    assert found.spec is not None
    assert catalogue.create_task(found.spec).load().train.inputs.shape == (32, 2)


def test_the_network_takes_the_rows_and_can_be_narrower(file: Path) -> None:
    found = task(file, model="mlp-20-10")
    model = found.build()
    assert model(found.load().train.inputs).shape == (32, 1)
    assert model(found.example(5)).shape == (5, 1)
    small = found.narrower(100)
    assert small is not None
    assert sum(p.numel() for p in task(file, model=small).build().parameters()) <= 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "-1"}, "split of table:.* is a number from 0 on, or each"),
        ({"test": "1"}, "the option test of .* is a share"),
        ({"rows": "3"}, "has no option rows: it has split, validation, target, test, drop"),
        ({"target": ""}, "needs to know what to predict: --target COLUMN"),
    ],
)
def test_wrong_options(file: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        task(file, **options)


def test_wrong_networks_and_options(file: Path) -> None:
    for model in ("resnet-20", "timm:resnet18", "mlp", "mlp-0"):
        with pytest.raises(TaskError, match=r"takes images|there is no network 'mlp"):
            task(file, model=model)
    with pytest.raises(TaskError, match="uci-yacht has no option target: it has split, validation"):
        catalogue.get("uci-yacht", options={"target": "a"})


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        ("a,b\n" + "1,2\n" * 9, {"target": "c"}, DataError, "has no column 'c': it has a, b"),
        ("a,b\n1,2\n", {"target": "a"}, TaskError, r"has 1 row: at least 10 are needed"),
        ("a\n" + "1\n" * 20, {"target": "a"}, TaskError, "no column but the target"),
        ("a,b\n" + "1,2\n" * 10, {"target": "a", "test": "0.9"}, TaskError, "too few for a test part of 0.9"),
        ("a,b\n" + "1,2\n" * 10, {"target": "a", "validation": "0.99"}, TaskError, "too few to hold out 0.99"),
    ],
)
def test_unusable_tables_are_refused(
    tmp_path: Path, text: str, options: dict[str, str], error: type[Exception], message: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(error, match=message):
        catalogue.get(f"table:{path}", options=options).load()


@pytest.mark.parametrize("name", sample(UCI, 3))
def test_published_tables_are_split_as_published(name: str, real_data: Callable[[str], Path]) -> None:
    found = catalogue.get(name, options={"split": "7"})
    splits = found.load(real_data("uci"))
    train, validation, test = len(splits.train), len(splits.validation), len(splits.test)
    assert train + validation + test == UCI[name].rows
    assert validation == pytest.approx(UCI[name].rows * 0.09, abs=1)
    assert found.build()(splits.test.inputs).shape == (test, 1)
    assert splits.train.inputs.mean().abs() < 1e-5


@pytest.fixture
def with_words(tmp_path: Path) -> Path:
    numbers = np.random.default_rng(1).normal(size=(ROWS, 2)).round(3)
    path = tmp_path / "words.csv"
    lines = [f"{'' if i % 8 == 0 else a},{('red', 'blue')[i % 2]},{b}" for i, (a, b) in enumerate(numbers)]
    path.write_text("\n".join(["a,colour,y", *lines]))
    return path


def test_words_and_missing_values_become_numbers(with_words: Path) -> None:
    found = catalogue.get(f"table:{with_words}", options={"target": "y", "split": "0"})
    splits = found.load()
    assert splits.train.inputs.shape[1] == found.example(2).shape[1] == 3
    parts = [part.inputs for part in (splits.train, splits.validation, splits.test)]
    assert all(torch.isfinite(part).all() for part in parts)
    # 0 and 1 before they were standardised: two values, and the two columns of two words mirror each other.
    assert len(splits.train.inputs[:, 1].unique()) == 2
    assert torch.allclose(splits.train.inputs[:, 1], -splits.train.inputs[:, 2], atol=1e-5)
    # All that was filled in is one number, that with as many training rows below as above it.
    every = torch.cat([part[:, 0] for part in parts])
    values, counts = every.unique(return_counts=True)
    filled = values[counts >= 5]  # 40 rows, one in 8; it may be a row's own
    assert len(filled) == 1
    others = splits.train.inputs[:, 0]
    assert (others < filled).sum() == (others > filled).sum()


def test_the_key_describes_words_and_missing_values(file: Path, with_words: Path) -> None:
    def key(**options: str) -> object:
        return catalogue.get(f"table:{with_words}", options={"target": "y", **options}).key()

    described = {"categories": {"colour": 2}, "missing": {"rule": "median", "rows_left_out": 0, "filled": 5}}
    assert described.items() <= key().items()
    assert key(missing="drop")["missing"] == {"rule": "drop", "rows_left_out": 5, "filled": 0}
    assert "categories" not in key(drop="colour")
    assert task(file).key() == task(file, missing="drop").key()  # nothing is missing there
    assert not {"categories", "missing"} & set(task(file).key())
    with pytest.raises(DataError, match="line 2, column 'a': the value is missing"):
        key(missing="refuse")
    with pytest.raises(TaskError, match="did you mean median"):
        key(missing="medan")
