"""A folder of Hugging Face's transformers: a sequence classifier, its weights, its tokenizer. No code in it is run."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.errors import DataError, MissingExtraError, TaskError
from ticketry.files import file_digest, parse_json, reason_of
from ticketry.folders import is_file, list_matching

EXTRA = "transformers"
"""What is installed for it."""

_CONFIG, _WEIGHTS = "config.json", "*.safetensors"
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""How a folder is read: nothing is fetched, no code that lies in it is run, and nobody is asked whether it may."""
_VOCABULARY = ("tokenizer.json", "vocab*", "*.model")
_TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")


class Classifier(nn.Module):
    """A sequence classifier as the other networks here are: a tensor goes in, scores of classes [b, classes] come out.

    Its parameters' names are those of the network of transformers: `module.` is left out of names, as of that which
    DataParallel wraps. So a ticket's mask and weights fit the network without this wrapping too.
    """

    def __init__(self, module: nn.Module, padding: int) -> None:
        super().__init__()
        self.module, self.padding = module, padding

    def forward(self, tokens: Tensor) -> Tensor:
        """
        Args:
            tokens: int64 [b, t], or [b, 2, t]: and which of two texts each is of. Those that are padding are not
                attended to.
        """
        more, ids = {}, tokens
        if tokens.dim() == 3:
            ids, more["token_type_ids"] = tokens.unbind(1)
        found = self.module(input_ids=ids, attention_mask=(ids != self.padding).long(), return_dict=True, **more)
        scores: Tensor = found.logits
        return scores


