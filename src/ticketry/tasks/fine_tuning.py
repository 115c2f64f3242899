"""Fine-tune a pre-trained network of transformers, stored in a folder, on labelled texts."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ticketry.choices import did_you_mean
from ticketry.errors import DataError, MissingExtraError, TaskError
from ticketry.files import describe_os_error, file_digest, is_file, list_matching, parse_json
from ticketry.tasks.data.locate import read_text
from ticketry.tasks.data.splits import count_share_of_each, hold_out, take_fewer
from ticketry.tasks.file_requests import Options
from ticketry.tasks.language.corpus import PARTS
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Classification, Spec, Split, Splits

SUFFIXES = (".csv", ".tsv", ".jsonl")
"""Suffixes of files with labelled texts: tables with a row of column names, or files with a JSON object per line."""


@dataclass(frozen=True)
class LabelledTexts:
    """Texts, or pairs of texts, and their labels."""

    texts: tuple[tuple[str, ...], ...]
    """[n] tuples of one text or of two texts."""
    labels: tuple[str, ...]
    """[n] the label of each tuple of texts."""

    def __len__(self) -> int:
        return len(self.labels)


def find_text_files(path: Path) -> dict[str, Path]:
    """Return the files of the splits ``train``, ``validation`` and ``test`` in a folder; a file `path` is ``all``."""
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(
                f"{path} does not end in {', '.join(SUFFIXES)}, so its texts and labels cannot be separated"
            )
        return {"all": path}
    if not path.is_dir():
        raise DataError(f"{path}: there are no such texts: name a file or a folder as --option texts=PATH")
    found = {}
    for split, names in PARTS.items():
        choices = [path / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
        existing = next((choice for choice in choices if choice.is_file()), None)
        if existing is None:
            raise DataError(
                f"{path} has no file of the {split} split: a folder of texts holds train, validation and test, each"
                f" {', '.join(SUFFIXES)}; name a single file to have it split at random"
            )
        found[split] = existing
    return found


def read_texts(path: Path, columns: Sequence[str], target: str) -> LabelledTexts:
    """Read the labelled texts of a file.

    Args:
        columns: name of the column with the texts, or names of the two columns with pairs of texts.
        target: name of the column with the labels; numbers and truth values become text.
    """
    texts, labels = [], []
    content = read_text(path).decode("utf-8-sig")
    rows = _parse_jsonl(path, content) if path.suffix == ".jsonl" else _parse_table(path, content)
    for line, row in rows:
        for name in (*columns, target):
            if name not in row:
                hint = did_you_mean(name, list(row))
                raise DataError(f"{path}, line {line} has no column {name!r}: {hint}it has {', '.join(row) or 'none'}")
            if not row[name].strip():
                raise DataError(f"{path}, line {line}, column {name!r} is empty: fill it in, or take the row out")
        texts.append(tuple(row[name] for name in columns))
        labels.append(row[target])
    if not labels:
        raise DataError(f"{path} has no texts")
    return LabelledTexts(tuple(texts), tuple(labels))


def digest_texts(path: Path) -> str:
    """Return the SHA-256 of the contents of the text files at `path`, a file or a folder."""
    each = [f"{split} {hashlib.sha256(read_text(file)).hexdigest()}" for split, file in find_text_files(path).items()]
    return hashlib.sha256("\n".join(each).encode()).hexdigest()


def _parse_table(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    lines = io.StringIO(text, newline="")
    if path.suffix == ".tsv":  # texts contain no tabs, so quotes have no meaning
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    else:
        rows = csv.reader(lines, strict=True)
    names: list[str] = []
    try:
        for cells in rows:
            if not names:
                names = [name.strip() for name in cells]
            elif len(cells) == len(names):
                yield rows.line_num, dict(zip(names, cells, strict=True))
            elif cells:
                raise DataError(f"{path}, line {rows.line_num} has {len(cells)} values, not {len(names)} as the first")
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}") from None


def _parse_jsonl(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    for line, written in enumerate(text.split("\n"), 1):
        if not written.strip():
            continue
        try:
            row = parse_json(written)
            json.dumps(row, ensure_ascii=False).encode()  # JSON can hold half of a surrogate pair, which is not text
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {line} is no JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {line} is no JSON object with a text and a label")
        yield line, {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}


EXTRA = "transformers"
"""Name of the extra of the package ticketry that fine-tuning needs."""

_CONFIG, _WEIGHTS = "config.json", "*.safetensors"
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Arguments for transformers with which nothing is downloaded, and no code in the folder is run."""
_VOCABULARY = ("tokenizer.json", "vocab*", "*.model")
_TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")


