"""Random structure of the same shape: a control for a mask whose rows were grouped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.seeds import generator
from ticketry.core.structure.groups import row_groups
from ticketry.core.structure.matrices import MatrixView, matrix_views


def shuffled_structure(mask: Mask, seed: int, *, model: nn.Module | None = None) -> Mask:
    """A mask with as many groups of rows as `mask`, each of as many rows and columns, drawn at random.

    Every layer keeps its density and its groups' sizes and widths; which rows are together, and which columns each
    group keeps, is drawn by a generator seeded by (seed, the layer's name). Rows that keep nothing are others, as many.

    Args:
        mask: made by `regroup` or `refill`, say. Of an N:M mask only the number of weights of each row remains.
        model: tells where outputs lie that are not in dimension 0 (transposed convolutions) and which outputs of a
            grouped convolution read the same inputs; without it, dimension 0 is taken as one run of rows.

    Raises:
        MaskError: if a model is given that the mask does not fit.
    """
    views = {} if model is None else matrix_views(model, mask)
    return Mask(
        {
            name: _redrawn(name, kept, views.get(name, MatrixView(tuple(kept.shape))), seed) if kept.dim() else kept
            for name, kept in mask.items()
        }
    )


def _redrawn(name: str, kept: Tensor, view: MatrixView, seed: int) -> Tensor:
    matrix = view.matrix(kept.cpu())
    new = torch.zeros_like(matrix)
    draw = generator(seed, "structure", name)
    for run in view.runs:
        order = torch.randperm(len(run), generator=draw) + run.start
        for group in row_groups(matrix[run.start : run.stop]):
            rows, order = order[: len(group.rows)], order[len(group.rows) :]
            columns = torch.randperm(matrix.shape[1], generator=draw)[: group.width]
            new[rows[:, None], columns] = True
    return view.weight(new).to(kept.device)
