"""How much of one tensor a mask keeps, as values: a row of a mask's table and of a record. Needs no torch."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

_MOST = 10**18


class LayerDensity(Struct, frozen=True):
    """One tensor of the scope and how many of its elements a mask keeps."""

    name: str
    kept: Annotated[int, Meta(ge=0, le=_MOST)]
    total: Annotated[int, Meta(ge=1, le=_MOST)]
    shape: tuple[Annotated[int, Meta(ge=0, le=_MOST)], ...] = ()

    def __post_init__(self) -> None:
        if self.kept > self.total:
            raise ValueError(f"kept is more than the layer's total ({self.total})")

    @property
    def density(self) -> float:
        """Share that is kept; 0 of a tensor without elements."""
        return self.kept / self.total if self.total else 0.0
