"""A text in tokens: three splits and a vocabulary."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from ticketry.errors import TaskError
from ticketry.tasks.data.files import unpacked
from ticketry.tasks.data.locate import Collection, Layout, Place, obtain, places
from ticketry.tasks.language.presets import PUBLISHED
from ticketry.tasks.language.text import Content
from ticketry.tasks.language.vocabulary import Vocabulary, Words

VERSION = 1
"""Of what is made of the published files. A change that moves a token raises it."""


@dataclass(frozen=True)
class Part:
    """The tokens of a split, [n], and how many characters they are (0: unknown)."""

    tokens: Tensor
    characters: int = 0


@dataclass(frozen=True)
class Corpus:
    """A text in tokens."""

    train: Part
    validation: Part
    test: Part
    vocabulary: int
    """How many different tokens there are."""


@dataclass(frozen=True)
class _Files:
    """Where a published text lies, and what its files are once unpacked."""

    layouts: tuple[Layout, ...]
    md5: tuple[str, str, str]


_PTB = ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")
_FILES = {
    "ptb": _Files(
        (Layout("ptb", _PTB, ("", ".gz")), Layout("simple-examples/data", _PTB)),
        (
            "f26c4b92c5fdc7b3f8c7cdcb991d8420",
            "aa0affc06ff7c36e977d7cd49e3839bf",
            "8b80168b89c18661a38ef683c0dc3721",
        ),
    ),
    "wikitext-2": _Files(
        (Layout("wikitext-2", ("train.txt", "valid.txt", "test.txt"), ("", ".gz")),),
        (
            "34a77ebe59551b3a3b3d8c0a2797c976",
            "d756d22ab2310e7e60c094bea5c5a8eb",
            "781c9418ab9414bd09e4aad825aae752",
        ),
    ),
}


def published(name: str, data: Path | None) -> Corpus:
    """A published corpus, from the folder `data`, $TICKETRY_DATA or the cache folder; loaded once a process.

    Raises:
        DataError: if it is absent, or not what its published digest says.
    """
    return _published(name, places(data))


@lru_cache(maxsize=2)
def _published(name: str, where: tuple[Place, ...]) -> Corpus:
    known = _FILES[name]
    files = obtain(Collection(PUBLISHED[name].title, known.layouts, origins=()), where)
    contents = [unpacked(file, md5) for file, md5 in zip(files, known.md5, strict=True)]
    words = Words.of(contents[0])
    train, validation, test = (
        Part(words.encode(content, str(file))) for content, file in zip(contents, files, strict=True)
    )
    return Corpus(train, validation, test, words.size)


def encoded(text: Content, vocabulary: Vocabulary) -> Corpus:
    """A text of one's own in the tokens of a vocabulary."""
    parts = {
        split: Part(vocabulary.encode(content, f"the {split} text"), len(content.decode("utf-8")))
        for split, content in vars(text).items()
    }
    return Corpus(**parts, vocabulary=vocabulary.size)


def digest(text: Content) -> str:
    """SHA-256 of a text's three splits."""
    each = [hashlib.sha256(content).hexdigest() for content in vars(text).values()]
    return hashlib.sha256("".join(each).encode()).hexdigest()


def fewer(corpus: Corpus, tokens: int) -> Corpus:
    """The corpus with the first tokens of its training text only.

    Raises:
        TaskError: if there are not so many.
    """
    there = len(corpus.train.tokens)
    if tokens > there:
        raise TaskError(f"the option train is {tokens} tokens, and the training text has {there}")
    return Corpus(Part(corpus.train.tokens[:tokens]), corpus.validation, corpus.test, corpus.vocabulary)
