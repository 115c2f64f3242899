"""Language modelling tasks: published texts, options, keys, vocabularies and presets."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from a_text import write_text_file
from samples import sample
from ticketry.core.prune import prune
from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import DataError, TaskError, TicketError
from ticketry.experiments.ticket_model import load_ticket_model
from ticketry.tasks import catalogue
from ticketry.tasks.catalogue import LANGUAGE_PRESETS, experiment
from ticketry.tasks.facts import PUBLISHED
from ticketry.tasks.language.task import Language
from ticketry.tasks.models import language
from ticketry.tasks.recipe import recipe_from_dict

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "domains.md").read_text(encoding="utf-8")
DATA = Path(os.environ.get("TICKETRY_DATA") or ROOT.parent / "shared" / "data")


def text(file: Path, **options: str) -> Language:
    task = catalogue.get(f"text:{file}", model=options.pop("model", None), options=options)
    assert isinstance(task, Language)
    return task


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_text_file(tmp_path)


@pytest.mark.parametrize("name", sample(PUBLISHED, ["ptb"]))
def test_published_texts(name: str) -> None:
    if not (DATA / name).is_dir():
        pytest.skip("the data set is not at hand")
    task = catalogue.get(name)
    assert isinstance(task, Language)
    course = task.course(DATA)
    assert " / ".join(f"{tokens:,}" for tokens in PUBLISHED[name].tokens) in catalogue.describe(name)
    assert tuple(course.sizes().values()) == PUBLISHED[name].tokens
    assert course.corpus.vocabulary == PUBLISHED[name].words == task.vocabulary
    assert int(course.corpus.test.tokens.max()) < task.vocabulary
    assert task.metric.scale == "log"


def test_a_published_text_that_is_missing_or_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TICKETRY_DATA", raising=False)
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"Penn Treebank .* was not found"):
        catalogue.get("ptb").course(tmp_path)
    for part in ("train", "valid", "test"):
        (tmp_path / "ptb").mkdir(exist_ok=True)
        (tmp_path / "ptb" / f"ptb.{part}.txt").write_text("some other text\n")
    with pytest.raises(DataError, match="is not the published file"):
        catalogue.get("ptb").course(tmp_path)


def test_the_key_depends_on_content_and_options(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "b.txt"
    copy.parent.mkdir()
    shutil.copy(file, copy)
    assert text(file).key() == text(copy).key()
    copy.with_name("c.txt").write_text(copy.read_text() + "!")
    others = [
        text(copy.with_name("c.txt")),
        *(text(file, **{name: value}) for name, value in {"time": "8", "dropout": "0.5", "validation": "0.1"}.items()),
        text(file, train="900"),
        text(file, model="lstm"),
    ]
    keys = [json.dumps(task.key(), sort_keys=True) for task in (text(file), *others)]
    assert len(set(keys)) == len(keys)
    assert catalogue.create_task(text(file).spec).key() == text(file).key()


def test_options(file: Path) -> None:
    task = text(file, time="9", dropout="0.4", train="1000", model="gpt@0.1")
    assert (task.time, task.dropout, task.recipe.optimizer) == (9, 0.4, "adamw")
    assert task.course().sizes()["train"] == 1000
    assert task.build().dropout.p == 0.4
    example = task.example(3)
    assert (example.shape, example.dtype) == ((3, 9), torch.int64)
    assert task.build()(example).shape == (3, 9, 256)
    assert task.steps_per_epoch(1000, task.recipe.changed(batch=10)) == 12
    assert text(file, model="lstm", time="30").steps_per_epoch(1000, task.recipe.changed(batch=10)) == 4
    assert text(file).recipe.optimizer == "adam"
    assert (text(file).time, catalogue.get("ptb").time, catalogue.get("wikitext-2").time) == (50, 35, 64)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"words": "3"}, "has no option words: it has train, time, dropout, vocabulary, validation, test"),
        ({"time": "0"}, "time of .* at least 1, not '0'"),
        ({"dropout": "1"}, "dropout of .* less than 1, not '1'"),
        ({"test": "0.6", "validation": "0.5"}, "leave some of it to train on"),
    ],
)
def test_wrong_options(file: Path, options: dict[str, str], match: str) -> None:
    with pytest.raises(TaskError, match=match):
        text(file, **options)


def test_wrong_requests() -> None:
    with pytest.raises(TaskError, match="needs to know the text"):
        catalogue.get("text")
    with pytest.raises(TaskError, match="there is no network 'resnet-20'"):
        catalogue.get("ptb", model="resnet-20")
    with pytest.raises(TaskError, match="ptb has no option vocabulary"):
        catalogue.get("ptb", options={"vocabulary": "bytes"})


# -- vocabularies and tickets ------------------------------------------------------------------------------------------


def tokenizer(folder: Path, *words: str) -> Path:
    library = pytest.importorskip("tokenizers")
    numbers = {"[UNK]": 0, **{word: number for number, word in enumerate(words, start=1)}}
    made = library.Tokenizer(library.models.WordLevel(numbers, unk_token="[UNK]"))
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    path = folder / f"{words[0]}.json"
    made.save(str(path))
    return path


def test_a_text_with_a_tokenizer(file: Path, tmp_path: Path) -> None:
    task = text(file, vocabulary=str(tokenizer(tmp_path, "ticket", "wins", "mask")), time="5", model="lstm@0.05")
    assert (task.vocabulary, task.metric.name) == (4, "perplexity")
    tokens = task.course().corpus.train
    assert set(tokens.tokens.tolist()) == {0, 1, 2, 3}
    assert tokens.characters > len(tokens.tokens)


def ticket_of(task: Language, folder: Path) -> Path:
    model = task.build()
    info: dict[str, Any] = {"task": {"name": task.name, "key": json.loads(json.dumps(dict(task.key())))}}
    return Ticket(prune(model, 0.5, collapse="keep"), model.state_dict(), info).save(folder)


def test_a_ticket_needs_its_vocabulary(file: Path, tmp_path: Path) -> None:
    small, same, larger = (
        text(file, vocabulary=str(tokenizer(tmp_path, *words)), model="lstm@0.05")
        for words in (("ticket", "wins"), ("mask", "net"), ("a", "the", "dense"))
    )
    ticket = ticket_of(small, tmp_path / "ticket")
    for other in (same, larger, text(file, model="lstm@0.05")):
        with pytest.raises(TicketError, match=r"vocabulary is tokenizer of size 3 .*, and that of (text|ptb)"):
            load_ticket_model(ticket, task=other, weights="start")
    assert load_ticket_model(ticket, task=small, weights="start").mask.density == pytest.approx(0.5, abs=0.01)
    assert text(ROOT / "README.md").unfit(text(file).key()) == ""  # any two texts have the same bytes


# -- presets -----------------------------------------------------------------------------------------------------------


def test_presets_are_those_of_the_page() -> None:
    rows = dict(re.findall(r"^\| ([\w-]+) \| (\S+, [\w-]+ \| \w+ \| \d+ \| .*?) \|$", PAGE, re.MULTILINE))
    assert list(rows) == list(LANGUAGE_PRESETS)
    for name, row in rows.items():
        network, length, batch, rate, tokens = row.split(" | ")
        tables = experiment(name)
        assert network == f"{tables['model']}, {tables['task']}"
        recipe = recipe_from_dict(tables["recipe"])
        assert (length, batch) == (recipe.length, str(recipe.batch))
        assert rate.lower() == f"{recipe.lr} ({recipe.optimizer})"
        assert tokens == (f"{int(tables['options']['train']):,}" if tables["options"] else "all")
        language.check(tables["model"])
        assert catalogue.get(tables["task"], model=tables["model"], options=tables["options"]).key()


def test_a_request_has_the_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.txt").write_text("some words " * 50)
    monkeypatch.chdir(tmp_path)
    found = catalogue.get("text:own.txt", model="lstm@0.25", options={"validation": "0.1"})
    monkeypatch.chdir("/")
    again = catalogue.create_task(found.spec)
    assert again.key() == found.key()
    assert found.spec.name == f"text:{tmp_path}/own.txt"
