"""A mask's tensors by the layers that they are of."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from ticketry_engine.kernels.window import Array
from ticketry_engine.support.modules import masked_parameters
from ticketry_engine.training.tracing import LAYERS


def by_parameter(model: nn.Module, mask: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """The mask's tensors by ``id`` of their parameters."""
    return {id(parameter): mask[name] for name, parameter in masked_parameters(model, mask).items()}


def masks_of_layers(model: nn.Module, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of every convolution and linear layer under the mask, its tensor of the mask."""
    found = by_parameter(model, mask)
    # Not by `module.weight`: of a spectral norm it is another one whenever it is read.
    weights = (
        (name, id(one._parameters.get("weight"))) for name, one in model.named_modules() if isinstance(one, LAYERS)
    )
    return {name: found[weight] for name, weight in weights if weight in found}


def kept_of(masks: Mapping[str, Tensor]) -> dict[str, Array]:
    """Of every convolution and linear layer under the mask, which weights are kept: O x I x rows x columns."""
    kept = {name: tensor.numpy() for name, tensor in masks.items()}
    return {
        name: np.ascontiguousarray(each.reshape(*each.shape, 1, 1) if each.ndim == 2 else each)
        for name, each in kept.items()
    }
