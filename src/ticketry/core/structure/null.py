"""Masks whose rows have nothing in common: the entries of each column shuffled among the rows."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.seeds import generator
from ticketry.core.structure.matrices import MatrixView


def shuffled_columns(matrix: Tensor, view: MatrixView, name: str, seed: int) -> Tensor:
    """A matrix [rows, columns], the entries of each column in random order among rows that read the same inputs.

    Each column keeps its entries; where they lie is independent from column to column. A pure function of the layer's
    name and the seed: matrices of one layer are shuffled alike.
    """
    shuffled = torch.empty_like(matrix)
    for number, run in enumerate(view.runs):
        keys = torch.rand(len(run), matrix.shape[1], generator=generator(seed, "null", name, number))
        shuffled[run.start : run.stop] = matrix[run.start : run.stop].gather(0, keys.argsort(dim=0, stable=True))
    return shuffled


@torch.no_grad()
def with_shuffled_columns(
    model: nn.Module, mask: Mask, views: Mapping[str, MatrixView], seed: int
) -> tuple[nn.Module, Mask]:
    """A copy of the model and the mask with `views` shuffled alike; the rest is as it was."""
    other = deepcopy(model)
    kept = dict(mask)
    parameters = mask.parameters(other)
    for name, view in views.items():
        parameter = parameters[name]
        parameter.copy_(view.weight(shuffled_columns(view.matrix(parameter.cpu()), view, name, seed)))
        kept[name] = view.weight(shuffled_columns(view.matrix(kept[name].cpu()), view, name, seed))
    return other, Mask({name: tensor.to(mask[name].device) for name, tensor in kept.items()})
