"""Language modelling tasks: train and evaluate a model on a text."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from math import exp, log
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ticketry.errors import TaskError
from ticketry.records.metric import Metric
from ticketry.tasks import facts
from ticketry.tasks.data.locate import places
from ticketry.tasks.file_requests import Options
from ticketry.tasks.language import corpus as corpora
from ticketry.tasks.language.corpus import Bytes, Content, Corpus, Part, Tokenizer, Vocabulary, read_splits
from ticketry.tasks.models import language as models
from ticketry.tasks.models.language import LanguageModel, State, cross_entropy
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Arithmetic, Course, PartOfBatch, Ranks, Session, Spec, Task, place_of_part
from ticketry_engine.support.seeds import generator

_ROWS, _ROW = 10, 1000
"""Largest number of rows in which an evaluation reads a split, and smallest number of tokens of a row."""
_FEWEST = 2
"""Smallest number of tokens of a split, because the first token is not predicted."""
_LARGEST = 69.0
"""Largest loss, in nats, for which the perplexity is computed; records cannot store larger perplexities."""


class Piece(NamedTuple):
    """The batch of a training step; each row is a piece of the text."""

    tokens: Tensor
    """int64 [b, t] tokens of the pieces."""
    targets: Tensor
    """int64 [b, t] the next token after each token."""
    begins: bool
    """Whether the model reads the pieces from its initial state, instead of continuing from earlier pieces."""
    place: PartOfBatch | None = None
    """Which rows of the batch these are, if several processes train together."""


class TextCourse(Course):
    """Trains and evaluates language models on a corpus, in pieces of `time` tokens.

    Args:
        corpus: the text as tokens.
        time: number of tokens of a piece.
        carries: whether the model is recurrent, so that it carries a state from piece to piece.
        ranks: this process, if several processes train a network together.
    """

    def __init__(self, corpus: Corpus, time: int, *, carries: bool, ranks: Ranks | None = None) -> None:
        self.corpus, self.time, self.carries, self.ranks = corpus, time, carries, ranks

    def sizes(self) -> dict[str, int]:
        return {split: len(self._get_split(split).tokens) for split in ("train", "validation", "test")}

    def session(self, recipe: Recipe, seed: int, arithmetic: Arithmetic) -> Session:
        """Return a new training run; raise `TaskError` for a recipe with augmentations or label smoothing."""
        if recipe.augment:
            raise TaskError(f"a text has no augmentation {recipe.augment[0]!r}: choose a recipe without it")
        if recipe.label_smoothing:
            raise TaskError(
                "perplexity is measured on the text itself: leave label smoothing out (--recipe.label-smoothing 0)"
            )
        for split in ("validation", "test"):
            if (count := len(self._get_split(split).tokens)) < _FEWEST:
                raise TaskError(
                    f"the text's {split} split has {count} token: each but the first is predicted, so give it"
                    f" {_FEWEST} or more"
                )
        steps_per_epoch(len(self.corpus.train.tokens), recipe.batch, self.time, carries=self.carries)
        return TextSession(self, recipe.batch, seed, arithmetic)

    def evaluate(self, model: nn.Module, split: str, arithmetic: Arithmetic) -> dict[str, float]:
        """Return the mean loss per token in nats, the perplexity and, if possible, the bits per character.

        Bits per character need the number of characters of the split. Each token of the split except the first is
        predicted once. The split is read in at most 10 rows; recurrent models carry their state along each row.
        """
        part = self._get_split(split)
        count = len(part.tokens) - 1
        rows = min(_ROWS, max(1, count // _ROW))
        length = -(-count // rows)
        known = (torch.arange(rows * length) < count).view(rows, length)
        padded = part.tokens.new_zeros(rows * length + 1)
        padded[: count + 1] = part.tokens
        tokens, targets = padded[:-1].view(rows, length), padded[1:].view(rows, length)
        loss = self._sum_cross_entropy(model, tokens, targets, known, arithmetic) / count
        found = {"loss": loss, "perplexity": exp(min(loss, _LARGEST))}
        if part.characters:
            found["bits_per_character"] = loss / log(2) * len(part.tokens) / part.characters
        return found

    def _sum_cross_entropy(
        self, model: nn.Module, tokens: Tensor, targets: Tensor, known: Tensor, arithmetic: Arithmetic
    ) -> float:
        """Return the sum of the losses of those `targets` [rows, length] for which `known` is True.

        Of several processes each computes the losses of some rows, which are added in the order of ranks. A process
        without rows reads the first row without counting its loss, because with sharded parameters all processes must
        call the network equally often.
        """
        if self.ranks is not None:
            place = place_of_part(len(tokens), self.ranks.rank, self.ranks.world)
            rows = slice(place.first, place.first + place.own) if place.own else slice(1)
            tokens, targets, known = tokens[rows], targets[rows], known[rows] & bool(place.own)
        tokens, targets, known = (each.to(arithmetic.device) for each in (tokens, targets, known))
        total = torch.zeros((), dtype=torch.float64, device=arithmetic.device)
        assert isinstance(model, LanguageModel)
        state = model.begin(len(tokens))
        for at in range(0, tokens.shape[1], self.time):
            piece = slice(at, at + self.time)
            with arithmetic.autocast():
                costs, state = model(tokens[:, piece].long(), state, targets[:, piece].long())
            total += (costs.double() * known[:, piece]).sum()
        return float(total) if self.ranks is None else sum(self.ranks.gather(float(total)), 0.0)

    def sample(self, model: nn.Module, count: int, size: int, seed: int) -> list[Any]:
        """Return `count` batches of random pieces; a recurrent model reads each piece from its initial state.

        A batch has `size` pieces, or fewer if the text has fewer pieces.
        """
        tokens, draw = self.corpus.train.tokens, generator(seed, "pieces")
        last = len(tokens) - self.time - 1
        device, found = next(model.parameters()).device, []
        for _ in range(count):
            begin = torch.randint(0, max(last, 0) + 1, (min(size, max(len(tokens) // self.time, 1)),), generator=draw)
            places = begin[:, None] + torch.arange(min(self.time, len(tokens) - 1))
            found.append(Piece(tokens[places].long().to(device), tokens[places + 1].long().to(device), True))
        return found

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(model(batch.tokens), batch.targets).mean()

    def count(self, batch: Any) -> int:
        return len(batch.tokens)

    def inputs(self, count: int) -> Tensor:
        """Return the first `count` pieces of the training text, [count, time]."""
        tokens = self.corpus.train.tokens
        time = max(min(self.time, len(tokens) // count), 1)
        return tokens[: count * time].view(-1, time).long()

    def cut(self, ranks: Ranks) -> TextCourse:
        return TextCourse(self.corpus, self.time, carries=self.carries, ranks=ranks)

    def check_cut(self, model: nn.Module, recipe: Recipe, world: int) -> None:
        """Raise `TaskError` unless each of `world` processes gets at least one row or piece of every batch."""
        pieces = len(self.corpus.train.tokens) // self.time
        last = recipe.batch if self.carries else min(pieces % recipe.batch or recipe.batch, pieces)
        for batch, which in ((recipe.batch, "a batch"), (last, "the last batch of an epoch")):
            if batch < world:
                raise TaskError(
                    f"{which} of a text has {batch} {'rows' if self.carries else 'pieces'}, fewer than the {world}"
                    " devices that would train on it: choose fewer devices or another --recipe.batch"
                )

    def _get_split(self, split: str) -> Part:
        part: Part = getattr(self.corpus, split)
        return part


class TextSession(Session):
    """A training run on a text.

    For a recurrent model, each row of a batch continues the same row of the previous batch, with the model's state. A
    model without state reads the pieces in a new random order in each epoch. If several processes train together, each
    reads the same rows of every batch, and has only their states.
    """

    def __init__(self, course: TextCourse, batch: int, seed: int, arithmetic: Arithmetic) -> None:
        self._text = course.corpus.train.tokens.to(arithmetic.device)
        self._batch, self._time, self._carries, self._ranks = batch, course.time, course.carries, course.ranks
        self._seed, self._arithmetic = seed, arithmetic
        self.gathers = self._carries and self._ranks is not None
        self._carried: dict[str, State] = {}
        self._epoch = -1

    def batches(self, steps: range) -> Generator[Piece, None, None]:
        per_epoch = steps_per_epoch(len(self._text), self._batch, self._time, carries=self._carries)
        for step in steps:
            epoch, number = divmod(step, per_epoch)
            if epoch != self._epoch:
                self._start_epoch(epoch)
            if self._carries:
                piece = slice(number * self._time, (number + 1) * self._time)
                tokens, targets = self._tokens[:, piece], self._targets[:, piece]
            else:
                order = self._order[number * self._batch : (number + 1) * self._batch]
                tokens, targets = self._tokens[order], self._targets[order]
            place = self._place_of_rows(len(tokens))
            rows = slice(None) if place is None else slice(place.first, place.first + place.own)
            yield Piece(tokens[rows].long(), targets[rows].long(), number == 0 or not self._carries, place)

    def _start_epoch(self, epoch: int) -> None:
        """Rotate the text by a random number of tokens, and divide it into rows, or into pieces in a random order."""
        self._epoch, count = epoch, len(self._text)
        shape = (self._batch, count // self._batch) if self._carries else (count // self._time, self._time)
        shift = int(torch.randint(0, count, (), generator=generator(self._seed, "turn", epoch)))
        rotated, used = torch.cat([self._text[shift:], self._text[: shift + 1]]), shape[0] * shape[1]
        self._tokens, self._targets = rotated[:used].view(shape), rotated[1 : used + 1].view(shape)
        if not self._carries:
            order = torch.randperm(shape[0], generator=generator(self._seed, "order", epoch))
            self._order = order.to(self._text.device)

    def _place_of_rows(self, rows: int) -> PartOfBatch | None:
        """Return which of a batch's rows this process reads; None if a single process trains."""
        return None if self._ranks is None else place_of_part(rows, self._ranks.rank, self._ranks.world)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of this process's rows, scaled so that the mean over processes is the whole batch's loss."""
        loss = self._call_model(model, batch, "", targets=batch.targets).mean()
        if self._ranks is not None:
            loss = loss * (batch.place.own * self._ranks.world / batch.place.whole)
        return loss

    def outputs(self, model: nn.Module, batch: Any, of: str = "") -> tuple[Tensor, Tensor]:
        scores = self._call_model(model, batch, of)
        return scores.flatten(0, 1).float(), batch.targets.flatten()

    def _call_model(self, model: nn.Module, piece: Piece, of: str, targets: Tensor | None = None) -> Tensor:
        """Call the model and store its state under the name `of`; return losses, or scores without `targets`."""
        plain = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        assert isinstance(plain, LanguageModel)
        fresh = piece.begins or of not in self._carried
        state = plain.begin(len(piece.tokens)) if fresh else self._carried[of]
        drawing = nullcontext() if self._ranks is None or piece.place is None else self._ranks.drawing(piece.place)
        with drawing, self._arithmetic.autocast():
            result, after = model(piece.tokens, state, targets)
        self._carried[of] = {name: value.detach().to(state[name].dtype) for name, value in after.items()}
        found: Tensor = result
        return found

    def state(self) -> dict[str, Tensor]:
        """Return the state tensors of all networks that read the text, by names of the form ``network:entry``.

        The state has the rows of all processes, as in a single process.
        """
        own = {
            f"{of}:{name}": value.to("cpu", copy=True).contiguous()
            for of, entries in self._carried.items()
            for name, value in entries.items()
        }
        if self._ranks is None or not self.gathers:
            return own
        found = self._ranks.gather(own)
        return {name: torch.cat([each[name] for each in found]) for name in found[0]}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        place = self._place_of_rows(self._batch) if self.gathers else None
        rows = slice(None) if place is None else slice(place.first, place.first + place.own)
        self._carried = {}
        for key, value in state.items():
            of, _, name = key.partition(":")
            self._carried.setdefault(of, {})[name] = value[rows].to(self._arithmetic.device)

    def follows(self, model: nn.Module) -> Mapping[str, tuple[int, str, int]]:
        assert isinstance(model, LanguageModel)
        return {f"{of}:{name}": place for of in ("", "bare") for name, place in model.follows.items()}


def steps_per_epoch(tokens: int, batch: int, time: int, *, carries: bool) -> int:
    """Return the number of training steps that read a text of `tokens` tokens once."""
    steps = -(-(tokens // batch) // time) if carries else -(-(tokens // time) // batch)
    if not steps:
        raise TaskError(
            f"a training text of {tokens} tokens is too short for batches of {batch}, in pieces of {time}: take more"
            " text, --recipe.batch or --option time= smaller"
        )
    return steps


PERPLEXITY = Metric("perplexity", unit="", higher_is_better=False, scale="log")
BITS = Metric("bits_per_character", unit="", higher_is_better=False)

_COMMON_OPTIONS = ("train", "time", "dropout")
_CUSTOM_TEXT_OPTIONS = ("vocabulary", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class CustomText:
    """A custom text: where it is, how it is encoded, and how it is split."""

    path: Path
    """The file or folder with the text."""
    tokenizer: Path | None
    """A file of the library tokenizers; None means that each byte is a token."""
    validation: Fraction
    """Share of the text that is for validation, unless each split has a file."""
    test: Fraction
    """Share of the text that is for testing, unless each split has a file."""

    @property
    def vocabulary(self) -> Vocabulary:
        return Tokenizer(self.tokenizer) if self.tokenizer else Bytes()


@dataclass(frozen=True, kw_only=True)
class Language(Task):
    """A language modelling task: predict the next token of a text."""

    name: str
    """Name of the text: ``ptb``, ``wikitext-2``, or ``text`` for a custom text."""
    own: CustomText | None
    """The custom text; None for a published text."""
    model: str
    """Name of the network, see `tasks.models.language`."""
    recipe: Recipe
    time: int
    """Tokens of a piece: the length of back-propagation through time, or the context of a model without state."""
    dropout: float
    train: int = 0
    """Number of tokens of the training text, from its start; 0 takes all."""
    spec: Spec | None = None

    @property
    def metric(self) -> Metric:  # type: ignore[override]
        """The metric of the task: bits per character if each byte is a token, else perplexity."""
        return BITS if self.own and self.own.tokenizer is None else PERPLEXITY

    def key(self) -> Mapping[str, object]:
        """Return values that identify the text and the model, but not where the text is."""
        return {
            **({"train": self.train} if self.train else {}),
            "name": self.name,
            "data_version": corpora.VERSION,
            **(_custom_text_key(self.own) if self.own else {}),
            **models.network_key(self.model),
            "time": self.time,
            "dropout": self.dropout,
        }

    def build(self) -> nn.Module:
        return models.build(self.model, vocabulary=self.vocabulary, context=self.time, dropout=self.dropout)

    def narrower(self, parameters: int) -> str | None:
        return models.narrower(self.model, vocabulary=self.vocabulary, context=self.time, parameters=parameters)

    @property
    def vocabulary(self) -> int:
        """Number of different tokens."""
        return self.own.vocabulary.size if self.own else facts.PUBLISHED[self.name].words

    def course(self, data: Path | None = None) -> Course:
        corpus = _load_custom_corpus(self.own) if self.own else corpora.load_published(self.name, places(data))
        corpus = corpora.take_fewer(corpus, self.train) if self.train else corpus
        return TextCourse(corpus, self.time, carries=models.is_recurrent(self.model))

    def steps_per_epoch(self, examples: int, recipe: Recipe) -> int:
        """Return the number of steps that read `examples` tokens once; raise `TaskError` if these are too few."""
        return steps_per_epoch(examples, recipe.batch, self.time, carries=models.is_recurrent(self.model))

    def unfit(self, key: Mapping[str, object]) -> str:
        """Return how the vocabulary of the task with `key` differs from this task's, as text; empty if it does not."""
        # Published texts are compared by name, without reading them.
        own: object = self.own.vocabulary.describe() if self.own else f"the words of {self.name}"
        theirs = key.get("vocabulary") or f"the words of {key.get('name')}"
        if own == theirs:
            return ""
        return f"its vocabulary is {_format_vocabulary(theirs)}, and that of {self.name} {_format_vocabulary(own)}"

    def scored(self, size: int) -> int:
        """Return the batch size for importance scores: `size`, but at most the training batch size."""
        return min(size, self.recipe.batch)

    def example(self, count: int, data: Path | None = None) -> Tensor:
        """Return random tokens [count, time]; this reads no data."""
        return torch.randint(self.vocabulary, (count, self.time), generator=torch.Generator().manual_seed(0))