class Classifier(nn.Module):
    """Wraps a sequence classifier of transformers as a module that maps a tensor of tokens to logits [b, classes].

    Masks and tickets of this module also fit the wrapped network, because ticketry leaves the prefix `module.` of a
    wrapper out of parameter names.
    """

    def __init__(self, module: nn.Module, padding: int) -> None:
        super().__init__()
        self.module, self.padding = module, padding

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits [b, classes].

        Args:
            tokens: int64 [b, t]; for pairs of texts, [b, 2, t] with tokens, and for each token the number of its text.
                The attention ignores padding.
        """
        more, ids = {}, tokens
        if tokens.dim() == 3:
            ids, more["token_type_ids"] = tokens.unbind(1)
        found = self.module(input_ids=ids, attention_mask=(ids != self.padding).long(), return_dict=True, **more)
        scores: Tensor = found.logits
        return scores


@dataclass(frozen=True)
class Pretrained:
    """A folder with a network and a tokenizer, as `save_pretrained` writes them."""

    path: Path

    def key(self) -> dict[str, object]:
        """Return values that identify the files in the folder, and the version of the library with the network."""
        names = [_CONFIG, _WEIGHTS, *_TOKENIZER]
        found = sorted({file for name in names for file in self._find_files(name) if is_file(file)})
        each = [f"{file.name} {_digest_file(file, *_file_size_and_change_time(file))}" for file in found]
        try:
            version = metadata.version("transformers")
        except metadata.PackageNotFoundError:
            raise MissingExtraError("transformers", EXTRA, f"the network in {self.path}") from None
        return {
            "model": str(self._config.get("model_type", "")),
            "folder": hashlib.sha256("\n".join(each).encode()).hexdigest(),
            "library": f"transformers {version}",
        }

    def build_network(self, classes: int, *, pretrained: bool) -> Classifier:
        """Build the network in float32 with this number of classes.

        Weights that the folder lacks, such as a last layer for other classes, are drawn from torch's global random
        state. If not `pretrained`, all weights are drawn.
        """
        auto, padding = _import_transformers(self.path).AutoModelForSequenceClassification, self.padding
        with self._report_errors("a sequence classifier"):
            config = _import_transformers(self.path).AutoConfig.from_pretrained(self.path, num_labels=classes, **_LOCAL)
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
        """The number of the padding token."""
        padding = self._tokenizer.pad_token_id
        if padding is None:
            raise TaskError(
                f"the tokenizer in {self.path} has no padding token: set tokenizer.pad_token, and save it there"
            )
        return int(padding)

    @property
    def vocabulary_size(self) -> int:
        """Number of different tokens that the network knows."""
        return int(self._config.get("vocab_size") or len(self._tokenizer))

    def tokenize(self, texts: Sequence[tuple[str, ...]], length: int) -> Tensor:
        """Return the first tokens, at most `length`, of each text as int32 [n, t], padded to the longest text.

        If the texts are pairs and the tokenizer marks the two texts, the shape is [n, 2, t], with tokens, and for each
        token the number of its text.
        """
        _ = self.padding  # raises a TaskError if it is missing
        with self._report_errors("a tokenizer"):
            made = self._tokenizer(
                *map(list, zip(*texts, strict=True)),
                truncation=True,
                max_length=length,
                padding="longest",
                padding_side="right",
            )
        ids = torch.tensor(made["input_ids"], dtype=torch.int32)
        if int(ids.max()) >= self.vocabulary_size:
            raise DataError(
                f"the tokenizer in {self.path} makes the token {int(ids.max())}, and the network knows"
                f" {self.vocabulary_size}: they do not belong together"
            )
        if len(texts[0]) > 1 and "token_type_ids" in made:
            return torch.stack([ids, torch.tensor(made["token_type_ids"], dtype=torch.int32)], 1)
        return ids

    @property
    def max_length(self) -> int | None:
        """Largest number of tokens of a text that the network takes; None if its configuration has no limit."""
        positions = self._config.get("max_position_embeddings", self._config.get("n_positions"))
        return int(positions) if positions else None

    def order_classes(self, labels: set[str]) -> list[str]:
        """Return `labels` in the order of the network's outputs if its configuration names all of them, else sorted."""
        own = self._config.get("label2id") or {}
        if set(own) == labels:
            return sorted(labels, key=lambda label: int(own[label]))
        return sorted(labels, key=lambda label: (not label.isdecimal(), int(label) if label.isdecimal() else 0, label))

    def _find_files(self, pattern: str) -> list[Path]:
        try:
            return list_matching(self.path, pattern)
        except OSError as error:
            raise TaskError(f"{self.path} cannot be read: {describe_os_error(error)}") from error

    def check(self) -> None:
        """Raise `TaskError` unless the folder has a configuration and weights."""
        if not (self.path / _CONFIG).is_file():
            raise TaskError(
                f"{self.path} has no {_CONFIG}: name a folder with a network of transformers, as save_pretrained of"
                " a network and of its tokenizer writes it"
            )
        if not self._find_files(_WEIGHTS):
            raise TaskError(f"{self.path} has no {_WEIGHTS}: save the network there again with save_pretrained")

    @property
    def _config(self) -> dict[str, Any]:
        self.check()
        file = self.path / _CONFIG
        return _read_json(file, *_file_size_and_change_time(file))

    @property
    def _tokenizer(self) -> Any:
        if not any(self._find_files(name) for name in _VOCABULARY):  # transformers would create an empty tokenizer
            raise TaskError(
                f"{self.path} has no tokenizer ({', '.join(_VOCABULARY)}): save it there with its save_pretrained"
            )
        with self._report_errors("a tokenizer"):
            return _load_tokenizer(self.path)

    @contextlib.contextmanager
    def _report_errors(self, what: str) -> Iterator[None]:
        """Within the `with` block, turn errors of transformers into `TaskError`, and silence its log messages."""
        logging = _import_transformers(self.path).utils.logging
        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise TaskError(f"{self.path} does not hold {what} that transformers can use: {reason}") from error
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()


