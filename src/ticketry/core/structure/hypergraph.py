"""Rows put into groups by cutting a hypergraph: rows are its nodes, columns its edges. By Mt-KaHyPar."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

import numpy as np
from torch import Tensor

from ticketry.core.structure.groups import Indices
from ticketry.errors import MissingExtraError, StructureError


def partitioned_rows(kept: Tensor, sizes: Sequence[int], seed: int) -> list[Indices]:
    """The rows of `kept` (boolean [rows, columns]) in parts of exactly `sizes`, so that few columns lie in many parts.

    What is minimised is the sum over columns of (parts that its kept weights lie in - 1), by the deterministic preset
    of Mt-KaHyPar (Gottesbüren et al. 2021), with one thread. Empty sizes are not allowed.

    Raises:
        MissingExtraError: if mtkahypar is not installed.
        StructureError: if the partitioner does not meet the sizes.
    """
    if len(sizes) == 1:
        return [np.arange(len(kept))]
    mtkahypar = _library()
    made = mtkahypar.initialize(1, print_warnings=False)
    mtkahypar.set_seed(seed % 2**31)
    context = made.context_from_preset(mtkahypar.PresetType.DETERMINISTIC)
    context.set_partitioning_parameters(len(sizes), 0.0, mtkahypar.Objective.KM1)
    context.set_individual_target_block_weights(list(sizes))
    edges = [rows for rows in (column.nonzero()[0].tolist() for column in kept.numpy().T) if len(rows) > 1]
    if not edges:  # no two rows share a column: any parts are as good
        return np.split(np.arange(len(kept)), np.cumsum(sizes)[:-1])
    parts = np.array(made.create_hypergraph(context, len(kept), len(edges), edges).partition(context).get_partition())
    found = np.bincount(parts, minlength=len(sizes)).tolist()
    if found != list(sizes):
        raise StructureError(
            f"the partitioner put {len(kept)} rows into parts of {found} where {list(sizes)} were asked for: take"
            " another method or another number of rows"
        )
    return [np.flatnonzero(parts == part) for part in range(len(sizes))]


def _library() -> ModuleType:
    try:
        return importlib.import_module("mtkahypar")
    except ImportError as error:
        raise MissingExtraError("mtkahypar", "hypergraph", "grouping rows by a hypergraph") from error
