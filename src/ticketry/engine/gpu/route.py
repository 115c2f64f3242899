"""What `tk.compile` does with a model that is on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ticketry.core.mask import Mask
from ticketry.engine.gpu.compiled import PRECISIONS, CompiledGpu, compile_gpu
from ticketry.errors import EngineError


def compile_as_it_is(
    model: nn.Module,
    mask: Mask | None,
    example_inputs: Any,
    *,
    threads: int | None,
    target: str,
    precision: str = "fp32",
) -> CompiledGpu:
    """`compile_gpu` in the precision of the model's own weights; float32 is multiplied as TF32.

    Raises:
        EngineError: settings that are a CPU's, weights in float64, and as `compile_gpu` does.
    """
    if threads is not None or target != "host":
        raise EngineError("threads and target are of a CPU: leave them out, or move the model to the CPU")
    own = precision_of(model)
    if precision not in ("fp32", own):
        raise EngineError(
            f"the model's weights are {own}: convert it, or call compile_gpu with precision={precision!r}"
        )
    return compile_gpu(model, mask, example_inputs, precision=own)


def precision_of(model: nn.Module) -> str:
    """The precision that keeps the weights of a model as they are."""
    counts: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    most = max(counts, key=lambda dtype: counts[dtype], default=torch.float32)
    names = {dtype: name for name, dtype in PRECISIONS.items()}
    if most not in names:
        raise EngineError(
            f"there are no sparse kernels for {most} on a GPU: convert the model, or call compile_gpu with a precision"
        )
    return names[most]
