"""How gates are trained beside the weights of a segment, as plain values for its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ticketry.core.gates import KINDS, BinaryConcrete, Kind, by_epoch, by_step
from ticketry.core.gates.attach import LARGEST_INIT
from ticketry.core.gates.handle import RESETS
from ticketry.core.pattern import UNSTRUCTURED, Pattern
from ticketry.errors import UsageError
from ticketry.tasks.recipe import Recipe

ANNEALS = ("step", "epoch")
LR_SCHEDULES = ("recipe", "constant")
OBJECTIVES = ("loss", "reverse_kl", "forward_kl")


@dataclass(frozen=True, kw_only=True)
class Gating:
    """Soft masks that a segment trains with its weights. Frozen and made of plain values: it is part of the key.

    The defaults are those of Savarese et al. (2020); see `core.gates`.
    """

    scope: tuple[str, ...]
    """Names of the parameters that have gates."""
    kind: str = "continuous"
    """A name of `core.gates.KINDS`."""
    init: float = 0.0
    """s0, what every s begins with, and what those that are kept go back to at a further round."""
    penalty: float = 1e-8
    """lambda: coefficient of the sum of all gates in the loss."""
    final: float = 200.0
    """beta_T: the inverse temperature at the end of the schedule, for the kinds that have one."""
    anneal: str = "step"
    """``step``: the temperature falls with every iteration (the paper); ``epoch``: with every epoch (the code)."""
    optimizer: str = "sgd"
    """sgd, adam or adamw, of the gates alone."""
    lr: float = 0.1
    """Of the gates, at its peak."""
    lr_schedule: str = "recipe"
    """``recipe``: rises and falls as that of the weights does (the code); ``constant``: stays."""
    momentum: float = 0.9
    """Of SGD; for Adam and AdamW it is beta1."""
    beta2: float = 0.999
    nesterov: bool = False
    weight_decay: float = 0.0
    """Of the gates; it pulls them to the border between on and off, and the paper has none."""
    reset: str | None = None
    """How the gates of an earlier round, which the start names, begin again: see `Gates.next_round`."""
    seed: int = 0
    """Of the kinds that draw."""
    frozen: bool = False
    """Train the gates alone: weights and buffers stay as they start. The network is in eval mode, but batch norm
    normalises by the batch at hand."""
    objective: str = "loss"
    """What falls: ``loss``, the task's; over frozen weights also ``reverse_kl`` or ``forward_kl``, a divergence of the
    network's outputs from those that it has without gates, see `lab.objective`."""
    density: float | None = None
    """What the expected density is steered to by `core.gates.Balance`; None leaves it to the penalty."""
    temperature: float = 2 / 3
    """Of a binary-concrete draw."""
    structured: bool = False
    """One gate for each coupled channel that the parameters in scope make, see `core.gates.channels`."""
    pattern: str = UNSTRUCTURED
    """Weights that share a gate, see `core.pattern`."""

    def __post_init__(self) -> None:
        for name in ("init", "penalty", "final", "lr", "momentum", "beta2", "weight_decay", "temperature"):
            object.__setattr__(self, name, float(getattr(self, name)))  # 1 and 1.0 have one key
        _one_of("anneal", self.anneal, ANNEALS)
        _one_of("lr_schedule", self.lr_schedule, LR_SCHEDULES)
        _one_of("kind", self.kind, tuple(KINDS))
        if not self.scope:
            raise UsageError("gates: the scope names no parameter")
        if self.reset is not None:
            _one_of("reset", self.reset, RESETS)
        if not 0 <= self.penalty <= 1e6:
            raise UsageError(f"gates: the penalty is a number from 0 to 1e6, not {self.penalty}")
        if not -LARGEST_INIT <= self.init <= LARGEST_INIT:
            raise UsageError(f"gates: init is a number from {-LARGEST_INIT} to {LARGEST_INIT}, not {self.init}")
        _one_of("objective", self.objective, OBJECTIVES)
        if self.objective != "loss" and not self.frozen:
            raise UsageError(
                f"gates: the objective {self.objective} compares with the weights' own outputs: freeze them"
            )
        if self.density is not None and not 0 < self.density < 1:
            raise UsageError(f"gates: they are steered to a density above 0 and below 1, not {self.density}")
        if self.structured and (self.reset is not None or self.density is not None):
            raise UsageError("gates on channels have no further rounds (reset), and are steered to no density")
        if Pattern.parse(self.pattern).check_blocks("gates").blocks_of_rows and self.structured:
            raise UsageError(f"gates are on coupled channels (structured) or on blocks (pattern {self.pattern})")
        self.make_kind()
        self.recipe(Recipe())

    def make_kind(self) -> Kind:
        """The kind of gate, with its settings; `UsageError` for a temperature out of range."""
        if self.kind == BinaryConcrete.name:
            return BinaryConcrete(temperature=self.temperature)
        kind = KINDS[self.kind]
        return kind(final=self.final) if "final" in kind.__dataclass_fields__ else kind()  # type: ignore[call-arg,attr-defined]

    def describe(self) -> dict[str, Any]:
        """All of it as JSON values; what keys are older than is left out where it is not used."""
        plain = {field.name for field in fields(self) if getattr(self, field.name) == field.default}
        return {name: value for name, value in asdict(self).items() if name not in plain or name not in _LATER}

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe by which gates are trained beside weights that follow `recipe`."""
        flat = {"schedule": "constant", "warmup": "0it"} if self.lr_schedule == "constant" else {}
        return recipe.changed(
            optimizer=self.optimizer,
            lr=self.lr,
            momentum=self.momentum,
            beta2=self.beta2,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            **flat,
        )

    def progress(self, step: int, *, total: int, per_epoch: int) -> float:
        """The share of a round of `total` iterations that is done before iteration `step`; 1 from its end on."""
        if step >= total:
            return 1.0
        if self.anneal == "step":
            return by_step(step, total)
        return by_epoch(step // per_epoch, -(-total // per_epoch))


_LATER = ("frozen", "objective", "density", "temperature", "structured", "pattern")
"""Fields that came after the first keys."""


def gating_from(values: Mapping[str, Any]) -> Gating:
    """The inverse of `Gating.describe`, after JSON."""
    return Gating(**{**values, "scope": tuple(values["scope"])})


def _one_of(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"gates: {field} {value!r} is not known: {', '.join(known)}")
