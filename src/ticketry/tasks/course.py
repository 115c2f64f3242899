"""What tasks of all kinds have in common: courses and sessions. The lab, searches, scores and reports know no more.

A `Course` is a task with its data at hand: how long an epoch is, by what networks are measured, what a score sees. It
begins a `Session` for each training: the batches of its steps, their loss, and whatever one step hands on to the next
(hidden states of a recurrent network, replay memory), which becomes part of the training's checkpoints.

A task whose examples are drawn independently of what the network does, pictures or tables, needs none of this: it loads
`Splits`, and `lab.supervised` makes a course of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from ticketry.errors import TaskError
from ticketry.tasks.recipe import Recipe

Inputs = Tensor | tuple[Any, ...]
"""A tensor, or a tuple of a model's arguments."""


class Arithmetic(Protocol):
    """Where and in which number format networks run: what a course needs of `lab.precision.Arithmetic`."""

    @property
    def device(self) -> str:
        """cpu or cuda."""

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Around one forward pass; outputs are to be taken to float32 before a loss is computed of them."""


class Session:
    """One training: a batch for each step, its loss, and what is carried from step to step.

    A subclass overrides `loss`, and `batches` unless what a step learns from depends on the network. Every number is a
    function of the arguments that the session was made with, the step, the model, and the state: before each `loss`
    torch's global generators are seeded by (seed, step), so that dropout and the like are too.
    """

    copies: str = ""
    """What the names of those entries of the state begin with that are copies of parameters, which the rest of the name
    tells: they lack the weights that a mask removes, and are cut with the parameter where units are."""

    def batches(self, steps: range) -> Generator[Any, None, None]:
        """The batch of each step; closed when nobody wants more. Here the step itself, for a `loss` that does all."""
        yield from steps

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch, a scalar whose gradient trains the model. What it carries on is detached from it."""
        raise NotImplementedError

    def outputs(self, model: nn.Module, batch: Any, of: str = "") -> tuple[Tensor, Tensor]:
        """Scores of classes [n, classes, ...] that a model gives for a batch, and the targets [n, ...].

        Args:
            of: which of several networks it is that see the same batches; each carries on what is its own.

        Raises:
            TaskError: as here, for a task without classes.
        """
        raise TaskError("this task has no classes, whose scores could be compared: train gates for its own loss")

    def state(self) -> dict[str, Tensor]:
        """A copy of what is carried to the next step, on the CPU; empty where nothing is."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave: the next step is then bit for bit what it would have been."""

    def follows(self, model: nn.Module) -> Mapping[str, tuple[int, str, int]]:
        """Entry of the state -> (its dimension, a parameter of the model, that one's dimension): of the same units.

        Where a network is trained without some of its units, the entry is cut as the parameter is; in a whole one
        there is 0 in their place.
        """
        return {}


class Course:
    """A task with its data at hand. A subclass overrides the methods; `few` is optional."""

    def sizes(self) -> dict[str, int]:
        """Examples in ``train``, ``validation`` and ``test``: all above 0."""
        raise NotImplementedError

    def session(self, recipe: Recipe, seed: int, arithmetic: Arithmetic) -> Session:
        """A new training, as it begins at any step of a schedule; `load_state` goes on with an earlier one.

        Args:
            seed: of the order of the data and of all else that is drawn.
        """
        raise NotImplementedError

    def evaluate(self, model: nn.Module, split: str, arithmetic: Arithmetic) -> dict[str, float]:
        """The metrics on ``train``, ``validation`` or ``test``; the task's own metric is among them.

        A pure function of its arguments. The model is in evaluation mode, and no gradients are recorded.
        """
        raise NotImplementedError

    def sample(self, model: nn.Module, count: int, size: int, seed: int) -> list[Any]:
        """Training batches for a score, on the model's device; fewer where there are not as many examples.

        Args:
            model: what is scored, where its deeds decide what it sees.
            count, size: of batches, and of examples in each.
            seed: what is drawn is a function of it (and of the model) alone.
        """
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of a batch of `sample`, in the model's own number format; carries nothing on."""
        raise NotImplementedError

    def count(self, batch: Any) -> int:
        """Examples in a batch of `sample`."""
        raise NotImplementedError

    def inputs(self, count: int) -> Inputs:
        """What the model takes, for so many examples (or fewer), on the CPU: it is followed on them."""
        raise NotImplementedError

    def few(self, count: int) -> Course:
        """The same course with so few training examples, for measuring what a step costs; by default it is itself."""
        return self


def checked_sizes(name: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of a task's course; `TaskError` if one is missing or empty."""
    splits: Sequence[str] = ("train", "validation", "test")
    for split in splits:
        if not sizes.get(split):
            raise TaskError(f"the task {name!r} has no examples in its {split} split")
    return {split: int(sizes[split]) for split in splits}
