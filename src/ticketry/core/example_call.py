"""A call of a model to look at what it does: it leaves the model, and random numbers, as they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ticketry_engine.support.process_state import private_random_state


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """Parameters for which no gradient is computed: those of activations alone cost less time and memory."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in asked:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


def call_in_evaluation(model: nn.Module, example_inputs: Any, *, gradients: bool = False) -> Any:
    """What a model returns in evaluation mode, for hooks to look on.

    Args:
        example_inputs: a tensor, a tuple of tensors or a dict of keyword arguments.
        gradients: whether they may be asked for afterwards.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.set_grad_enabled(gradients), private_random_state([]):
            if isinstance(example_inputs, Mapping):
                return model(**example_inputs)
            return model(*(example_inputs if isinstance(example_inputs, (tuple, list)) else (example_inputs,)))
    finally:
        for module, mode in modes.items():
            module.training = mode
