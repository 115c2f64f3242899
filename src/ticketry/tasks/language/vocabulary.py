"""Vocabularies: from bytes of a text to numbers of tokens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ticketry.errors import DataError, MissingExtraError

END_OF_LINE = "<eos>"


class Vocabulary(Protocol):
    """What turns a text into tokens."""

    @property
    def size(self) -> int:
        """How many different tokens there are."""

    def encode(self, content: bytes, where: str) -> Tensor:
        """The numbers of the text's tokens, [n], in the smallest type that holds them.

        Raises:
            DataError: naming `where`, for what it has no token for.
        """

    def describe(self) -> dict[str, object]:
        """What tells it from another, for keys."""


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
        return int(self._made.get_vocab_size())

    def encode(self, content: bytes, where: str) -> Tensor:
        numbers = self._made.encode(content.decode("utf-8"), add_special_tokens=False).ids
        if not numbers:
            raise DataError(f"the tokenizer {self.path} makes no tokens of {where}")
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"the vocabulary {path} cannot be read: {error.strerror}; name a file tokenizer.json") from None
