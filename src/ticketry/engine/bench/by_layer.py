"""The time of each layer of a compiled ticket, beside that of the same layer where nothing is pruned."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.engine.compiled import Compiled, compile


def timed_layers(fast: Compiled, model: nn.Module, mask: Mask, inputs: Tensor, precision: str) -> list[dict[str, Any]]:
    """A row for each layer, with its ``seconds``, and with ``dense_seconds`` in the same engine with nothing pruned.

    Both are of one thread, medians of a few calls; they are not taken in turns, so small differences mean nothing.
    A layer that the dense model does not have by that name has None.
    """
    whole = cast("Compiled", compile(unpruned(model, mask), None, inputs, threads=1, precision=precision))
    dense = {layer.name: layer.seconds for layer in whole.profile(inputs)}
    return [{**asdict(layer), "dense_seconds": dense.get(layer.name)} for layer in fast.profile(inputs)]


def unpruned(model: nn.Module, mask: Mask) -> nn.Module:
    """A copy with numbers in the place of pruned weights, so that no layer is sparse: good for its time alone."""
    filled, draw = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for name, parameter in mask.parameters(filled).items():
        noise = 0.01 + 0.1 * torch.rand(parameter.shape, generator=draw)
        parameter.data = torch.where(mask[name].to(parameter.device), parameter.data, noise.to(parameter))
    return filled
