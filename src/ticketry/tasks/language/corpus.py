"""Read custom and published texts in three splits, and encode them as tokens of a vocabulary."""

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
from ticketry.files import describe_os_error, is_file, iterate_below
from ticketry.tasks.data.locate import Collection, Layout, Place, find_or_download, read_text, read_verified
from ticketry.tasks.facts import PUBLISHED

PARTS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""The names, without suffixes, that the file of each split may have."""
SUFFIXES = (".txt", ".txt.gz", ".txt.xz", ".md", ".text", "")


@dataclass(frozen=True)
class Content:
    """The training, validation and test split of a text, each as bytes of valid UTF-8."""

    train: bytes
    validation: bytes
    test: bytes


def read_splits(path: Path, *, validation: Fraction, test: Fraction) -> Content:
    """Read a text from a file or a folder, in three splits.

    If a folder has a file for each split (train.txt, valid.txt, test.txt, also as .gz or .xz), these are the splits. In
    any other folder, the files *.txt, *.md and *.text (also as .gz or .xz) are concatenated in the order of their
    paths. From such a text, or from a single file, the shares `validation` and `test` are split off at the end.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such text: name a file, or a folder of text files, as --task text:PATH")
    if path.is_dir():
        parts = {}
        for split, names in PARTS.items():
            choices = (path / f"{name}{suffix}" for name in names for suffix in SUFFIXES)
            if existing := next((choice for choice in choices if choice.is_file()), None):
                parts[split] = existing
        if len(parts) == len(PARTS):
            return Content(**{split: read_text(file) for split, file in parts.items()})
    files = _list_files(path) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} has no text files (*.txt, *.md, *.text, also as .gz or .xz)")
    return _split_text(b"".join(map(read_text, files)), validation, test, path)


def _list_files(folder: Path) -> list[Path]:
    kinds = tuple(suffix for suffix in (*SUFFIXES, ".md.gz", ".text.gz", ".md.xz", ".text.xz") if suffix)
    try:
        found = [path for path in iterate_below(folder) if path.name.endswith(kinds) and is_file(path)]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {describe_os_error(error)}") from error
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _split_text(content: bytes, validation: Fraction, test: Fraction, path: Path) -> Content:
    """Split a text into training, validation and test text, in this order, without cutting a character."""
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
    """Encodes a text as a sequence of token numbers."""

    @property
    def size(self) -> int:
        """Number of different tokens."""

    def encode(self, content: bytes, where: str) -> Tensor:
        """Return the token numbers [n] of the text `content`, in a small integer type; `where` names it in errors."""

    def describe(self) -> dict[str, object]:
        """Return values that identify the vocabulary in keys of stored results."""


@dataclass(frozen=True)
class Bytes:
    """The vocabulary in which each byte is a token; it is the same for all texts."""

    size: int = 256

    def encode(self, content: bytes, where: str) -> Tensor:
        return torch.frombuffer(bytearray(content), dtype=torch.uint8)

    def describe(self) -> dict[str, object]:
        return {"kind": "bytes", "size": self.size}


