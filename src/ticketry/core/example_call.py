"""Call a model on example inputs without changing the model or torch's random state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ticketry.errors import UsageError
from ticketry_engine.support.entry_points import callers_defaults
from ticketry_engine.support.process_state import private_random_state


@contextmanager
def without_parameter_gradients(model: nn.Module) -> Iterator[None]:
    """Within the block, compute no gradients of parameters, which saves time if only other gradients are needed."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def compilation_disabled(model: nn.Module) -> Iterator[None]:
    """Within the block, run compiled modules uncompiled, and recurrent modules without cuDNN.

    Compiled code has no second derivatives, and is compiled again after each change of mode; cuDNN has no gradients in
    evaluation mode.
    """
    with ExitStack() as stack:
        if any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def call_in_evaluation(model: nn.Module, example_inputs: Any, *, gradients: bool = False) -> Any:
    """Call a model in evaluation mode, with its hooks, and return its output.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of tensors or a dict of keyword arguments.
        gradients: whether the output must be differentiable.

    Raises:
        UsageError: if the model fails on these inputs.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with (
            torch.set_grad_enabled(gradients),
            private_random_state([]),
            callers_defaults(),
            compilation_disabled(model),
        ):
            if isinstance(example_inputs, Mapping):
                return model(**example_inputs)
            return model(*(example_inputs if isinstance(example_inputs, (tuple, list)) else (example_inputs,)))
    except Exception as error:  # a user's model may fail in any way
        text = (str(error).splitlines() or [""])[0]
        raise UsageError(
            f"{type(model).__name__} does not run on the example inputs: {type(error).__name__}: {text}; give a tensor,"
            " a tuple or a dictionary of its arguments, in their types and on the model's device"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