def _import_transformers(path: Path) -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", EXTRA, f"the network in {path}") from None
    return transformers


@lru_cache(maxsize=4)
def _load_tokenizer(path: Path) -> Any:
    return _import_transformers(path).AutoTokenizer.from_pretrained(path, **_LOCAL)


def _file_size_and_change_time(file: Path) -> tuple[int, int]:
    about = file.stat()
    return about.st_size, about.st_mtime_ns


@lru_cache(maxsize=256)  # keys are computed often, and weights are large
def _digest_file(file: Path, size: int, changed: int) -> str:
    return file_digest(file)


@lru_cache(maxsize=16)
def _read_json(file: Path, size: int, changed: int) -> dict[str, Any]:
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{file} is no configuration")
    return found


HF = "hf:"
"""Prefix of the names of fine-tuning tasks, hf:FOLDER."""

RECIPE = Recipe(
    length="3ep", batch=32, optimizer="adamw", lr=3e-5, weight_decay=0.01, clip=1.0, schedule="linear", warmup="10%"
)
"""Recipe of fine-tuning: our own choice, within the usual range for BERT."""
LENGTH = 128
"""Default number of tokens after which texts are truncated."""
OPTIONS = ("texts", "text", "target", "length", "train", "validation", "test", "pretrained")

VERSION = 1
"""Version of how texts are read, split and tokenised, as part of keys; increased when results change."""

_FEWEST = 3
"""Smallest number of examples of a class: one for each split."""


@dataclass(frozen=True, kw_only=True)
class FineTuning(Classification):
    """A task that fine-tunes a pre-trained network on labelled texts."""

    folder: Pretrained
    texts: Path | None
    """A file or a folder of text files; None if only the recipe is needed."""
    columns: tuple[str, ...] = ("text",)
    """Name of the column of texts, or names of the two columns of pairs of texts."""
    target: str = "label"
    """Name of the column of labels."""
    length: int = LENGTH
    """Number of tokens after which texts are truncated."""
    train: int = 0
    """Number of training examples, equally many of each class; 0 takes all."""
    validation: Fraction = Fraction(1, 10)
    """Share of each class that is for validation, if `texts` is a single file."""
    test: Fraction = Fraction(1, 10)
    """Share of each class that is for testing, if `texts` is a single file."""
    pretrained: bool = True
    """Whether training starts from the stored weights instead of random weights."""
    recipe: Recipe = RECIPE
    spec: Spec | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{HF}{self.folder.path.name}"

    def key(self) -> Mapping[str, object]:
        """Return values that identify the content of the folder and of the texts, but not their location."""
        return {
            "name": HF,
            "data_version": VERSION,
            **self.folder.key(),
            "texts": digest_texts(self._path),
            "columns": list(self.columns),
            "target": self.target,
            "length": self.length,
            "pretrained": self.pretrained,
            **({"train": self.train} if self.train else {}),
            **({} if self._path.is_dir() else {"validation": float(self.validation), "test": float(self.test)}),
        }

    def untrained(self) -> Mapping[str, str]:
        return {"pretrained": "false"} if self.pretrained else {}

    def build(self) -> Classifier:
        return self.folder.build_network(len(self.classes), pretrained=self.pretrained)

    def scored(self, size: int) -> int:
        """Return the batch size for importance scores: `size`, but at most the training batch size."""
        return min(size, self.recipe.batch)

    def load(self, data: Path | None = None) -> Splits:
        """Return the splits, with inputs int32 [n, t] or [n, 2, t], see `Pretrained.tokenize`."""
        return self._splits

    def prepare(self, inputs: Tensor) -> Tensor:
        """Return a batch of tokens without the last columns that are padding in all texts."""
        ids = inputs if inputs.dim() == 2 else inputs[:, 0]
        used = (ids != self.folder.padding).any(0).nonzero()
        return inputs[..., : 1 + int(used[-1]) if len(used) else 1].long()

    def example(self, count: int, data: Path | None = None) -> Tensor:
        """Return random tokens [count, length] without padding; this reads no texts."""
        draw = torch.Generator().manual_seed(0)
        found = torch.randint(self.folder.vocabulary_size - 1, (count, self.length), generator=draw)
        return found + (found >= self.folder.padding)

    @cached_property
    def classes(self) -> list[str]:
        """The labels of the training texts, in the order of the network's outputs."""
        found = self.folder.order_classes(set(self._labelled_splits[0].labels))
        if len(found) < 2:
            raise TaskError(f"{self._path}: all texts have the label {found[0]!r}: there is nothing to learn")
        return found

    @property
    def _path(self) -> Path:
        if self.texts is None:
            raise TaskError(
                f"the task {self.name} needs to know the texts: --option texts=PATH, a file"
                f" ({', '.join(SUFFIXES)}) with columns text and label, or a folder of such files"
            )
        return self.texts

    @cached_property
    def _labelled_splits(self) -> tuple[LabelledTexts, LabelledTexts, LabelledTexts]:
        texts = {
            name: read_texts(file, self.columns, self.target) for name, file in find_text_files(self._path).items()
        }
        if "all" not in texts:
            return texts["train"], texts["validation"], texts["test"]
        return _split_texts(texts["all"], self.validation, self.test, self._path)

    @cached_property
    def _splits(self) -> Splits:
        number = {label: index for index, label in enumerate(self.classes)}
        splits = []
        for part in self._labelled_splits:
            if unknown := sorted(set(part.labels) - set(number)):
                raise TaskError(f"{self._path}: no training text has the label {unknown[0]!r}, and others have")
            targets = torch.tensor([number[label] for label in part.labels])
            splits.append(Split(self.folder.tokenize(part.texts, self.length), targets))
        train, validation, test = splits
        return Splits(take_fewer(train, self.train) if self.train else train, validation, test)