@dataclass(frozen=True)
class Words:
    """A vocabulary of words (separated by blanks and line ends), in the order in which a training text has them."""

    numbers: dict[str, int]

    @classmethod
    def from_text(cls, content: bytes) -> Words:
        """Return the vocabulary of all words of a training text."""
        numbers: dict[str, int] = {}
        for word in _split_words(content):
            numbers.setdefault(word, len(numbers))
        return cls(numbers)

    @property
    def size(self) -> int:
        return len(self.numbers)

    def encode(self, content: bytes, where: str) -> Tensor:
        try:
            found = np.fromiter((self.numbers[word] for word in _split_words(content)), np.int32)
        except KeyError as error:
            raise DataError(f"{where} has the word {error.args[0]!r}, which the training text does not have") from None
        return torch.from_numpy(found)

    def describe(self) -> dict[str, object]:
        joined = "\n".join(self.numbers).encode()
        return {"kind": "words", "size": self.size, "digest": hashlib.sha256(joined).hexdigest()}


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary in a file of the library tokenizers, such as tokenizer.json of a Hugging Face model."""

    path: Path

    @property
    def size(self) -> int:
        return _vocabulary_size(self.path)

    def encode(self, content: bytes, where: str) -> Tensor:
        text = content.decode("utf-8")
        try:
            numbers = self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises plain exceptions
            raise DataError(
                f"the tokenizer {self.path} cannot read {where} ({error}): give it a token for what it does not know"
            ) from None
        if not numbers:
            raise DataError(f"the tokenizer {self.path} makes no tokens of {where}")
        if (lost := _find_dropped_text(self._tokenizer, text)) is not None:
            raise DataError(
                f"the tokenizer {self.path} leaves out some of {lost!r} in {where}, for which it has no token: train it"
                " on that text too, or give it an unk_token or byte_fallback"
            )
        return torch.tensor(numbers, dtype=torch.int32)

    def describe(self) -> dict[str, object]:
        return {"kind": "tokenizer", "size": self.size, "digest": hashlib.sha256(_read_bytes(self.path)).hexdigest()}

    @property
    def _tokenizer(self) -> Any:
        return _load_tokenizer(self.path)


def _split_words(content: bytes) -> list[str]:
    lines = content.decode("utf-8").removesuffix("\n").split("\n")
    return [word for line in lines for word in (*line.split(), END_OF_LINE)]


@lru_cache(maxsize=4)
def _load_tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer as Library
    except ImportError:
        raise MissingExtraError("tokenizers", "text", f"the vocabulary {path}") from None
    try:
        return Library.from_str(_read_bytes(path).decode("utf-8"))
    except Exception as error:  # the library raises plain exceptions
        raise DataError(f"{path} is no file of the library tokenizers: {error}") from None


@lru_cache(maxsize=4)
def _vocabulary_size(path: Path) -> int:
    """Return 1 + the largest token number of the tokenizer in the file `path`."""
    return max(_load_tokenizer(path).get_vocab().values(), default=-1) + 1


def _find_dropped_text(tokenizer: Any, text: str) -> str | None:
    """Return a part of `text` that the tokenizer would silently leave out; None if it encodes all of the text.

    A byte-pair tokenizer leaves out text for which it has no token, if it also lacks a token for unknown text. Other
    kinds of tokenizers raise an error.
    """
    model = tokenizer.model
    if type(model).__name__ != "BPE" or model.unk_token is not None or model.byte_fallback:
        return None
    seen = set[str]()
    added = "|".join(re.escape(one.content) for one in tokenizer.get_added_tokens_decoder().values())
    for part in re.split(added, text) if added else [text]:  # added tokens are found first
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


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"the vocabulary {path} cannot be read: {error.strerror}; name a file tokenizer.json") from None


VERSION = 1
"""Version of the tokens of published texts, as part of keys of stored results; increased when a token changes."""


@dataclass(frozen=True)
class Part:
    """The tokens of a split, [n], and the number of characters of its text (0 if unknown)."""

    tokens: Tensor
    characters: int = 0


@dataclass(frozen=True)
class Corpus:
    """The three splits of a text as tokens, and the size of its vocabulary."""

    train: Part
    validation: Part
    test: Part
    vocabulary: int
    """Number of different tokens."""


@dataclass(frozen=True)
class _Files:
    """Possible locations of the files of a published text, with the digests of the decompressed files."""

    layouts: tuple[Layout, ...]
    md5: tuple[str, str, str]


_PTB = ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")
_FILES = {
    "ptb": _Files(
        (Layout("ptb", _PTB, ("", ".gz")), Layout("simple-examples/data", _PTB)),
        ("f26c4b92c5fdc7b3f8c7cdcb991d8420", "aa0affc06ff7c36e977d7cd49e3839bf", "8b80168b89c18661a38ef683c0dc3721"),
    ),
    "wikitext-2": _Files(
        (Layout("wikitext-2", ("train.txt", "valid.txt", "test.txt"), ("", ".gz")),),
        ("34a77ebe59551b3a3b3d8c0a2797c976", "d756d22ab2310e7e60c094bea5c5a8eb", "781c9418ab9414bd09e4aad825aae752"),
    ),
}


def collection(name: str) -> Collection:
    """Return where to look for the files of the published text `name`, which ticketry does not download."""
    return Collection(PUBLISHED[name].title, _FILES[name].layouts, origins=())


@lru_cache(maxsize=2)
def load_published(name: str, where: tuple[Place, ...]) -> Corpus:
    """Load a published text from one of the folders in `where`, once in each process."""
    known = _FILES[name]
    files = find_or_download(collection(name), where)
    contents = [read_verified(file, md5) for file, md5 in zip(files, known.md5, strict=True)]
    words = Words.from_text(contents[0])
    train, validation, test = (
        Part(words.encode(content, str(file))) for content, file in zip(contents, files, strict=True)
    )
    return Corpus(train, validation, test, words.size)


def digest(text: Content) -> str:
    """Return the SHA-256 (hex) of the three splits of a text."""
    each = [hashlib.sha256(content).hexdigest() for content in vars(text).values()]
    return hashlib.sha256("".join(each).encode()).hexdigest()


def take_fewer(corpus: Corpus, tokens: int) -> Corpus:
    """Return the corpus with only the first `tokens` tokens of its training text."""
    available = len(corpus.train.tokens)
    if tokens > available:
        raise TaskError(f"the option train is {tokens} tokens, and the training text has {available}")
    return Corpus(Part(corpus.train.tokens[:tokens]), corpus.validation, corpus.test, corpus.vocabulary)
