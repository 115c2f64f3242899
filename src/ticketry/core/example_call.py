"""A call of a model to look at what it does: it leaves the model, and random numbers, as they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ticketry.core.process_state import private_random_state


def call_in_evaluation(model: nn.Module, example_inputs: Any) -> None:
    """Call a model in evaluation mode, without gradients, for hooks to look on.

    Args:
        example_inputs: a tensor, a tuple of tensors or a dict of keyword arguments.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), private_random_state([]):
            if isinstance(example_inputs, Mapping):
                model(**example_inputs)
            else:
                model(*(example_inputs if isinstance(example_inputs, (tuple, list)) else (example_inputs,)))
    finally:
        for module, mode in modes.items():
            module.training = mode