@dataclass(frozen=True)
class Pretrained:
    """A folder, as `save_pretrained` of a network and of its tokenizer writes it."""

    path: Path

    def key(self) -> dict[str, object]:
        """What is in the folder, and the version of the library, whose code the network is."""
        names = [_CONFIG, _WEIGHTS, *_TOKENIZER]
        found = sorted({file for name in names for file in self._matching(name) if is_file(file)})
        each = [f"{file.name} {_digest(file, *_stamp(file))}" for file in found]
        return {
            "model": str(self._config.get("model_type", "")),
            "folder": hashlib.sha256("\n".join(each).encode()).hexdigest(),
            "library": f"transformers {_version(self.path)}",
        }

    def network(self, classes: int, *, pretrained: bool) -> Classifier:
        """The network in float32, with as many classes.

        What the folder has no weights for, such as the last layer's of other classes, is drawn from torch's global
        random state.

        Args:
            pretrained: whether it has the folder's weights; if not, all are drawn.

        Raises:
            TaskError: if the folder is of no sequence classifier, or has no weights of its body.
        """
        auto, padding = _library(self.path).AutoModelForSequenceClassification, self.padding
        with self._told("a sequence classifier"):
            config = _library(self.path).AutoConfig.from_pretrained(self.path, num_labels=classes, **_LOCAL)
            config.pad_token_id = padding
            if not pretrained:
                return Classifier(auto.from_config(config, dtype=torch.float32, trust_remote_code=False), padding)
            found, loading = auto.from_pretrained(
                self.path,
                config=config,
                dtype=torch.float32,
                **_LOCAL,
                use_safetensors=True,  # never a pickle
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        body = f"{found.base_model_prefix}."
        absent = [name for name in loading["missing_keys"] if name.startswith(body) and "pooler" not in name]
        if absent:
            raise TaskError(
                f"{self.path} has no weights for {absent[0]}: they are of another network than its {_CONFIG}"
            )
        return Classifier(found, padding)

    @property
    def padding(self) -> int:
        """The token that short texts are filled up with.

        Raises:
            TaskError: if there is none.
        """
        padding = self._tokenizer.pad_token_id
        if padding is None:
            raise TaskError(
                f"the tokenizer in {self.path} has no padding token: set tokenizer.pad_token, and save it there"
            )
        return int(padding)

    @property
    def words(self) -> int:
        """Different tokens that the network knows."""
        return int(self._config.get("vocab_size") or len(self._tokenizer))

    def tokens(self, texts: Sequence[tuple[str, ...]], length: int) -> Tensor:
        """int32 [n, t]: the first tokens of each text, at most `length`, filled up to the longest.

        Where the tokenizer tells two texts apart, [n, 2, t]: and which of them each token is of.

        Raises:
            DataError: if the network does not know a token.
            TaskError: if there is no tokenizer, or none that can fill up.
        """
        _ = self.padding  # told in our words if there is none
        with self._told("a tokenizer"):
            made = self._tokenizer(
                *map(list, zip(*texts, strict=True)),
                truncation=True,
                max_length=length,
                padding="longest",
                padding_side="right",
            )
        ids = torch.tensor(made["input_ids"], dtype=torch.int32)
        if int(ids.max()) >= self.words:
            raise DataError(
                f"the tokenizer in {self.path} makes the token {int(ids.max())}, and the network knows {self.words}:"
                " they do not belong together"
            )
        if len(texts[0]) > 1 and "token_type_ids" in made:
            return torch.stack([ids, torch.tensor(made["token_type_ids"], dtype=torch.int32)], 1)
        return ids

    @property
    def longest(self) -> int | None:
        """Tokens that the network can see at once; None if it does not say."""
        positions = self._config.get("max_position_embeddings", self._config.get("n_positions"))
        return int(positions) if positions else None

    def classes(self, labels: set[str]) -> list[str]:
        """Labels in the order of the network's outputs: its own order if it knows them, else by number or letter."""
        own = self._config.get("label2id") or {}
        if set(own) == labels:
            return sorted(labels, key=lambda label: int(own[label]))
        return sorted(labels, key=lambda label: (not label.isdecimal(), int(label) if label.isdecimal() else 0, label))

    def _matching(self, pattern: str) -> list[Path]:
        try:
            return list_matching(self.path, pattern)
        except OSError as error:
            raise TaskError(f"{self.path} cannot be read: {reason_of(error)}") from error

    def check(self) -> None:
        """`TaskError` if the folder lacks what is needed."""
        if not (self.path / _CONFIG).is_file():
            raise TaskError(
                f"{self.path} holds no {_CONFIG}: name a folder with a network of transformers, as save_pretrained of"
                " a network and of its tokenizer writes it"
            )
        if not self._matching(_WEIGHTS):
            raise TaskError(f"{self.path} holds no {_WEIGHTS}: save the network there again with save_pretrained")

    @property
    def _config(self) -> dict[str, Any]:
        self.check()
        file = self.path / _CONFIG
        return _json(file, *_stamp(file))

    @property
    def _tokenizer(self) -> Any:
        if not any(
            file for name in _VOCABULARY for file in self._matching(name)
        ):  # the library would make an empty one
            raise TaskError(
                f"{self.path} holds no tokenizer ({', '.join(_VOCABULARY)}): save it there with its save_pretrained"
            )
        with self._told("a tokenizer"):
            return _tokenizer(self.path)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """What the library says of a folder that it cannot use becomes an error of ours; it tells nothing else."""
        logging = _library(self.path).utils.logging
        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
            told = str(error).strip().partition("\n")[0]
            raise TaskError(f"{self.path} does not hold {what} that transformers can use: {told}") from error
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()


def _library(path: Path) -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", EXTRA, f"the network in {path}") from None
    return transformers


def _version(path: Path) -> str:
    try:
        return metadata.version("transformers")
    except metadata.PackageNotFoundError:
        raise MissingExtraError("transformers", EXTRA, f"the network in {path}") from None


@lru_cache(maxsize=4)
def _tokenizer(path: Path) -> Any:
    return _library(path).AutoTokenizer.from_pretrained(path, **_LOCAL)


def _stamp(file: Path) -> tuple[int, int]:
    """What changes with a file."""
    about = file.stat()
    return about.st_size, about.st_mtime_ns


@lru_cache(maxsize=256)  # a key is asked for often, and weights are large
def _digest(file: Path, size: int, changed: int) -> str:
    return file_digest(file)


@lru_cache(maxsize=16)
def _json(file: Path, size: int, changed: int) -> dict[str, Any]:
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{file} is no configuration")
    return found
