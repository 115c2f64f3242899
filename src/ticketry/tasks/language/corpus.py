"""Texts as tokens: custom or published files in three splits, and the vocabulary made from them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ticketry.errors import DataError, MissingExtraError, TaskError
from ticketry.files import reason_of
from ticketry.folders import is_file, iterate_below
from ticketry.tasks.data.locate import Collection, Layout, Place, obtain, places, text_of, unpacked
from ticketry.tasks.facts import PUBLISHED

PARTS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""Split -> what a file of it may be called, before its suffixes."""
SUFFIXES = (".txt", ".txt.gz", ".txt.xz", ".md", ".text", "")


@dataclass(frozen=True)
class Content:
    """The bytes of a text, valid UTF-8, by split."""

    train: bytes
    validation: bytes
    test: bytes


def read(path: Path, *, validation: Fraction, test: Fraction) -> Content:
    """The text of a file, or of a folder.

    A folder that has a file for each split (train.txt, valid.txt, test.txt, also as .gz or .xz) is used unchanged. Of
    any other all files *.txt, *.md, *.text (and .gz, .xz of them) are read in the order of their paths, one after the
    other. Then, as of a single file, the last shares are the validation and the test split.

    Raises:
        DataError: if there is nothing to read, it cannot be read, or it is no text.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such text: name a file, or a folder of text files, as --task text:PATH")
    if path.is_dir() and (parts := _parts(path)):
        return Content(**{split: text_of(file) for split, file in parts.items()})
    files = _files(path) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} holds no text files (*.txt, *.md, *.text, also as .gz or .xz)")
    return _cut(b"".join(map(text_of, files)), validation, test, path)


def _parts(folder: Path) -> dict[str, Path]:
    """The files of the three splits, if all are there."""
    found = {}
    for split, names in PARTS.items():
        choices = [folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
        existing = next((choice for choice in choices if choice.is_file()), None)
        if existing is None:
            return {}
        found[split] = existing
    return found


def _files(folder: Path) -> list[Path]:
    kinds = tuple(suffix for suffix in (*SUFFIXES, ".md.gz", ".text.gz", ".md.xz", ".text.xz") if suffix)
    try:
        found = [path for path in iterate_below(folder) if path.name.endswith(kinds) and is_file(path)]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {reason_of(error)}") from error
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _cut(content: bytes, validation: Fraction, test: Fraction, path: Path) -> Content:
    """The three splits, each of whole characters."""
    first, second = (int(len(content) * share) for share in (1 - validation - test, 1 - test))
    while first < len(content) and content[first] & 0xC0 == 0x80:  # inside a character
        first += 1
    while second < len(content) and content[second] & 0xC0 == 0x80:
        second += 1
    parts = content[:first], content[first:second], content[second:]
    if not all(parts):
        raise DataError(
            f"{path} has {len(content)} bytes, too few for {float(validation):g} of them to validate and"
            f" {float(test):g} to test on: take more text, or give --option validation= and test="
        )
    return Content(*parts)


END_OF_LINE = "<eos>"


class Vocabulary(Protocol):
    """A tokenizer, which turns a text into tokens."""

    @property
    def size(self) -> int:
        """How many different tokens there are."""

    def encode(self, content: bytes, where: str) -> Tensor:
        """The numbers of the text's tokens, [n], in the smallest type that holds them.

        Raises:
            DataError: naming `where`, for what it has no token for.
        """

    def describe(self) -> dict[str, object]:
        """Identity of the tokenizer, for keys."""


@dataclass(frozen=True)
class Bytes:
    """Every byte is a token: any text has one, and all texts have the same vocabulary."""

    size: int = 256

    def encode(self, content: bytes, where: str) -> Tensor:
        return torch.frombuffer(bytearray(content), dtype=torch.uint8)

    def describe(self) -> dict[str, object]:
        return {"kind": "bytes", "size": self.size}


@dataclass(frozen=True)
class Words:
    """Words between blanks, and the end of each line, by the order in which they first come up in a training text."""

    numbers: dict[str, int]

    @classmethod
    def of(cls, content: bytes) -> Words:
        numbers: dict[str, int] = {}
        for word in _words(content):
            numbers.setdefault(word, len(numbers))
        return cls(numbers)

    @property
    def size(self) -> int:
        return len(self.numbers)

    def encode(self, content: bytes, where: str) -> Tensor:
        try:
            found = np.fromiter((self.numbers[word] for word in _words(content)), np.int32)
        except KeyError as error:
            raise DataError(f"{where} has the word {error.args[0]!r}, which the training text does not have") from None
        return torch.from_numpy(found)

    def describe(self) -> dict[str, object]:
        joined = "\n".join(self.numbers).encode()
        return {"kind": "words", "size": self.size, "digest": hashlib.sha256(joined).hexdigest()}


@dataclass(frozen=True)
class Tokenizer:
    """A file of the library tokenizers, such as tokenizer.json of a model of Hugging Face's."""

    path: Path

    @property
    def size(self) -> int:
        return _numbers_of(self.path)

    def encode(self, content: bytes, where: str) -> Tensor:
        text = content.decode("utf-8")
        try:
            numbers = self._made.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises plain exceptions
            raise DataError(
                f"the tokenizer {self.path} cannot read {where} ({error}): give it a token for what it does not know"
            ) from None
        if not numbers:
            raise DataError(f"the tokenizer {self.path} makes no tokens of {where}")
        if (lost := _left_out(self._made, text)) is not None:
            raise DataError(
                f"the tokenizer {self.path} leaves out some of {lost!r} in {where}, for which it has no token: train it"
                " on that text too, or give it an unk_token or byte_fallback"
            )
        return torch.tensor(numbers, dtype=torch.int32)

    def describe(self) -> dict[str, object]:
        return {"kind": "tokenizer", "size": self.size, "digest": hashlib.sha256(_read(self.path)).hexdigest()}

    @property
    def _made(self) -> Any:
        return _tokenizer(self.path)


