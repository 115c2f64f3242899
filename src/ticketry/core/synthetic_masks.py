"""Synthetic masks of the right density, for timing: random weights, random columns of groups of rows, or channels."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ticketry.core.layout import layouts
from ticketry.core.mask import Mask
from ticketry.core.scope import scope
from ticketry.core.structure import channels
from ticketry_engine.errors import UsageError
from ticketry_engine.example_inputs import Inputs


@dataclass(frozen=True)
class Pattern:
    """Where a synthetic mask keeps weights."""

    kind: str
    """unstructured, groups or channels."""
    rows: int = 1
    """Of a group, at least, where the layer has as many."""
    any_order: bool = False
    """Whether the rows of a group are anywhere in the layer; else they are neighbours."""
    pairs: bool = False
    """Whether neighbouring inputs (2c and 2c + 1 of a kernel position) are kept or pruned together, as kernels in bf16
    multiply them."""

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """``unstructured``, ``groups:16`` (16 neighbouring rows share their columns), ``groups:4:any``, ``channels``.

        ``groups:32:pairs`` and ``groups:32:any:pairs``: neighbouring inputs are kept or pruned together too.

        Raises:
            UsageError: for anything else.
        """
        kind, _, rest = text.partition(":")
        rows, _, order = rest.partition(":")
        if kind in ("unstructured", "channels") and not rest:
            return cls(kind)
        if kind == "groups" and rows.isdecimal() and int(rows) >= 1 and order in ("", "any", "pairs", "any:pairs"):
            return cls(kind, int(rows), order.startswith("any"), order.endswith("pairs"))
        raise UsageError(
            f"a pattern of masks is unstructured, groups:ROWS[:any][:pairs] or channels, not {text!r}"
            " (groups:16: sixteen rows that are neighbours share their columns; any: that lie anywhere; pairs:"
            " neighbouring inputs are kept or pruned together)"
        )

    def __str__(self) -> str:
        if self.kind != "groups":
            return self.kind
        return f"groups:{self.rows}{':any' if self.any_order else ''}{':pairs' if self.pairs else ''}"


def synthetic(
    model: nn.Module, pattern: Pattern | str, density: float, *, seed: int = 0, example_inputs: Inputs | None = None
) -> Mask:
    """A random mask of `density` in every weight of `ticketry.scope(model)` alike.

    A weight is seen as rows (outputs) times columns (inputs times kernel positions). Of n columns a row, or a group of
    rows, keeps round(density * n), at least one; unstructured masks keep that share of each weight as a whole.

    Args:
        example_inputs: only channels need them, to find what is coupled; they lose those with the smallest weights.

    Raises:
        UsageError: for a pattern that is none, or a density outside (0, 1].
    """
    pattern = Pattern.parse(pattern) if isinstance(pattern, str) else pattern
    if not 0 < density <= 1:
        raise UsageError(f"a density is in (0, 1], not {density}")
    if pattern.kind == "channels":
        if example_inputs is None:
            raise UsageError("channels need example inputs, by which coupled ones are found")
        return channels(model, example_inputs, density=density, score="l1", distribution="uniform")
    generator = torch.Generator().manual_seed(seed)
    made, shapes = {}, scope(model).shapes
    for name, layout in layouts(model, shapes).items():
        seen = layout.rows(torch.empty(shapes[name], device="meta"))  # as rows lie, also where inputs come first
        shape = seen.flatten(0, 1).shape
        flat = torch.zeros(shape[0], max(1, torch.Size(shape[1:]).numel()), dtype=torch.bool)
        if pattern.kind == "unstructured":
            flat = _chosen(flat.numel(), density, generator).view_as(flat)
        else:
            for rows in groups_of(len(flat), pattern, generator):
                flat[rows] = _columns(torch.Size(shape[1:]), pattern.pairs, density, generator)
        made[name] = layout.weight(flat.view(seen.shape), shapes[name])
    return Mask(made)


def groups_of(rows: int, pattern: Pattern, generator: torch.Generator) -> list[Tensor]:
    """The rows of each group: as many groups as there is room for, of sizes as even as multiples allow.

    Groups of a multiple of 16 stay multiples of 16 where the layer's rows are one.
    """
    unit = 16 if pattern.rows % 16 == 0 and rows % 16 == 0 else 1
    count = max(1, rows // pattern.rows)
    units = rows // unit
    order = torch.randperm(rows, generator=generator) if pattern.any_order else torch.arange(rows)
    edges = [unit * (units * number // count) for number in range(count)] + [rows]
    return [order[first:last] for first, last in itertools.pairwise(edges)]


def _columns(shape: torch.Size, pairs: bool, density: float, generator: torch.Generator) -> Tensor:
    """Which columns of weights [inputs, kernel positions...] a group keeps."""
    inputs, positions = shape[0] if shape else 1, shape[1:].numel()
    if not pairs:
        return _chosen(inputs * positions, density, generator)
    found = _chosen(-(-inputs // 2) * positions, density, generator).view(-1, positions)
    return found.repeat_interleave(2, 0)[:inputs].reshape(-1)


def _chosen(count: int, density: float, generator: torch.Generator) -> Tensor:
    """Flags of `count` places, of which round(density * count) are kept, at least one."""
    flags = torch.zeros(count, dtype=torch.bool)
    flags[torch.randperm(count, generator=generator)[: max(1, round(density * count))]] = True
    return flags
