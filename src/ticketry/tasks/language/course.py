"""How language models are trained on a text and measured by it.

A model that carries a state reads the text in rows, side by side, each a contiguous part of it; a step is the next
piece of every row, and gradients end where the piece begins (truncated back-propagation through time). A model that
carries nothing sees pieces in random order. Either way the text is turned by a random number of tokens at each epoch,
the end followed by the beginning, so that rows and pieces begin elsewhere.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from math import exp, log
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ticketry.errors import TaskError
from ticketry.tasks.language.corpus import Corpus, Part
from ticketry.tasks.models.language import LanguageModel
from ticketry.tasks.models.language.base import State, cross_entropy
from ticketry.tasks.ranks import PartOfBatch, Ranks, place_of_part
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Arithmetic, Course, Session
from ticketry_engine.support.seeds import generator

_ROWS, _ROW = 10, 1000
"""A split is evaluated in so many rows side by side, or in fewer of so many tokens at least."""
_FEWEST = 2
"""Tokens of a split: of one there is none to predict."""
_LARGEST = 69.0
"""Of a loss, in nats: e to the power of more is larger than records have numbers."""


class Piece(NamedTuple):
    """What a step sees."""

    tokens: Tensor
    """int64 [b, t]"""
    targets: Tensor
    """int64 [b, t]: the token after each."""
    begins: bool
    """Whether nothing of the text before it is known."""


class Text(Course):
    """A corpus, read in pieces of `time` tokens."""

    def __init__(self, corpus: Corpus, time: int, *, carries: bool) -> None:
        self.corpus, self.time, self._carries = corpus, time, carries

    def sizes(self) -> dict[str, int]:
        return {split: len(self._part(split).tokens) for split in ("train", "validation", "test")}

    def session(self, recipe: Recipe, seed: int, arithmetic: Arithmetic) -> Session:
        """Raises `TaskError` for what a recipe may have and a text has not."""
        if recipe.augment:
            raise TaskError(f"a text has no augmentation {recipe.augment[0]!r}: choose a recipe without it")
        if recipe.label_smoothing:
            raise TaskError("perplexity is of the text itself: leave label smoothing away (--recipe.label-smoothing 0)")
        for split in ("validation", "test"):
            if (count := len(self._part(split).tokens)) < _FEWEST:
                raise TaskError(
                    f"the text's {split} split has {count} token: each but the first is predicted, so give it"
                    f" {_FEWEST} or more"
                )
        steps_per_epoch(len(self.corpus.train.tokens), recipe.batch, self.time, carries=self._carries)
        kind = Rows if self._carries else Pieces
        return kind(self.corpus.train.tokens, recipe.batch, self.time, seed, arithmetic)

    def evaluate(self, model: nn.Module, split: str, arithmetic: Arithmetic) -> dict[str, float]:
        """Mean loss of a token in nats, perplexity, and bits per character where characters are known.

        Every token of the split but the first is predicted once. States are carried along each of at most 10 rows.
        """
        part = self._part(split)
        count = len(part.tokens) - 1
        rows = min(_ROWS, max(1, count // _ROW))
        length = -(-count // rows)
        known = (torch.arange(rows * length) < count).view(rows, length)
        padded = part.tokens.new_zeros(rows * length + 1)
        padded[: count + 1] = part.tokens
        tokens, targets = padded[:-1].view(rows, length), padded[1:].view(rows, length)
        loss = self._summed(model, tokens, targets, known, arithmetic) / count
        found = {"loss": loss, "perplexity": exp(min(loss, _LARGEST))}
        if part.characters:
            found["bits_per_character"] = loss / log(2) * len(part.tokens) / part.characters
        return found

    def _summed(
        self, model: nn.Module, tokens: Tensor, targets: Tensor, known: Tensor, arithmetic: Arithmetic
    ) -> float:
        """The cost of all tokens [rows, length] that are known."""
        tokens, targets, known = (each.to(arithmetic.device) for each in (tokens, targets, known))
        total = torch.zeros((), dtype=torch.float64, device=arithmetic.device)
        assert isinstance(model, LanguageModel)
        state = model.begin(len(tokens))
        for at in range(0, tokens.shape[1], self.time):
            piece = slice(at, at + self.time)
            with arithmetic.autocast():
                costs, state = model(tokens[:, piece].long(), state, targets[:, piece].long())
            total += (costs.double() * known[:, piece]).sum()
        return float(total)

    def sample(self, model: nn.Module, count: int, size: int, seed: int) -> list[Any]:
        """Random pieces, each from an empty past; no more in a batch than there are in the text."""
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
        """The first pieces of the training text, [count, time]."""
        tokens = self.corpus.train.tokens
        time = max(min(self.time, len(tokens) // count), 1)
        return tokens[: count * time].view(-1, time).long()

    def cut(self, ranks: Ranks) -> Text:
        return TextPart(self.corpus, self.time, ranks, carries=self._carries)

    def check_cut(self, model: nn.Module, recipe: Recipe, world: int) -> None:
        """Of rows or pieces each process has one at least; a loss is the mean over them, whose lengths are equal."""
        pieces = len(self.corpus.train.tokens) // self.time
        last = recipe.batch if self._carries else min(pieces % recipe.batch or recipe.batch, pieces)
        for batch, which in ((recipe.batch, "a batch"), (last, "the last batch of an epoch")):
            if batch < world:
                raise TaskError(
                    f"{which} of a text has {batch} {'rows' if self._carries else 'pieces'}, fewer than the {world}"
                    " devices that would train on it: choose fewer devices or another --recipe.batch"
                )

    def _part(self, split: str) -> Part:
        part: Part = getattr(self.corpus, split)
        return part


class Reading(Session):
    """A training on a text: pieces by (seed, step), and the state that is carried from piece to piece."""

    def __init__(self, tokens: Tensor, batch: int, time: int, seed: int, arithmetic: Arithmetic) -> None:
        self._text = tokens.to(arithmetic.device)
        self.batch, self._time, self._seed, self._arithmetic = batch, time, seed, arithmetic
        self._carried: dict[str, State] = {}
        self._epoch = -1

    def batches(self, steps: range) -> Generator[Piece, None, None]:
        per_epoch = self.per_epoch(len(self._text), self.batch, self._time)
        for step in steps:
            epoch, number = divmod(step, per_epoch)
            if epoch != self._epoch:
                self._turn(epoch)
                self._epoch = epoch
            yield self.piece(number)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        costs = self._read(model, batch, "", targets=batch.targets)
        return costs.mean()

    def outputs(self, model: nn.Module, batch: Any, of: str = "") -> tuple[Tensor, Tensor]:
        scores = self._read(model, batch, of)
        return scores.flatten(0, 1).float(), batch.targets.flatten()

    def _read(self, model: nn.Module, piece: Piece, of: str, targets: Tensor | None = None) -> Tensor:
        """What the model makes of a piece; its state goes on."""
        plain = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        assert isinstance(plain, LanguageModel)
        fresh = piece.begins or of not in self._carried
        state = plain.begin(len(piece.tokens)) if fresh else self._carried[of]
        with self._arithmetic.autocast():
            made, after = model(piece.tokens, state, targets)
        self._carried[of] = {name: value.detach().to(state[name].dtype) for name, value in after.items()}
        found: Tensor = made
        return found

    def state(self) -> dict[str, Tensor]:
        """The state of each network that reads the text, as ``network:entry``."""
        return {
            f"{of}:{name}": value.to("cpu", copy=True).contiguous()
            for of, entries in self._carried.items()
            for name, value in entries.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._carried = {}
        for key, value in state.items():
            of, _, name = key.partition(":")
            self._carried.setdefault(of, {})[name] = value.to(self._arithmetic.device)

    def follows(self, model: nn.Module) -> Mapping[str, tuple[int, str, int]]:
        assert isinstance(model, LanguageModel)
        return {f"{of}:{name}": place for of in ("", "bare") for name, place in model.follows.items()}

    @staticmethod
    def per_epoch(tokens: int, batch: int, time: int) -> int:
        """Steps that read the text once; 0 if it is too short for one."""
        raise NotImplementedError

    def _turn(self, epoch: int) -> None:
        """Prepare the text for an epoch."""
        raise NotImplementedError

    def piece(self, number: int) -> Piece:
        """The step of this number in the epoch."""
        raise NotImplementedError

    def _turned(self, epoch: int, count: int) -> tuple[Tensor, Tensor]:
        """`count` tokens of the turned text, and the token after each."""
        by = int(torch.randint(0, len(self._text), (), generator=generator(self._seed, "turn", epoch)))
        turned = torch.cat([self._text[by:], self._text[: by + 1]])
        return turned[:count], turned[1 : count + 1]


class Rows(Reading):
    """Of a model that carries a state: each row goes on where the piece before ended."""

    @staticmethod
    def per_epoch(tokens: int, batch: int, time: int) -> int:
        return -(-(tokens // batch) // time)

    def _turn(self, epoch: int) -> None:
        length = len(self._text) // self.batch
        tokens, targets = self._turned(epoch, length * self.batch)
        self._tokens, self._targets = tokens.view(self.batch, length), targets.view(self.batch, length)

    def piece(self, number: int) -> Piece:
        piece = slice(number * self._time, (number + 1) * self._time)
        return Piece(self._tokens[:, piece].long(), self._targets[:, piece].long(), number == 0)


class Pieces(Reading):
    """Of a model that carries nothing: pieces in an order drawn for each epoch."""

    @staticmethod
    def per_epoch(tokens: int, batch: int, time: int) -> int:
        return -(-(tokens // time) // batch)

    def _turn(self, epoch: int) -> None:
        pieces = len(self._text) // self._time
        tokens, targets = self._turned(epoch, pieces * self._time)
        self._tokens, self._targets = tokens.view(pieces, self._time), targets.view(pieces, self._time)
        self._order = torch.randperm(pieces, generator=generator(self._seed, "order", epoch)).to(self._text.device)

    def piece(self, number: int) -> Piece:
        rows = self._order[number * self.batch : (number + 1) * self.batch]
        return Piece(self._tokens[rows].long(), self._targets[rows].long(), True)


# -- of several processes ----------------------------------------------------------------------------------------------


class PartOfPiece(NamedTuple):
    """What a step sees of one process, see `Piece`."""

    tokens: Tensor
    targets: Tensor
    begins: bool
    place: PartOfBatch


class TextPart(Text):
    """The course as one of several processes has it."""

    def __init__(self, corpus: Corpus, time: int, ranks: Ranks, *, carries: bool) -> None:
        super().__init__(corpus, time, carries=carries)
        self._ranks = ranks

    def session(self, recipe: Recipe, seed: int, arithmetic: Arithmetic) -> Session:
        whole = super().session(recipe, seed, arithmetic)
        assert isinstance(whole, Reading)
        kind = RowsPart if isinstance(whole, Rows) else PiecesPart
        found = kind(self.corpus.train.tokens, recipe.batch, self.time, seed, arithmetic)
        found.ranks = self._ranks
        return found

    def _summed(
        self, model: nn.Module, tokens: Tensor, targets: Tensor, known: Tensor, arithmetic: Arithmetic
    ) -> float:
        """Of each process's rows, added up in the order of ranks. One without rows reads the first for nothing: where
        parameters lie in parts, all call the network equally often."""
        place = place_of_part(len(tokens), self._ranks.rank, self._ranks.world)
        rows = slice(place.first, place.first + place.own) if place.own else slice(1)
        counted = known[rows] & bool(place.own)
        found = super()._summed(model, tokens[rows], targets[rows], counted, arithmetic)
        return sum(self._ranks.gather(found), 0.0)


class _Part(Reading):
    """A training of which one process has a part of each batch."""

    ranks: Ranks

    def piece(self, number: int) -> Any:
        whole = super().piece(number)
        place = self._place(len(whole.tokens))
        rows = slice(place.first, place.first + place.own)
        return PartOfPiece(whole.tokens[rows], whole.targets[rows], whole.begins, place)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Of the part, times its share of the batch and the number of ranks: the mean over ranks is the batch's."""
        with self.ranks.drawing(batch.place):
            found = super().loss(model, batch)
        weighted: Tensor = found * (batch.place.own * self.ranks.world / batch.place.whole)
        return weighted

    def outputs(self, model: nn.Module, batch: Any, of: str = "") -> tuple[Tensor, Tensor]:
        with self.ranks.drawing(batch.place):
            return super().outputs(model, batch, of)

    def _place(self, rows: int) -> PartOfBatch:
        return place_of_part(rows, self.ranks.rank, self.ranks.world)


class RowsPart(_Part, Rows):
    """Of a model that carries a state: each process has the same rows of all batches, and their states."""

    gathers = True

    def state(self) -> dict[str, Tensor]:
        """That of all rows, as one process has it."""
        found = self.ranks.gather(super().state())
        return {name: torch.cat([each[name] for each in found]) for name in found[0]}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        place = self._place(self.batch)
        super().load_state({name: value[place.first : place.first + place.own] for name, value in state.items()})


class PiecesPart(_Part, Pieces):
    """Of a model that carries nothing."""


def steps_per_epoch(tokens: int, batch: int, time: int, *, carries: bool) -> int:
    """Steps in which a text of so many tokens is read once.

    Raises:
        TaskError: if it is too short for one step.
    """
    steps = (Rows if carries else Pieces).per_epoch(tokens, batch, time)
    if not steps:
        raise TaskError(
            f"a training text of {tokens} tokens is too short for batches of {batch}, in pieces of {time}: take more"
            " text, --recipe.batch or --option time= smaller"
        )
    return steps
