"""Courses of texts: rows, pieces, carried states, and metrics by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ticketry.errors import TaskError
from ticketry.lab.training.precision import Arithmetic
from ticketry.tasks.language.corpus import Corpus, Part, take_fewer
from ticketry.tasks.language.task import Piece, TextCourse, steps_per_epoch
from ticketry.tasks.models import language
from ticketry.tasks.models.language import LanguageModel
from ticketry.tasks.recipe import Recipe

VOCABULARY = 97
RECIPE = Recipe(length="3ep", batch=4)


def corpus(train: int = 150, validation: int = 2345, test: int = 60) -> Corpus:
    """Numbered tokens, modulo the vocabulary."""
    parts = [
        Part(torch.arange(count, dtype=torch.int32) % VOCABULARY, 3 * count) for count in (train, validation, test)
    ]
    return Corpus(*parts, vocabulary=VOCABULARY)


def model(name: str = "lstm@0.05", dropout: float = 0.0) -> LanguageModel:
    torch.manual_seed(0)
    return language.build(name, vocabulary=VOCABULARY, context=8, dropout=dropout)


def pieces(course: TextCourse, steps: range, seed: int = 0) -> list[Piece]:
    return list(course.session(RECIPE, seed, Arithmetic()).batches(steps))


# -- batches -----------------------------------------------------------------------------------------------------------


def test_rows_continue_from_piece_to_piece() -> None:
    course = TextCourse(corpus(), time=8, carries=True)
    per_epoch = steps_per_epoch(150, 4, 8, carries=True)
    assert per_epoch == 5  # rows of 37 tokens: four pieces of 8 and one of 5
    read = pieces(course, range(per_epoch))
    assert [piece.tokens.shape[1] for piece in read] == [8, 8, 8, 8, 5]
    assert [piece.begins for piece in read] == [True, False, False, False, False]
    rows = torch.cat([piece.tokens for piece in read], 1)
    targets = torch.cat([piece.targets for piece in read], 1)
    assert torch.equal(rows[:, 1:], targets[:, :-1])
    # turned: the text's end, token 149 % 97 = 52, is followed by its beginning
    jumps = [(int(a), int(b)) for row in rows for a, b in pairwise(row) if b != (a + 1) % VOCABULARY]
    assert jumps in ([], [(52, 0)])
    assert len(set(map(tuple, rows.tolist()))) == 4


def test_pieces_are_drawn_once_each() -> None:
    course = TextCourse(corpus(), time=8, carries=False)
    per_epoch = steps_per_epoch(150, 4, 8, carries=False)
    assert per_epoch == 5  # 18 pieces: four batches of 4 and one of 2
    read = pieces(course, range(per_epoch))
    assert [len(piece.tokens) for piece in read] == [4, 4, 4, 4, 2]
    assert all(piece.begins for piece in read)
    begins = sorted(int(row[0]) for piece in read for row in piece.tokens)
    assert len(begins) == 18
    together = torch.cat([piece.tokens for piece in read]).flatten()
    counts = torch.bincount(together, minlength=VOCABULARY)
    assert int(counts.max()) <= 2  # every token of the text is read once: 53 of them are there twice


@pytest.mark.parametrize("carries", [True, False])
def test_batches_are_a_function_of_seed_and_step(carries: bool) -> None:
    course = TextCourse(corpus(), time=8, carries=carries)

    def same(one: Piece, other: Piece) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one[:2], other[:2], strict=True)) and one.begins == other.begins

    whole = pieces(course, range(15), seed=3)
    again = [piece for step in (7, 14, 2) for piece in pieces(course, range(step, step + 1), seed=3)]
    assert all(same(whole[step], piece) for step, piece in zip((7, 14, 2), again, strict=True))
    assert not any(same(one, other) for one, other in zip(whole, pieces(course, range(15), seed=4), strict=True))
    assert not same(whole[0], whole[5])  # another epoch begins elsewhere


# -- states ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lstm@0.05", "pointer-lstm@0.05"])
def test_the_state_is_carried_and_gradients_are_not(name: str) -> None:
    """Losses of pieces are those of the whole row; a new epoch starts from a new state."""
    course, net = TextCourse(corpus(), time=8, carries=True), model(name).double()
    session = course.session(RECIPE, 0, Arithmetic())
    read = list(session.batches(range(6)))
    losses = [session.loss(net, piece) for piece in read]
    rows, targets = (torch.cat([piece[part] for piece in read[:5]], 1) for part in (0, 1))
    costs, _ = net(rows, net.begin(4), targets)
    for piece, part in zip(losses, costs.split([8, 8, 8, 8, 5], 1), strict=False):
        torch.testing.assert_close(piece, part.mean())
    fresh, _ = net(read[5].tokens, net.begin(4), read[5].targets)
    torch.testing.assert_close(losses[5], fresh.mean())
    assert all(not value.requires_grad for value in session.state().values())


@pytest.mark.parametrize("name", ["lstm@0.05", "pointer-lstm@0.05"])
def test_a_session_resumes_with_the_same_bits(name: str) -> None:
    course, net = TextCourse(corpus(), time=8, carries=True), model(name)
    whole, part = (course.session(RECIPE, 0, Arithmetic()) for _ in range(2))
    losses = [whole.loss(net, piece) for piece in whole.batches(range(4))]
    for piece in part.batches(range(2)):
        part.loss(net, piece)
    rest = course.session(RECIPE, 0, Arithmetic())
    rest.load_state(part.state())
    again = [rest.loss(net, piece) for piece in rest.batches(range(2, 4))]
    assert [loss.item() for loss in again] == [loss.item() for loss in losses[2:]]


def test_each_network_has_a_state() -> None:
    course, net, other = TextCourse(corpus(), time=8, carries=True), model(), model("lstm-tied@0.05")
    session = course.session(RECIPE, 0, Arithmetic())
    alone = course.session(RECIPE, 0, Arithmetic())
    for piece in session.batches(range(3)):
        scores, targets = session.outputs(net, piece)
        session.outputs(other, piece, of="bare")
        expected, _ = alone.outputs(net, piece)
        assert torch.equal(scores, expected)
        assert scores.shape == (*targets.shape, VOCABULARY)
    assert {key.partition(":")[0] for key in session.state()} == {"", "bare"}


# -- evaluation --------------------------------------------------------------------------------------------------------


class Bigrams(LanguageModel):
    """A table of scores of each token after another."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1)))

    def read(self, tokens: Tensor, state: dict[str, Tensor], *, first: bool) -> tuple[Tensor, dict[str, Tensor]]:
        return self.table[tokens], state

    def scores(self, features: Tensor) -> Tensor:
        return features


