"""Training with a penalty on weights, blocks, filters or norm scales, which is added to the task's loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ticketry.core.layout import Blocks, layouts
from ticketry.core.pattern import UNSTRUCTURED, Pattern
from ticketry.core.scope import named_parameters
from ticketry.core.sparse_training.penalties import add_gradients_, check_penalty
from ticketry.errors import ScopeError, UsageError
from ticketry.lab.training.variant import Effect, InTraining, Surroundings, Variant


@dataclass(frozen=True, kw_only=True)
class Penalty(Variant):
    """strength times a penalty of `core.sparse_training.penalties` on some parameters, in the loss of each step."""

    name = "penalty"
    several_ranks = True
    sparse_kernels = True
    replayable = True
    kind: str
    """A word of `core.sparse_training.penalties.PENALTIES`."""
    strength: float
    """Its coefficient in the loss."""
    names: tuple[str, ...]
    """Of the parameters that it is on."""
    pattern: str = UNSTRUCTURED
    """Whose blocks it is on, see `core.pattern`; unstructured leaves it to the kind."""

    def __post_init__(self) -> None:
        pattern = Pattern.parse(self.pattern).check_blocks("groups of a penalty")
        check_penalty(self.kind, blocks=pattern.blocks_of_rows)
        object.__setattr__(self, "strength", float(self.strength))  # 1 and 1.0 have one key
        if not 0 <= self.strength <= 1e6:
            raise UsageError(f"the strength of a penalty is a number from 0 to 1e6, not {self.strength}")
        if not self.names:
            raise UsageError(f"the penalty {self.kind} is on no parameter: name some")

    @classmethod
    def from_description(cls, values: Mapping[str, Any]) -> Penalty:
        return cls(**{**values, "names": tuple(values["names"])})

    def effect(self, around: Surroundings) -> PenaltyEffect:
        return PenaltyEffect(around, self)

    def decides_memory(self) -> list[str]:
        return [self.kind, self.pattern]

    def on(self, model: nn.Module) -> Penalised:
        """The parameters of a model that it is on; `ScopeError` for names that the model lacks."""
        known = named_parameters(model)
        if unknown := [name for name in self.names if name not in known]:
            raise ScopeError(f"a penalty is asked for on {unknown[0]!r}, which {type(model).__name__} does not have")
        parameters = [known[name] for name in self.names]
        pattern = Pattern.parse(self.pattern)
        if pattern.unstructured:
            return Penalised(self, parameters, None)
        where = layouts(model, self.names)
        blocks = [pattern.blocks(tuple(known[name].shape), where[name]) for name in self.names]
        return Penalised(self, parameters, blocks)


@dataclass(frozen=True)
class Penalised:
    """The parameters of a model that a penalty is on."""

    by: Penalty
    parameters: list[nn.Parameter]
    blocks: list[Blocks] | None
    """Of each, where the penalty has a pattern."""

    def add_gradients(self) -> None:
        """Add the penalty's gradients to those of the loss."""
        add_gradients_(self.by.kind, self.by.strength, self.parameters, self.blocks)


class PenaltyEffect(Effect):
    """The gradients of a penalty beside those of the loss. Losses and metrics are the task's all the same."""

    def __init__(self, around: Surroundings, penalty: Penalty) -> None:
        super().__init__(around)
        self._penalty = penalty

    def begin(self, training: InTraining, carried: Mapping[str, Tensor]) -> None:
        self._penalised = self._penalty.on(training.model)

    def after_backward(self) -> None:
        self._penalised.add_gradients()