def _words(content: bytes) -> list[str]:
    lines = content.decode("utf-8").removesuffix("\n").split("\n")
    return [word for line in lines for word in (*line.split(), END_OF_LINE)]


@lru_cache(maxsize=4)
def _tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer as Library
    except ImportError:
        raise MissingExtraError("tokenizers", "text", f"the vocabulary {path}") from None
    try:
        return Library.from_str(_read(path).decode("utf-8"))
    except Exception as error:  # the library raises plain exceptions
        raise DataError(f"{path} is no file of the library tokenizers: {error}") from None


@lru_cache(maxsize=4)
def _numbers_of(path: Path) -> int:
    """How many numbers tokens have: one's own vocabulary may leave some out, and then it has fewer tokens."""
    return max(_tokenizer(path).get_vocab().values(), default=-1) + 1


def _left_out(tokenizer: Any, text: str) -> str | None:
    """Find a piece of the text that byte pairs would silently drop, because they have neither a token for
    it nor one for unknown text. Other kinds of models refuse such text.
    """
    model = tokenizer.model
    if type(model).__name__ != "BPE" or model.unk_token is not None or model.byte_fallback:
        return None
    seen = set[str]()
    added = "|".join(re.escape(one.content) for one in tokenizer.get_added_tokens_decoder().values())
    for part in re.split(added, text) if added else [text]:  # those are found before anything else is looked at
        for line in part.splitlines(keepends=True):
            plain = line if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(line)
            if tokenizer.pre_tokenizer is None:
                seen.add(plain)
            else:
                seen.update(piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(plain))
    for piece in sorted(seen):
        spans = (token.offsets for token in model.tokenize(piece))
        if sum(end - begin for begin, end in spans) < len(piece.encode()):
            return piece
    return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"the vocabulary {path} cannot be read: {error.strerror}; name a file tokenizer.json") from None


VERSION = 1
"""Version of what is derived from the published files, raised by a change that moves a token."""


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
    """Location of a published text, and its files once unpacked."""

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


def collection(name: str) -> Collection:
    """The files of a published corpus; they have no download."""
    return Collection(PUBLISHED[name].title, _FILES[name].layouts, origins=())


def published(name: str, data: Path | None) -> Corpus:
    """A published corpus, from the folder `data`, $TICKETRY_DATA or the cache folder; loaded once a process.

    Raises:
        DataError: if it is absent, or not what its published digest says.
    """
    return _published(name, places(data))


@lru_cache(maxsize=2)
def _published(name: str, where: tuple[Place, ...]) -> Corpus:
    known = _FILES[name]
    files = obtain(collection(name), where)
    contents = [unpacked(file, md5) for file, md5 in zip(files, known.md5, strict=True)]
    words = Words.of(contents[0])
    train, validation, test = (
        Part(words.encode(content, str(file))) for content, file in zip(contents, files, strict=True)
    )
    return Corpus(train, validation, test, words.size)


def encoded(text: Content, vocabulary: Vocabulary) -> Corpus:
    """A custom text in the tokens of a vocabulary."""
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
