"""The state in which a network is measured, and everything as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.seeds import mix
from ticketry.errors import MaskError, UsageError

NORMS = ("batch", "running")


@contextmanager
def measuring(
    model: nn.Module, scope: Scope, *, norms: str = "batch", at: Mask | None = None, seed: int = 0
) -> Iterator[dict[str, nn.Parameter]]:
    """The scope's parameters by name, in a block in which gradients of `model` may be taken.

    All layers are in evaluation mode (no dropout), but norms with running statistics use the batch's with
    ``norms="batch"``; gradients are on, whatever surrounds the block; random numbers depend on `seed` alone; weights
    outside `at` are 0; compiled modules run eagerly. On leaving, also by an exception, modes, buffers, weights,
    ``requires_grad`` and the generators are as before. Memory: a copy of the buffers and, with `at`, of the weights.

    Raises:
        UsageError: for another word than batch or running.
        MaskError: if `at` is not a mask of the scope.
    """
    if norms not in NORMS:
        raise UsageError(f"norms {norms!r} is not known: {', '.join(NORMS)}")
    if at is not None and at.shapes != dict(scope.shapes):
        raise MaskError("the mask to measure at is not of the parameters in scope")
    parameters = scope.parameters(model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(seeded(seed, model))
        stack.enter_context(_eager(model))
        stack.enter_context(_modes(model, norms))
        stack.enter_context(_buffers(model))
        stack.enter_context(pruned_to(at, parameters))
        stack.enter_context(_leaves(parameters))
        yield parameters


@contextmanager
def seeded(seed: int, model: nn.Module) -> Iterator[None]:
    """Torch's generators of the processor and of the model's devices, seeded; as before afterwards."""
    devices = sorted({tensor.device.index for tensor in model.parameters() if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(mix(seed, "scoring"))
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(mix(seed, "scoring"))
        yield


@contextmanager
def pruned_to(mask: Mask | None, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Weights outside the mask at 0; the same bits as before afterwards."""
    if mask is None:
        yield
        return
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.masked_fill_(~mask[name].to(parameter.device), 0)
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name])


@contextmanager
def _leaves(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """All of them with gradients: a frozen weight has a score too."""
    before = {name: parameter.requires_grad for name, parameter in parameters.items()}
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])


@contextmanager
def _modes(model: nn.Module, norms: str) -> Iterator[None]:
    # The flags are set one by one: a model's own train() may do anything else besides.
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            module.training = norms == "batch" and isinstance(module, _NormBase)
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def _buffers(model: nn.Module) -> Iterator[None]:
    before = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        yield
    finally:
        for module, name, buffer, value in before:
            _restore(buffer, value)
            module._buffers[name] = buffer


@torch.no_grad()
def _restore(buffer: Tensor | None, value: Tensor | None) -> None:
    # Only what has changed is written: a buffer that is an expanded view cannot be, and does not need to.
    if buffer is not None and value is not None and not torch.equal(buffer, value):
        buffer.copy_(value)


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Compiled modules uncompiled (no second derivatives there, and each change of mode would compile anew), and
    recurrent ones without cuDNN, which has no gradients in evaluation mode and no second derivatives."""
    with ExitStack() as stack:
        if any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield
