"""Synthetic masks for timing, with random weights or random columns of groups of rows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.scope import scope
from ticketry.core.structure.layout import layouts
from ticketry_engine.errors import UsageError


@dataclass(frozen=True)
class Pattern:
    """States which weights a synthetic mask retains: single weights, or random columns of groups of rows."""

    kind: str
    """Kind of pattern: unstructured, groups or channels."""
    rows: int = 1
    """Smallest number of rows of a group; a layer with fewer rows has a single group."""
    any_order: bool = False
    """Whether the rows of a group may be anywhere in the layer; otherwise the rows are adjacent."""
    pairs: bool = False
    """Whether inputs 2c and 2c + 1 at a kernel position are retained or removed together, as in bf16 kernels."""

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Parse the text of a pattern, such as ``unstructured``, ``channels`` or ``groups:16``.

        In ``groups:16``, 16 adjacent rows retain the same columns; in ``groups:4:any``, any 4 rows do. In
        ``groups:32:pairs`` and ``groups:32:any:pairs``, pairs of adjacent inputs are retained or removed together.
        """
        kind, _, rest = text.partition(":")
        rows, _, order = rest.partition(":")
        if kind in ("unstructured", "channels") and not rest:
            return cls(kind)
        if kind == "groups" and rows.isdecimal() and int(rows) >= 1 and order in ("", "any", "pairs", "any:pairs"):
            return cls(kind, int(rows), order.startswith("any"), order.endswith("pairs"))
        raise UsageError(
            f"the pattern of a synthetic mask must be unstructured, groups:ROWS[:any][:pairs] or channels, got {text!r}"
            " (groups:16: sixteen adjacent rows share their columns; any: rows in any order; pairs: adjacent inputs are"
            " kept or pruned together)"
        )

    def __str__(self) -> str:
        if self.kind != "groups":
            return self.kind
        return f"groups:{self.rows}{':any' if self.any_order else ''}{':pairs' if self.pairs else ''}"


def synthetic(model: nn.Module, pattern: Pattern | str, density: float, *, seed: int = 0) -> Mask:
    """Return a random mask with the same density in every weight of `ticketry.scope(model)`.

    A weight is viewed as rows (outputs) times columns (inputs times kernel positions). Of n columns, each group of rows
    retains round(density * n), at least one. An unstructured mask retains the fraction `density` of each weight tensor.
    """
    pattern = Pattern.parse(pattern) if isinstance(pattern, str) else pattern
    if not 0 < density <= 1:
        raise UsageError(f"density must be in (0, 1], got {density}")
    if pattern.kind == "channels":
        raise UsageError("whole channels are coupled and cannot be drawn at random: use structure.channels")
    generator = torch.Generator().manual_seed(seed)
    tensors, shapes = {}, scope(model).shapes
    for name, layout in layouts(model, shapes).items():
        by_rows = layout.rows(torch.empty(shapes[name], device="meta"))  # outputs first, also where inputs come first
        shape = by_rows.flatten(0, 1).shape
        flat = torch.zeros(shape[0], max(1, torch.Size(shape[1:]).numel()), dtype=torch.bool)
        if pattern.kind == "unstructured":
            flat = _random_flags(flat.numel(), density, generator).view_as(flat)
        else:
            inputs, positions = shape[1] if len(shape) > 1 else 1, torch.Size(shape[2:]).numel()
            drawn = -(-inputs // 2) if pattern.pairs else inputs  # pairs of inputs are retained or removed together
            for rows in split_rows(len(flat), pattern, generator):
                chosen = _random_flags(drawn * positions, density, generator).view(-1, positions)
                flat[rows] = chosen.repeat_interleave(2 if pattern.pairs else 1, 0)[:inputs].reshape(-1)
        tensors[name] = layout.weight(flat.view(by_rows.shape), shapes[name])
    return Mask(tensors)


def split_rows(rows: int, pattern: Pattern, generator: torch.Generator) -> list[Tensor]:
    """Return the row indices of each group when `rows` rows are divided into groups of at least `pattern.rows`.

    The sizes of the groups are as equal as possible. If `pattern.rows` and `rows` are both multiples of 16, all sizes
    are multiples of 16 too.
    """
    unit = 16 if pattern.rows % 16 == 0 and rows % 16 == 0 else 1
    count = max(1, rows // pattern.rows)
    units = rows // unit
    order = torch.randperm(rows, generator=generator) if pattern.any_order else torch.arange(rows)
    edges = [unit * (units * number // count) for number in range(count)] + [rows]
    return [order[first:last] for first, last in itertools.pairwise(edges)]


def _random_flags(count: int, density: float, generator: torch.Generator) -> Tensor:
    """Return a bool tensor [count] with round(density * count) random true elements, at least one."""
    flags = torch.zeros(count, dtype=torch.bool)
    flags[torch.randperm(count, generator=generator)[: max(1, round(density * count))]] = True
    return flags
