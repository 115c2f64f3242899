"""Texts told into classes by a network that was trained before: its weights are where tickets rewind to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ticketry.errors import TaskError
from ticketry.tasks.data.splits import fewer, hold_out, share_of_each
from ticketry.tasks.fine_tuning import labelled_texts
from ticketry.tasks.fine_tuning.labelled_texts import Labelled
from ticketry.tasks.fine_tuning.pretrained import Classifier, Pretrained
from ticketry.tasks.options import Options
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Classification, Spec, Split, Splits

HF = "hf:"
"""What the name of a pre-trained network begins with; its folder follows."""

RECIPE = Recipe(
    length="3ep", batch=32, optimizer="adamw", lr=3e-5, weight_decay=0.01, clip=1.0, schedule="linear", warmup="10%"
)
"""Our own choice, within what is usual for BERT and its like."""
LENGTH = 128
"""Tokens of a text that are read, the first."""
OPTIONS = ("texts", "text", "target", "length", "train", "validation", "test", "pretrained")

VERSION = 1
"""Of how texts are read, split and put into tokens; a change that moves a number raises it."""

_FEWEST = 3
"""Examples of a class: one for each split."""


@dataclass(frozen=True, kw_only=True)
class FineTuning(Classification):
    """A folder of transformers, and texts with labels."""

    folder: Pretrained
    texts: Path | None
    """A file or a folder; None is enough to ask for the recipe."""
    columns: tuple[str, ...] = ("text",)
    """That hold the text, or the two texts."""
    target: str = "label"
    """The column of the label."""
    length: int = LENGTH
    """Tokens of a text that are read, the first."""
    train: int = 0
    """Training examples, as many of each class; 0 is all there are."""
    validation: Fraction = Fraction(1, 10)
    """Share of each class, of a single file."""
    test: Fraction = Fraction(1, 10)
    """Likewise."""
    pretrained: bool = True
    """Whether training starts from the folder's weights, or from random ones."""
    recipe: Recipe = RECIPE
    spec: Spec | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{HF}{self.folder.path.name}"

    def key(self) -> Mapping[str, object]:
        """What is in the folder and in the texts; not where they lie."""
        return {
            "name": HF,
            "data_version": VERSION,
            **self.folder.key(),
            "texts": labelled_texts.digest(self._path),
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
        return self.folder.network(len(self.classes), pretrained=self.pretrained)

    def scored(self, size: int) -> int:
        """No more texts than a training batch has."""
        return min(size, self.recipe.batch)

    def load(self, data: Path | None = None) -> Splits:
        """Inputs are int32 [n, t] or [n, 2, t], see `Pretrained.tokens`; put into tokens once."""
        return self._splits

    def prepare(self, inputs: Tensor) -> Tensor:
        """Without the padding that all texts of the batch have."""
        ids = inputs if inputs.dim() == 2 else inputs[:, 0]
        used = (ids != self.folder.padding).any(0).nonzero()
        return inputs[..., : 1 + int(used[-1]) if len(used) else 1].long()

    def example(self, count: int, data: Path | None = None) -> Tensor:
        """Random tokens, [count, t], of texts that are as long as can be; no texts are read."""
        draw = torch.Generator().manual_seed(0)
        found = torch.randint(self.folder.words - 1, (count, self.length), generator=draw)
        return found + (found >= self.folder.padding)

    @cached_property
    def classes(self) -> list[str]:
        """The labels of the training texts, in the order of the network's outputs."""
        found = self.folder.classes(set(self._parts[0].labels))
        if len(found) < 2:
            raise TaskError(f"{self._path}: all texts have the label {found[0]!r}: there is nothing to learn")
        return found

    @property
    def _path(self) -> Path:
        if self.texts is None:
            raise TaskError(
                f"the task {self.name} needs to know the texts: --option texts=PATH, a file"
                f" ({', '.join(labelled_texts.SUFFIXES)}) with columns text and label, or a folder of such files"
            )
        return self.texts

    @cached_property
    def _parts(self) -> tuple[Labelled, Labelled, Labelled]:
        read = {
            name: labelled_texts.read(file, self.columns, self.target)
            for name, file in labelled_texts.files(self._path).items()
        }
        if "all" not in read:
            return read["train"], read["validation"], read["test"]
        return _cut(read["all"], self.validation, self.test, self._path)

    @cached_property
    def _splits(self) -> Splits:
        number = {label: index for index, label in enumerate(self.classes)}
        splits = []
        for part in self._parts:
            if unknown := sorted(set(part.labels) - set(number)):
                raise TaskError(f"{self._path}: no training text has the label {unknown[0]!r}, and others have")
            targets = torch.tensor([number[label] for label in part.labels])
            splits.append(Split(self.folder.tokens(part.texts, self.length), targets))
        train, validation, test = splits
        return Splits(fewer(train, self.train) if self.train else train, validation, test)


def _cut(found: Labelled, validation: Fraction, test: Fraction, path: Path) -> tuple[Labelled, Labelled, Labelled]:
    """The three splits, shares of each class at random, by the rule of `splits.hold_out`."""
    names, labels = np.unique(np.array(found.labels), return_inverse=True)
    sizes = np.bincount(labels)
    shares = [share_of_each(labels, share) for share in (validation, test)]
    if small := [
        str(name) for name, size, *held in zip(names, sizes, *shares, strict=True) if size < max(_FEWEST, 1 + sum(held))
    ]:
        raise TaskError(f"{path}: the label {small[0]!r} has too few texts for three splits: at least {_FEWEST}")

    def part(rows: np.ndarray) -> Labelled:
        return Labelled(tuple(found.texts[row] for row in rows), tuple(found.labels[row] for row in rows))

    kept, validated, tested = (part(rows) for rows in hold_out(labels, *shares))
    return kept, validated, tested


def make(spec: Spec) -> FineTuning:
    """The task that a request names: hf:FOLDER, with its options. No texts are read.

    Raises:
        TaskError: for a folder without a network, an unknown option, or a value that cannot be.
    """
    options = Options(spec, OPTIONS)
    if spec.model:
        raise TaskError(f"{spec.name} is a network itself: leave --model {spec.model} away")
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
        raise options.wrong("text", "a column, or two with a comma")
    given = {**options.given, **({"texts": str(texts)} if texts else {})}  # found from another folder too
    return FineTuning(
        folder=folder,
        texts=texts,
        columns=columns,
        target=options.text("target", "label"),
        length=_length(options, spec.name, folder),
        train=options.whole("train", 0),
        validation=validation,
        test=test,
        pretrained=options.truth("pretrained", True),
        spec=replace(spec, name=f"{HF}{folder.path}", options=tuple(sorted(given.items()))),
    )


def _length(options: Options, name: str, folder: Pretrained) -> int:
    longest = folder.longest
    length = options.whole("length", min(LENGTH, longest or LENGTH), least=4)
    if longest and length > longest:
        raise TaskError(f"the option length of {name} is {length} tokens, and its network sees at most {longest}")
    return length
