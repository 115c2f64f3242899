"""Recipes: all training settings except the task, the model and the seed."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any, Literal

from msgspec import ValidationError, convert

from ticketry.choices import Bounds, check_bounds, check_choices, list_choices
from ticketry.errors import UsageError
from ticketry.step import Step

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "multistep", "cosine", "onecycle", "linear"]
Augmentation = Literal["flip", "crop", "resized_crop", "transforms"]
TO_ZERO = ("cosine", "onecycle", "linear")
"""Schedules whose learning rate ends at 0 or close to 0."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The training settings of a network, such as length and learning rate.

    Examples:
        >>> recipe = tk.Recipe(length="2ep", batch=64, lr=0.05, schedule="cosine")
        >>> recipe.steps(per_epoch=100)
        200
        >>> recipe.changed(lr=0.1).lr
        0.1
    """

    length: str = "10ep"
    """Length in epochs or iterations: ``10ep`` or ``4000it``."""
    batch: int = 128
    """Number of examples per step; the last batch of an epoch may be smaller."""
    optimizer: Optimizer = "sgd"
    """The optimiser: sgd, adam or adamw."""
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of SGD; beta1 of Adam and AdamW."""
    beta2: float = 0.999
    """beta2, the decay of second moments, of Adam and AdamW."""
    nesterov: bool = False
    """Whether SGD uses Nesterov's form of momentum."""
    weight_decay: float = 0.0
    """Weight decay of all parameters: an L2 penalty for SGD and Adam, decoupled from the gradient for AdamW."""
    schedule: Schedule = "constant"
    """How the learning rate changes over the steps: constant, multistep, cosine, onecycle or linear (down to 0)."""
    milestones: tuple[str, ...] = ()
    """Positions at which multistep multiplies the learning rate by `gamma`, such as 80ep,120ep or 50%,75%."""
    gamma: float = 0.1
    """Factor by which multistep multiplies the learning rate at each milestone."""
    warmup: str = "0it"
    """Length of the linear rise of the learning rate from 0, for any schedule; if 0, onecycle rises for 30%."""
    label_smoothing: float = 0.0
    """Share of the target's probability that is spread evenly over all classes."""
    clip: float = 0.0
    """Upper bound of the gradient's L2 norm; 0 disables clipping."""
    augment: tuple[Augmentation, ...] = ()
    """Random augmentations: flip (left-right), crop (after padding by 4 pixels), resized_crop (a random part of the
    image, resized while the image is read from disk, before other augmentations), transforms (the random transforms of
    a PyTorch data set, see `dataset_task`)."""

    def __post_init__(self) -> None:
        for name, bounds in _BOUNDS.items():
            check_bounds(f"recipe: {name}", getattr(self, name), bounds)
            if not bounds.whole:  # 1 and 1.0 must have the same key
                object.__setattr__(self, name, float(getattr(self, name)))
        check_choices(self, "recipe: ")
        for step in (self.length, self.warmup, *self.milestones):
            Step.parse(step)
        if Step.parse(self.length).unit == "%":
            raise UsageError(f"recipe: length is the whole training, in ep or it, not {self.length}")
        if self.optimizer != "sgd" and 1.0 in (self.momentum, self.beta2):
            raise UsageError(f"recipe: momentum and beta2 of {self.optimizer} are below 1")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise UsageError("recipe: nesterov needs the optimizer sgd with a momentum above 0")
        if self.schedule == "multistep" and not self.milestones:
            raise UsageError("recipe: the schedule multistep needs milestones, such as 50%,75%")

    def changed(self, **changes: Any) -> Recipe:
        """Return a copy with the `changes` of fields; None leaves a field unchanged."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def steps(self, per_epoch: int) -> int:
        """Return the length of the training in iterations, if an epoch has `per_epoch` iterations."""
        return Step.parse(self.length).iterations(per_epoch=per_epoch)

    def scaled(self, length: int, *, per_epoch: int) -> Recipe:
        """Return a copy with `length` iterations, in which milestones and warm-up are scaled to the new length.

        Milestones in iterations or epochs are rounded to iterations; an epoch has `per_epoch` iterations. The peak
        learning rate does not change.

        Examples:
            >>> tk.Recipe(length="100it", warmup="1ep").scaled(30, per_epoch=10).warmup
            '3it'
        """
        if length == self.steps(per_epoch):
            return self
        factor = Fraction(length, max(self.steps(per_epoch), 1))

        def scale_step(point: str) -> str:
            return str(Step.parse(point).scaled(factor, per_epoch=per_epoch))

        milestones = tuple(scale_step(point) for point in self.milestones)
        return replace(self, length=f"{length}it", milestones=milestones, warmup=scale_step(self.warmup))


_GIANT = "it has a number of thousands of digits"
_BOUNDS = {
    "batch": Bounds(1, 1 << 24),
    "lr": Bounds(0.0, 1e6, whole=False),
    "momentum": Bounds(0.0, 1.0, whole=False),
    "beta2": Bounds(0.0, 1.0, whole=False),
    "weight_decay": Bounds(0.0, 1e3, whole=False),
    "gamma": Bounds(0.0, 1.0, whole=False),
    "label_smoothing": Bounds(0.0, 1.0, whole=False),
    "clip": Bounds(0.0, 1e12, whole=False),
}


def recipe_from_dict(values: dict[str, Any]) -> Recipe:
    """Return the recipe with `values` from JSON or TOML; lists become tuples."""
    known = {field.name for field in fields(Recipe)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UsageError(f"recipe: unknown setting {unknown[0]!r}: {list_choices(unknown[0], sorted(known))}")
    try:
        return convert(values, Recipe)
    except ValueError as error:  # of msgspec, or of Python for a number of thousands of digits
        reason, _, place = (str(error) if isinstance(error, ValidationError) else _GIANT).partition(" - at `$.")
        raise UsageError(f"recipe: {place.rstrip('`') or 'it'} cannot be what it is: {reason}") from None
