"""What a segment adds to the loss of its task, as plain values for its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ticketry.core.penalty import add_gradients_, check_penalty
from ticketry.core.scope import named_parameters
from ticketry.errors import ScopeError, UsageError


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """strength times a penalty of `core.penalty` on some parameters, in the loss of each step."""

    kind: str
    """A word of `core.penalty.PENALTIES`."""
    strength: float
    """Its coefficient in the loss."""
    names: tuple[str, ...]
    """Of the parameters that it is on."""

    def __post_init__(self) -> None:
        check_penalty(self.kind)
        object.__setattr__(self, "strength", float(self.strength))  # 1 and 1.0 have one key
        if not 0 <= self.strength <= 1e6:
            raise UsageError(f"the strength of a penalty is a number from 0 to 1e6, not {self.strength}")
        if not self.names:
            raise UsageError(f"the penalty {self.kind} is on no parameter: name some")

    def describe(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    def on(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters of a model that it is on; `ScopeError` for names that the model lacks."""
        known = named_parameters(model)
        if unknown := [name for name in self.names if name not in known]:
            raise ScopeError(f"a penalty is asked for on {unknown[0]!r}, which {type(model).__name__} does not have")
        return [known[name] for name in self.names]

    def add_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Add its gradients to those of the loss."""
        add_gradients_(self.kind, self.strength, parameters)


def penalty_from(values: Mapping[str, Any]) -> Penalty:
    """The inverse of `Penalty.describe`, after JSON."""
    return Penalty(**{**values, "names": tuple(values["names"])})
