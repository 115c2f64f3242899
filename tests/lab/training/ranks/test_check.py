"""What is accepted for several devices trains as one process does; what would not is refused before anything is."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from rank_trainings import described, largest_difference, task_of, trained
from ticketry.errors import TaskError
from ticketry.lab.lab import Lab
from ticketry.lab.store.store import Store
from ticketry.lab.training.ranks.batch_parts import add_noise_to_constants, check_parts
from ticketry.lab.training.supervised import Supervised
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Classification, Split, Splits

BATCH, WORDS, WIDE = 12, 6, 4
"""Words are as many as a rank of two has examples: inputs [6, 6, 4] of a part."""


class Network(nn.Module):
    """`middle` of inputs [n, words, wide], and a last layer that begins with zeros."""

    def __init__(self, middle, *modules):
        super().__init__()
        self.middle, self.inner = middle, nn.ModuleList(modules)
        self.last = nn.Linear(WIDE, 3)
        nn.init.zeros_(self.last.weight)

    def forward(self, inputs):
        found = self.middle(self, inputs)
        return self.last(found.mean(1))


class Sequences(Classification):
    name = "sequences"

    def __init__(self, middle, *modules, augment=None):
        self._made = (middle, *modules)
        self._augmented = augment or (lambda inputs, generator: inputs)

    def build(self):
        return Network(*self._made)

    def augment(self, inputs, names, generator):
        return self._augmented(inputs, generator)


def looked_at(task, batch=BATCH, world=2, examples=19):
    """A whole batch and the last one of an epoch, of 7."""
    draw = torch.Generator().manual_seed(0)
    split = Split(torch.randn(examples, WORDS, WIDE, generator=draw), torch.arange(examples) % 3)
    course, recipe = Supervised(task, Splits(split, split, split)), Recipe(length="2ep", batch=batch, augment=("crop",))
    check_parts(task.name, course, add_noise_to_constants(task.build()), recipe, (0, -(-examples // batch) - 1), world)


def _called(self, x):
    return self.inner[0](x)


def _turned(self, x):
    return self.inner[0](x.transpose(0, 1)).transpose(0, 1)


def _with_weights_dropped(self, x):
    return F.linear(x, F.dropout(self.inner[0].weight, 0.5))[..., :WIDE]


def _words_in_a_row(self, x):
    return F.dropout(x.flatten(0, 1), 0.3).unflatten(0, x.shape[:2])


def _words_in_a_column(self, x):
    return F.dropout(x.transpose(0, 1).flatten(0, 1), 0.3).unflatten(0, (WORDS, len(x))).transpose(0, 1)


def _of_the_batch(self, x):
    return x * torch.rand(()) + torch.randn(5)[:WIDE]


class _Recurrent(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.inner = nn.GRU(WIDE, WIDE, batch_first=True, **settings)

    def forward(self, x):
        return self.inner(x)[0]


def _transformer(**settings):
    return nn.TransformerEncoderLayer(WIDE, 2, 8, dropout=0.2, **settings)


RIGHT = {
    "nothing drawn": (_called, nn.Linear(WIDE, WIDE)),
    "dropout": (_called, nn.Dropout(0.3)),
    "a transformer, examples first": (_called, _transformer(batch_first=True)),
    "dropout of words, one example after the other": (_words_in_a_row,),
    "numbers for the whole batch": (_of_the_batch,),
    "a recurrent layer": (_called, nn.Sequential(nn.Dropout(0.3), _Recurrent(), nn.Dropout(0.3))),
    "weights that are dropped, of 25 rows": (_with_weights_dropped, nn.Linear(WIDE, 25)),
    "batch norms": (_called, nn.Sequential(nn.BatchNorm1d(WORDS), nn.BatchNorm1d(WORDS, track_running_stats=False))),
    "a buffer that each step moves": (_called, spectral_norm(nn.Linear(WIDE, WIDE))),
}
WRONG = {
    "a transformer, words first": (_turned, _transformer()),
    "dropout within a recurrent layer": (_called, _Recurrent(num_layers=2, dropout=0.5)),
    "dropout of words, one word after the other": (_words_in_a_column,),
    "weights that are dropped, of 24 rows": (_with_weights_dropped, nn.Linear(WIDE, 24)),
    "a look at the other examples": (lambda self, x: x - x.mean(0),),
    "a random order": (lambda self, x: x[torch.randperm(len(x))],),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_parts_of_a_batch_may_do(name):
    looked_at(Sequences(*RIGHT[name]))


@pytest.mark.parametrize("name", WRONG)
def test_what_they_may_not(name):
    with pytest.raises(TaskError, match="--devices 1"):
        looked_at(Sequences(*WRONG[name]))


def test_augmentation():
    looked_at(Sequences(*RIGHT["dropout"], augment=lambda x, draw: x + torch.randn(x.shape, generator=draw)))
    with pytest.raises(TaskError, match=r"by torch's rand, of the shape \[6, 1\] for a batch"):
        looked_at(Sequences(*RIGHT["dropout"], augment=lambda x, draw: x * torch.rand(WORDS, 1, generator=draw)))


def test_each_size_of_a_part_is_looked_at():
    """25 rows are five times the examples that a rank has of a batch of 10, or of the last one, which is of 10 or 9."""
    for batch, examples in ((10, 20), (12, 22), (12, 21)):
        with pytest.raises(TaskError, match=r"bernoulli_, of the shape \[25, 4\]"):
            looked_at(Sequences(*RIGHT["weights that are dropped, of 25 rows"]), batch=batch, examples=examples)


class Judged(Classification):
    """300 points, sorted by class, of which the last alone is of the third one; outputs begin all alike."""

    name, recipe = "judged", Recipe(length="2ep", batch=BATCH)

    def __init__(self, loss, targets=lambda classes: classes):
        self._loss, self._targets = loss, targets

    def build(self):
        return nn.Linear(WIDE, 3)

    def loss(self, outputs, targets, *, label_smoothing=0.0):
        return self._loss(outputs, targets)

    def check(self):
        classes = torch.tensor([0] * 150 + [1] * 149 + [2])
        inputs = torch.randn(300, WIDE, generator=torch.Generator().manual_seed(0))
        split, model = Split(inputs, self._targets(classes)), self.build()
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        Supervised(self, Splits(split, split, split)).check_cut(add_noise_to_constants(model), self.recipe, 2)


def _padded(classes):
    return torch.stack([classes, classes.where(classes > 0, -100)], 1)


def _of_two(outputs, targets):
    return F.cross_entropy(outputs[..., None].expand(-1, -1, 2), targets)


MEANS = {
    "cross entropy": (F.cross_entropy,),
    "of two targets each": (_of_two, lambda classes: torch.stack([classes, classes], 1)),
    "of numbers": (lambda outputs, targets: F.mse_loss(outputs[:, 0], targets), torch.Tensor.float),
}
OTHERS = {
    "weighted classes": (lambda outputs, targets: F.cross_entropy(outputs, targets, torch.tensor([1.0, 10.0, 1.0])),),
    "targets that do not count": (_of_two, _padded),
    "a root of a mean": (lambda outputs, targets: F.mse_loss(outputs[:, 0], targets).sqrt(), torch.Tensor.float),
    "a sum": (lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="sum"),),
}


@pytest.mark.parametrize("name", MEANS)
def test_means_over_examples(name):
    Judged(*MEANS[name]).check()


@pytest.mark.parametrize("name", OTHERS)
def test_losses_that_are_none(name):
    with pytest.raises(TaskError, match=r"the loss of judged is no mean over the examples of a batch.*--devices 1"):
        Judged(*OTHERS[name]).check()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["examples first", "words first", "weights"])
def test_what_is_accepted_is_equal_to_one_process(tmp_path: Path, monkeypatch, kind):
    """Two real processes, whether or not they are refused."""
    store, task = Store(tmp_path / "store"), task_of("Sequence", kind=kind, length="6it")
    one, two = (trained(store, described(store, task, ranks, masked=False)) for ranks in (1, 2))
    equal = largest_difference(store, one["model"], two["model"]) <= 1e-9
    assert equal == (kind == "examples first")
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with Lab(tmp_path / "store", device="cpu", devices=2) as lab, contextlib.ExitStack() as stack:
        if not equal:
            stack.enter_context(pytest.raises(TaskError, match="draws random numbers"))
        assert lab.segment(task, start=0).arithmetic.ranks == 2
