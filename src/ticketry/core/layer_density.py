"""How much of one tensor a mask keeps, as values: a row of a mask's table and of a record. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta, Struct

from ticketry_engine.support.printable import one_line as one_line

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


class LayerTable(tuple[LayerDensity, ...]):
    """The tensors of a mask in order, which print as a table: all of them together, then each."""

    __slots__ = ()

    def __str__(self) -> str:
        together = LayerDensity("all layers", sum(row.kept for row in self), sum(row.total for row in self))
        return "\n".join(layer_lines([together, *self]))


def layer_lines(rows: Iterable[LayerDensity]) -> list[str]:
    """A header and a line for each row, in columns."""
    named = [(one_line(row.name), row) for row in rows]
    width = max(len(name) for name in ("layer", *(name for name, _ in named)))
    return [
        f"{'layer':<{width}} {'shape':>14} {'kept':>11} {'of':>11} {'density':>8}",
        *(
            f"{name:<{width}} {'x'.join(map(str, row.shape)):>14} {row.kept:>11,} {row.total:>11,} {row.density:>8.4f}"
            for name, row in named
        ),
    ]