def _split_texts(
    found: LabelledTexts, validation: Fraction, test: Fraction, path: Path
) -> tuple[LabelledTexts, LabelledTexts, LabelledTexts]:
    """Split labelled texts at random into (training, validation, test) texts, as `splits.hold_out` does."""
    names, labels = np.unique(np.array(found.labels), return_inverse=True)
    sizes = np.bincount(labels)
    shares = [count_share_of_each(labels, share) for share in (validation, test)]
    if small := [
        str(name) for name, size, *held in zip(names, sizes, *shares, strict=True) if size < max(_FEWEST, 1 + sum(held))
    ]:
        raise TaskError(f"{path}: the label {small[0]!r} has too few texts for three splits: at least {_FEWEST}")

    def select(rows: np.ndarray) -> LabelledTexts:
        return LabelledTexts(tuple(found.texts[row] for row in rows), tuple(found.labels[row] for row in rows))

    train, validated, tested = (select(rows) for rows in hold_out(labels, *shares))
    return train, validated, tested


def create_task(spec: Spec) -> FineTuning:
    """Create the task for the request `spec`, hf:FOLDER with options; this reads no texts."""
    options = Options(spec, OPTIONS)
    if spec.model:
        raise TaskError(f"{spec.name} is a network itself: leave --model {spec.model} out")
    if not spec.name.removeprefix(HF):
        raise TaskError("the task hf needs to know the network: --task hf:FOLDER")
    folder = Pretrained(Path(spec.name.removeprefix(HF)).expanduser().absolute())
    folder.check()
    texts = options.path("texts")
    validation, test = (options.share(name) for name in ("validation", "test"))
    if validation + test >= 1:
        raise TaskError(f"{spec.name}: validation and test are shares of the texts that leave some to train on")
    columns = options.names("text", "text")
    if not 1 <= len(columns) <= 2:
        raise options.value_error("text", "a column, or two with a comma")
    longest = folder.max_length
    length = options.whole_number("length", min(LENGTH, longest or LENGTH), least=4)
    if longest and length > longest:
        raise TaskError(f"the option length of {spec.name} is {length} tokens, and its network sees at most {longest}")
    given = {**options.given, **({"texts": str(texts)} if texts else {})}  # an absolute path is found from any folder
    return FineTuning(
        folder=folder,
        texts=texts,
        columns=columns,
        target=options.text("target", "label"),
        length=length,
        train=options.whole_number("train", 0),
        validation=validation,
        test=test,
        pretrained=options.boolean("pretrained", True),
        spec=replace(spec, name=f"{HF}{folder.path}", options=tuple(sorted(given.items()))),
    )
