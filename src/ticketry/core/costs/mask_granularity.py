"""Which granularity a layer's mask has."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ticketry.core.costs.granularity import FINEST, Granularity


def of_mask(kept: Tensor) -> str:
    """The granularity of one layer's mask: the rows of the group that half of its weights are in, or a larger one."""
    if kept.dim() < 2 or not bool(kept.any()):
        return FINEST
    matrix = kept.detach().cpu().flatten(1).numpy()
    packed = np.packbits(matrix, axis=1)
    _, first, sizes = np.unique(packed, axis=0, return_index=True, return_counts=True)
    order = sizes.argsort(kind="stable")
    weights = (sizes * matrix[first].sum(axis=1))[order].cumsum()
    rows = int(sizes[order][np.searchsorted(weights, weights[-1] / 2)])
    return str(Granularity(rows)) if rows > 1 else FINEST