def _format_vocabulary(vocabulary: object) -> str:
    if not isinstance(vocabulary, Mapping):
        return str(vocabulary)
    digest = str(vocabulary.get("digest", ""))[:8]
    return f"{vocabulary.get('kind')} of size {vocabulary.get('size')}{digest and f' ({digest}…)'}"


@lru_cache(maxsize=4)
def _read_content(own: CustomText) -> Content:
    return read_splits(own.path, validation=own.validation, test=own.test)


@lru_cache(maxsize=4)  # keys are computed often
def _custom_text_key(own: CustomText) -> Mapping[str, object]:
    return {"text": corpora.digest(_read_content(own)), "vocabulary": own.vocabulary.describe()}


@lru_cache(maxsize=4)
def _load_custom_corpus(own: CustomText) -> Corpus:
    parts = {
        split: Part(own.vocabulary.encode(content, f"the {split} text"), len(content.decode("utf-8")))
        for split, content in vars(_read_content(own)).items()
    }
    return Corpus(**parts, vocabulary=own.vocabulary.size)


def create_task(spec: Spec) -> Language:
    """Create the task for the request `spec`: ptb, wikitext-2 or text:PATH, with options."""
    kind, _, path = spec.name.partition(":")
    options = Options(spec, (*_COMMON_OPTIONS, *(_CUSTOM_TEXT_OPTIONS if kind == facts.TEXT else ())))
    model = spec.model or facts.MODELS[kind]
    models.check(model)
    own = _parse_custom_text(spec.name, path, options) if kind == facts.TEXT else None
    if own is not None:  # an absolute path is found from any folder
        spec = replace(
            options.with_absolute_paths(spec, "vocabulary" if own.tokenizer else ""), name=f"{kind}:{own.path}"
        )
    default = facts.text_defaults(kind, model)
    try:
        dropout = float(options.text("dropout", str(default.dropout)))
    except ValueError:
        dropout = -1.0
    if not 0 <= dropout < 1:
        raise options.value_error("dropout", "a share, from 0 to less than 1")
    return Language(
        name=kind,
        own=own,
        model=model,
        recipe=default.recipe,
        time=options.whole_number("time", default.time, least=1, what="number of tokens"),
        dropout=dropout,
        train=options.whole_number("train", 0, what="number of tokens"),
        spec=spec,
    )


def _parse_custom_text(name: str, path: str, options: Options) -> CustomText:
    if not path:
        raise TaskError("the task text needs to know the text: --task text:PATH, a file or a folder of text files")
    shares = {word: options.share(word, "0.05", what="share of the text") for word in ("validation", "test")}
    if sum(shares.values()) >= 1:
        raise TaskError(f"{name}: validation and test are shares of the text that leave some of it to train on")
    vocabulary = options.text("vocabulary", "bytes")
    return CustomText(
        path=Path(path).expanduser().absolute(),
        tokenizer=None if vocabulary == "bytes" else options.path("vocabulary"),
        **shares,
    )
