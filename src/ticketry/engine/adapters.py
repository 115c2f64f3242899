"""Adapts functions of the engine to `Mask` objects, which are checked against the model and enforced in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ticketry.core.computed_weights import require_computed_weights_are_removed
from ticketry.core.mask import Mask
from ticketry.core.sparse_training.hold import Hold
from ticketry_engine import Compiled, CompiledGpu, SparseTraining, train
from ticketry_engine import compile as compile_model
from ticketry_engine.support.entry_points import CHANGES, entry_point


@entry_point()
def compile(
    model: nn.Module,
    mask: Mask | None = None,
    example_inputs: Any = None,
    *,
    threads: int | None = None,
    target: str = "host",
    precision: str = "fp32",
    tune: bool = False,
) -> Compiled | CompiledGpu:
    """Return a compiled model whose sparse layers run in kernels made for the mask.

    Args:
        model: the model, which is not changed, and compiled as in evaluation mode.
        mask: the mask, which is applied to a copy of the model; None if the pruned weights are zero already.
        example_inputs, threads, target, precision, tune: see `ticketry_engine.compile`, which also lists the errors.

    Examples:
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
        >>> mask, x = tk.prune(model, density=0.25), torch.randn(4, 64)
        >>> fast = tk.compile(model, mask, x)
        >>> torch.allclose(fast(x), mask.apply_(model)(x), atol=1e-5)
        True
        >>> fast(torch.randn(10, 64)).shape
        torch.Size([10, 8])
    """
    if mask is not None:
        require_computed_weights_are_removed(model, mask.parameters(model), mask)
    return compile_model(
        *(model, mask, example_inputs),
        threads=threads,
        target=target,
        precision=precision,
        tune=tune,
    )


@entry_point(CHANGES)
def sparse_training(
    model: nn.Module, mask: Mask | None, example_inputs: Any, *, target: str = "host", precision: str = "fp32"
) -> SparseTraining:
    """Return a module that trains like the model under the mask, with kernels that skip pruned weights.

    The mask is enforced as by `tk.hold`. `ticketry_engine.train` describes which layers run in kernels, and the errors.

    Args:
        model: the model, in float32 on the CPU.
        mask: the mask; None: nothing is pruned.
        example_inputs, target, precision: see `ticketry_engine.train`.

    Examples:
        >>> model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(16, 64)
        >>> mask = tk.prune(model, density=0.1, collapse="keep")
        >>> fast = tk.sparse_training(model, mask, x)
        >>> fast(x).square().mean().backward()
        >>> bool((model[0].weight.grad[~mask["0.weight"]] == 0).all())
        True
    """
    return train(model, mask, example_inputs, target=target, precision=precision, enforce=enforce_mask)


def enforce_mask(model: nn.Module, mask: Mapping[str, Tensor]) -> Hold:
    """Return a `Hold`, which keeps the pruned weights of a model at 0 in any training loop, as `tk.hold` does."""
    return Hold(model, mask if isinstance(mask, Mask) else Mask(mask))
