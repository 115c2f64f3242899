"""What a part of a batch draws is what it would have been given in the whole batch; and where it is cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ticketry.errors import TrainingError
from ticketry.lab.training.data_loading import part_of_batch
from ticketry.lab.training.ranks.batch_parts import Draws
from ticketry.tasks.task import PartOfBatch, place_of_part

WHOLE = 7
PARTS = [place_of_part(WHOLE, rank, 3) for rank in range(3)]


def _tokens(x):
    return F.dropout(x.flatten(0, 1), 0.3).unflatten(0, x.shape[:2])


def _stochastic_depth(x):
    return x * x.new_empty(len(x), 1, 1).bernoulli_(0.5)


def _chosen(x):
    return torch.bernoulli(torch.sigmoid(x))


def _attention(x):
    return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], dropout_p=0.4)


DRAWN = {
    "dropout": lambda x: F.dropout(x, 0.4),
    "dropout of tokens": _tokens,
    "dropout of channels": lambda x: F.dropout1d(x, 0.5),
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.3, training=True),
    "stochastic depth": _stochastic_depth,
    "noise like it": lambda x: x + torch.randn_like(x),
    "noise of its shape": lambda x: x + torch.randn(x.shape),
    "whole numbers below": lambda x: x + torch.randint(9, (len(x), 1, 1)),
    "of its own probabilities": _chosen,
    "normal": lambda x: torch.normal(x, 1.0),
    "in place": lambda x: x + torch.empty_like(x).exponential_(),
    "for the whole batch": lambda x: x * torch.rand(()) + torch.randn(5),
    "attention's dropout": _attention,
}


@pytest.mark.parametrize("name", DRAWN)
def test_parts_draw_what_the_whole_batch_does(name):
    examples = torch.randn(WHOLE, 4, 5, generator=torch.Generator().manual_seed(1))
    draw = DRAWN[name]
    torch.manual_seed(5)
    whole = draw(examples), torch.rand(3)
    for rank, place in enumerate(PARTS):
        torch.manual_seed(5)
        with Draws(place):
            own = draw(part_of_batch(examples, rank, len(PARTS)))
        assert torch.equal(own, part_of_batch(whole[0], rank, len(PARTS)))
        assert torch.equal(torch.rand(3), whole[1])  # the generator went on as far


def test_draws_follow_the_memory_format():
    examples = torch.randn(6, 3, 4, 4).to(memory_format=torch.channels_last)
    torch.manual_seed(2)
    whole = F.dropout(examples, 0.5)
    torch.manual_seed(2)
    with Draws(PartOfBatch(2, 3, 6)):
        assert torch.equal(F.dropout(examples[2:5], 0.5), whole[2:5])


def test_draws_from_a_generator():
    def draw(count, generator):
        return torch.randint(0, 9, (count, 2), generator=generator), torch.rand(count, generator=generator) < 0.5

    whole = draw(WHOLE, torch.Generator().manual_seed(3))
    for rank, place in enumerate(PARTS):
        with Draws(place):
            own = draw(place.own, torch.Generator().manual_seed(3))
        for one, all_ in zip(own, whole, strict=True):
            assert torch.equal(one, part_of_batch(all_, rank, len(PARTS)))


def test_gradients_go_through_dropout_as_in_the_whole_batch():
    examples = torch.randn(WHOLE, 6)
    layer = nn.Linear(6, 4)

    def gradient(rows):
        layer.zero_grad()
        F.dropout(layer(rows), 0.5).square().sum().backward()
        return layer.weight.grad.clone()

    torch.manual_seed(0)
    whole = gradient(examples)
    parts = []
    for rank, place in enumerate(PARTS):
        torch.manual_seed(0)
        with Draws(place):
            parts.append(gradient(part_of_batch(examples, rank, len(PARTS))))
    assert torch.allclose(sum(parts), whole, atol=1e-5)


@pytest.mark.parametrize("own", [1, 2])
def test_dropout_of_what_a_recurrent_layer_gives(own):
    """Its memory has the examples of each word side by side, and numbers are drawn in that order."""
    words = torch.randn(3, 5, 6)  # [words, examples, units]
    torch.manual_seed(0)
    whole = F.dropout(words.transpose(0, 1), 0.5)
    for first in range(5 - own + 1):
        torch.manual_seed(0)
        with Draws(PartOfBatch(first, own, 5)):
            found = F.dropout(words[:, first : first + own].contiguous().transpose(0, 1), 0.5)
        assert torch.equal(found, whole[first : first + own])


@pytest.mark.parametrize(
    ("what", "draw"),
    [
        ("randperm", lambda x: x[torch.randperm(len(x))]),
        ("multinomial", lambda x: torch.multinomial(torch.ones(4), 2)),
        ("rrelu_with_noise", lambda x: F.rrelu(x, training=True)),
    ],
)
def test_what_cannot_be_cut_is_an_error(what, draw):
    with Draws(PARTS[0]), pytest.raises(TrainingError, match=f"torch's {what}.*--devices 1"):
        draw(torch.randn(PARTS[0].own, 4))


@pytest.mark.parametrize("world", [1, 2, 3, 5, 7])
def test_places_are_those_of_the_parts(world):
    rows = torch.arange(7)
    for rank in range(world):
        place = place_of_part(7, rank, world)
        assert torch.equal(rows[place.first : place.first + place.own], part_of_batch(rows, rank, world))
        assert place.whole == 7
