"""The tasks of tables: splits, keys, options, replicates, and what cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ticketry.errors import DataError, TaskError
from ticketry.tasks import catalogue
from ticketry.tasks.facts import UCI
from ticketry.tasks.task import Task

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


def rows_of(found: Task, columns: tuple[int, ...] = (0, 1)) -> list[list[tuple[float, ...]]]:
    """The rows of each part, standardised by nobody's mean: only which is which counts."""
    splits = found.load()
    return [part.targets[:, 0].tolist() for part in (splits.train, splits.validation, splits.test)]


def test_a_table_is_split_into_parts_that_cover_it(file: Path) -> None:
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


def test_splits_differ_and_do_not_depend_on_the_moment(file: Path) -> None:
    one, again, other = (rows_of(task(file, split=number)) for number in ("3", "3", "4"))
    assert one == again
    assert one[2] != other[2]
    assert rows_of(task(file)) == rows_of(task(file, split="0"))  # where one is wanted, the first


def test_each_replicate_has_its_split(file: Path) -> None:
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


def test_the_key_is_of_the_contents(file: Path, tmp_path: Path) -> None:
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


def test_its_request_holds_the_whole_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        ({"validation": "a"}, "the option validation of .* is a share"),
        ({"rows": "3"}, "has no option rows: it has split, validation, target, test, drop"),
        ({"target": ""}, "needs to know what to predict: --target COLUMN"),
    ],
)
def test_options_that_cannot_be(file: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        task(file, **options)


@pytest.mark.parametrize("model", ["resnet-20", "timm:resnet18", "mlp", "mlp-0"])
def test_networks_for_images_are_refused(file: Path, model: str) -> None:
    with pytest.raises(TaskError, match=r"takes images|there is no network 'mlp"):
        task(file, model=model)


def test_options_of_published_tables() -> None:
    with pytest.raises(TaskError, match="uci-yacht has no option target: it has split, validation"):
        catalogue.get("uci-yacht", options={"target": "a"})


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        ("a,b\n" + "1,2\n" * 9, {"target": "c"}, DataError, "has no column 'c': it has a, b"),
        ("a,b\n1,2\n", {"target": "a"}, TaskError, r"has 1 row: at least 10 are needed"),
        ("a\n" + "1\n" * 20, {"target": "a"}, TaskError, "no column but the target"),
        ("a,b\n" + "1,2\n" * 20, {"target": "a"}, TaskError, "the target is 1 in all 16 training rows"),
        ("a,b\n" + "1,2\n" * 10, {"target": "a", "test": "0.9"}, TaskError, "too few for a test part of 0.9"),
        ("a,b\n" + "1,2\n" * 10, {"target": "a", "validation": "0.99"}, TaskError, "too few to hold out 0.99"),
    ],
)
def test_tables_that_nothing_can_be_learnt_from(
    tmp_path: Path, text: str, options: dict[str, str], error: type[Exception], message: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(error, match=message):
        catalogue.get(f"table:{path}", options=options).load()


@pytest.mark.parametrize("name", UCI)
def test_published_tables_are_the_rows_of_their_split(name: str, real_data: Callable[[str], Path]) -> None:
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


def test_the_key_says_what_was_made_of_words_and_missing_values(file: Path, with_words: Path) -> None:
    def key(**options: str) -> object:
        return catalogue.get(f"table:{with_words}", options={"target": "y", **options}).key()

    told = {"categories": {"colour": 2}, "missing": {"rule": "median", "rows_left_out": 0, "filled": 5}}
    assert told.items() <= key().items()
    assert key(missing="drop")["missing"] == {"rule": "drop", "rows_left_out": 5, "filled": 0}
    assert "categories" not in key(drop="colour")
    assert task(file).key() == task(file, missing="drop").key()  # nothing is missing there
    assert not {"categories", "missing"} & set(task(file).key())
    with pytest.raises(DataError, match="line 2, column 'a': the value is missing"):
        key(missing="refuse")
    with pytest.raises(TaskError, match="did you mean median"):
        key(missing="medan")