def by_hand(net: LanguageModel, tokens: list[int]) -> Iterator[float]:
    """Yield -log p of each token except the first, by the definition."""
    for before, after in pairwise(tokens):
        scores = net.table[before].double()
        yield float(torch.logsumexp(scores, 0) - scores[after])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_metrics_by_hand(split: str) -> None:
    course, net = TextCourse(corpus(), time=8, carries=True), Bigrams()
    tokens = getattr(course.corpus, split).tokens.tolist()
    costs = list(by_hand(net, tokens))
    with torch.no_grad():
        found = course.evaluate(net, split, Arithmetic())
    loss = sum(costs) / len(costs)
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    assert found["bits_per_character"] == pytest.approx(loss / math.log(2) / 3, rel=1e-6)


def test_evaluation_carries_states_along_its_rows() -> None:
    course, net = TextCourse(corpus(validation=900), time=8, carries=True), model().eval()
    tokens = course.corpus.validation.tokens.long()[None]
    with torch.no_grad():
        costs, _ = net(tokens[:, :-1], net.begin(1), tokens[:, 1:])
        found = course.evaluate(net, "validation", Arithmetic())
    assert found["loss"] == pytest.approx(float(costs.double().mean()), rel=1e-5)


def test_a_diverged_network_has_a_finite_perplexity() -> None:
    course, net = TextCourse(corpus(), time=8, carries=True), Bigrams()
    with torch.no_grad():
        net.table.mul_(1e4)
        found = course.evaluate(net, "test", Arithmetic())
    assert found["loss"] > 1e3
    assert math.isfinite(found["perplexity"])


# -- scores ------------------------------------------------------------------------------------------------------------


def test_a_sample_depends_on_its_seed() -> None:
    course, net = TextCourse(corpus(), time=8, carries=True), model()
    batches = course.sample(net, 3, 5, seed=1)
    assert [piece.tokens.shape for piece in batches] == [(5, 8)] * 3
    for piece in batches:
        assert torch.equal((piece.tokens + 1) % VOCABULARY, piece.targets)
        assert course.count(piece) == 5
    again, others = course.sample(net, 3, 5, seed=1), course.sample(net, 3, 5, seed=2)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(batches, again, strict=True))
    assert not any(torch.equal(a.tokens, b.tokens) for a, b in zip(batches, others, strict=True))
    assert course.count(course.sample(net, 1, 500, seed=1)[0]) == 150 // 8
    once = course.loss(net, batches[0])
    course.loss(net, batches[1])
    assert torch.equal(course.loss(net, batches[0]), once)  # nothing is carried on
    costs, _ = net.eval()(batches[0].tokens, net.begin(5), batches[0].targets)
    torch.testing.assert_close(once, costs.mean())
    short = TextCourse(corpus(train=6), time=8, carries=True)
    assert short.count(short.sample(net, 1, 4, seed=0)[0]) == 1
    assert short.inputs(2).shape == (2, 3)


def test_what_cannot_be_trained_is_refused() -> None:
    course = TextCourse(corpus(), time=8, carries=True)
    for recipe, message in (
        (RECIPE.changed(augment=("flip",)), "no augmentation 'flip'"),
        (RECIPE.changed(label_smoothing=0.1), "leave label smoothing out"),
    ):
        with pytest.raises(TaskError, match=message):
            course.session(recipe, 0, Arithmetic())
    for split in ("validation", "test"):
        with pytest.raises(TaskError, match=f"the text's {split} split has 1 token"):
            TextCourse(corpus(**{split: 1}), time=8, carries=True).session(RECIPE, 0, Arithmetic())
    assert len(take_fewer(corpus(), 100).train.tokens) == 100
    with pytest.raises(TaskError, match="the training text has 150"):
        take_fewer(corpus(), 151)
