"""How the gates on norms are trained and scored in a tick of Gate Decorators, as plain values for a segment's key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ticketry.core.scope import NORMS, named_parameters
from ticketry.errors import ScopeError, UsageError


@dataclass(frozen=True, kw_only=True)
class Ticking:
    """A segment that trains gates alone, and adds up what each is worth, see `lab.tick`."""

    norms: tuple[tuple[str, str], ...]
    """Of each norm with gates the names of its scale and of its shift ("" where it has none)."""
    head: tuple[str, ...] = ()
    """Parameters that are trained with the gates: those of the last linear layer."""
    lr: float = 1e-3
    """Learning rate of the tick, constant, by SGD without weight decay."""
    momentum: float = 0.9

    def __post_init__(self) -> None:
        for name in ("lr", "momentum"):
            object.__setattr__(self, name, float(getattr(self, name)))  # 1 and 1.0 have one key
        if not self.norms:
            raise UsageError("a tick trains the gates of norms, and none is named")
        if self.lr < 0 or not 0 <= self.momentum < 1:
            raise UsageError(
                f"a tick has a learning rate of at least 0 and 0 <= momentum < 1, not {self.lr:g} and {self.momentum:g}"
            )

    @property
    def scales(self) -> tuple[str, ...]:
        """Names of the scales, which hold the gates."""
        return tuple(scale for scale, _ in self.norms)

    def describe(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, model: nn.Module, **values: float) -> Ticking:
        """The gates of all norms of a model that have a scale.

        Raises:
            ScopeError: if it has none.
        """
        names = {id(parameter): name for name, parameter in named_parameters(model).items()}
        norms: list[tuple[str, str]] = []
        head: tuple[str, ...] = ()
        for module in model.modules():
            own = {local: names[id(value)] for local, value in module._parameters.items() if value is not None}
            if isinstance(module, NORMS) and "weight" in own:
                norms.append((own["weight"], own.get("bias", "")))
            if isinstance(module, nn.Linear):
                head = tuple(own.values())
        if not norms:
            raise ScopeError(
                f"Gate Decorators are gates on norms, and {type(model).__name__} has no norm with a scale: choose a"
                " network with batch norm, such as resnet-20 or vgg-16"
            )
        return cls(norms=tuple(norms), head=head, **values)


def ticking_from(values: Mapping[str, Any]) -> Ticking:
    """The inverse of `Ticking.describe`, after JSON."""
    norms = tuple((scale, shift) for scale, shift in values["norms"])
    return Ticking(**{**values, "norms": norms, "head": tuple(values["head"])})
