"""A text, a language model and how it is trained, as a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from ticketry.errors import TaskError
from ticketry.records.metric import Metric
from ticketry.tasks.language import corpus as corpora
from ticketry.tasks.language import facts
from ticketry.tasks.language.corpus import Bytes, Content, Corpus, Tokenizer, Vocabulary, read
from ticketry.tasks.language.course import Text, steps_per_epoch
from ticketry.tasks.models import language as models
from ticketry.tasks.options import Options
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Course, Spec, Task

PERPLEXITY = Metric("perplexity", unit="", higher_is_better=False, scale="log")
BITS = Metric("bits_per_character", unit="", higher_is_better=False)

_EVERYWHERE = ("train", "time", "dropout")
_OF_TEXTS = ("vocabulary", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Own:
    """A text of one's own, and how it is read."""

    path: Path
    """A file or a folder."""
    tokenizer: Path | None
    """A file of the library tokenizers; None is bytes."""
    validation: Fraction
    """Share of the text, of one that is not in three files."""
    test: Fraction
    """Likewise."""

    @property
    def vocabulary(self) -> Vocabulary:
        return Tokenizer(self.tokenizer) if self.tokenizer else Bytes()


@dataclass(frozen=True, kw_only=True)
class Language(Task):
    """Predicting each next token of a text."""

    name: str
    """ptb, wikitext-2, or text."""
    own: Own | None
    """Of a text of one's own."""
    model: str
    """Of the network, see `tasks.models.language`."""
    recipe: Recipe
    time: int
    """Tokens in a piece: how far gradients reach back, or all that a model sees that carries nothing along."""
    dropout: float
    train: int = 0
    """Only so many tokens of the training text, the first; 0 is all."""
    spec: Spec | None = None

    @property
    def metric(self) -> Metric:  # type: ignore[override]
        """Perplexity of a token; of bytes, bits per character."""
        return BITS if self.own and self.own.tokenizer is None else PERPLEXITY

    def key(self) -> Mapping[str, object]:
        """What is read and how; not where it lies."""
        return {
            **({"train": self.train} if self.train else {}),
            "name": self.name,
            "data_version": corpora.VERSION,
            **(_own_key(self.own) if self.own else {}),
            **models.identity(self.model),
            "time": self.time,
            "dropout": self.dropout,
        }

    def build(self) -> nn.Module:
        return models.build(self.model, vocabulary=self.vocabulary, context=self.time, dropout=self.dropout)

    def narrower(self, parameters: int) -> str | None:
        return models.narrower(self.model, vocabulary=self.vocabulary, context=self.time, parameters=parameters)

    @property
    def vocabulary(self) -> int:
        """How many different tokens there are."""
        return self.own.vocabulary.size if self.own else facts.PUBLISHED[self.name].words

    def course(self, data: Path | None = None) -> Course:
        return Text(self._corpus(data), self.time, carries=models.carries(self.model))

    def steps_per_epoch(self, examples: int, recipe: Recipe) -> int:
        """Steps in which the text, of so many tokens, is read once; `TaskError` if it is too short for one."""
        return steps_per_epoch(examples, recipe.batch, self.time, carries=models.carries(self.model))

    def unfit(self, key: Mapping[str, object]) -> str:
        """Where numbers stand for other tokens."""
        own: object = self.own.vocabulary.describe() if self.own else _words_of(self.name)  # no text need be there
        theirs = key.get("vocabulary") or _words_of(key.get("name"))
        return "" if own == theirs else f"its vocabulary is {_told(theirs)}, and that of {self.name} {_told(own)}"

    def scored(self, size: int) -> int:
        """No more pieces than a training batch has: scores are the larger the larger the vocabulary is."""
        return min(size, self.recipe.batch)

    def example(self, count: int, data: Path | None = None) -> Tensor:
        """Random tokens, [count, time]; no data are read."""
        return torch.randint(self.vocabulary, (count, self.time), generator=torch.Generator().manual_seed(0))

    def _corpus(self, data: Path | None) -> Corpus:
        found = _own_corpus(self.own) if self.own else corpora.published(self.name, data)
        return corpora.fewer(found, self.train) if self.train else found


def _words_of(text: object) -> str:
    return f"the words of {text}"


def _told(vocabulary: object) -> str:
    if not isinstance(vocabulary, Mapping):
        return str(vocabulary)
    digest = str(vocabulary.get("digest", ""))[:8]
    return f"{vocabulary.get('kind')} of size {vocabulary.get('size')}{digest and f' ({digest}…)'}"


@lru_cache(maxsize=4)
def _content(own: Own) -> Content:
    return read(own.path, validation=own.validation, test=own.test)


@lru_cache(maxsize=4)  # a key is asked for often
def _own_key(own: Own) -> Mapping[str, object]:
    return {"text": corpora.digest(_content(own)), "vocabulary": own.vocabulary.describe()}


@lru_cache(maxsize=4)
def _own_corpus(own: Own) -> Corpus:
    return corpora.encoded(_content(own), own.vocabulary)


def make(spec: Spec) -> Language:
    """The task that a request names: ptb, wikitext-2 or text:PATH, with its options.

    Raises:
        TaskError: for an unknown option, a value that cannot be, or an unknown network.
    """
    kind, _, path = spec.name.partition(":")
    options = Options(spec, (*_EVERYWHERE, *(_OF_TEXTS if kind == facts.TEXT else ())))
    model = spec.model or facts.MODELS[kind]
    models.check(model)
    own = _own(spec.name, path, options) if kind == facts.TEXT else None
    if own is not None:  # a ticket's request is found from another folder too
        spec = replace(options.with_paths(spec, "vocabulary" if own.tokenizer else ""), name=f"{kind}:{own.path}")
    return Language(
        name=kind,
        own=own,
        model=model,
        recipe=facts.recipe_of(kind, model),
        time=options.whole("time", facts.time_of(kind, model), least=1, what="number of tokens"),
        dropout=_dropout(options, facts.dropout_of(model)),
        train=options.whole("train", 0, what="number of tokens"),
        spec=spec,
    )


def _own(name: str, path: str, options: Options) -> Own:
    if not path:
        raise TaskError("the task text needs to know the text: --task text:PATH, a file or a folder of text files")
    shares = {word: options.share(word, "0.05", what="share of the text") for word in ("validation", "test")}
    if sum(shares.values()) >= 1:
        raise TaskError(f"{name}: validation and test are shares of the text that leave some of it to train on")
    vocabulary = options.text("vocabulary", "bytes")
    return Own(
        path=Path(path).expanduser().absolute(),
        tokenizer=None if vocabulary == "bytes" else options.path("vocabulary"),
        **shares,
    )


def _dropout(options: Options, default: float) -> float:
    try:
        value = float(options.text("dropout", str(default)))
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise options.wrong("dropout", "a share, from 0 to less than 1")
    return value
