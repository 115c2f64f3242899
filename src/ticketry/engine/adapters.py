"""The engine's functions for masks of ticketry: checked against the model, and enforced while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ticketry.core.computed_weights import check_computed_removed
from ticketry.core.mask import Mask
from ticketry.core.sparse_training.hold import Hold
from ticketry_engine.compiled import Compiled
from ticketry_engine.compiled import compile as compile_model
from ticketry_engine.gpu import CompiledGpu
from ticketry_engine.support.entry_points import CHANGES, entry_point
from ticketry_engine.training.sparse_training import SparseTraining, train


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
    """Return a module with the model's call whose sparse layers run in kernels made for the mask.

    A model on a GPU is compiled for it: `engine.gpu.compile_gpu` with the precision of the model's own weights, where
    float32 means "tf32". Call that for another precision.

    Args:
        model: any module that `torch.export` can take. It is not changed; it is compiled as in eval mode.
        mask: applied to a copy of the model; None if its pruned weights are zero already.
        example_inputs: a tensor, a tuple of tensors or a dict of keyword arguments, with the batch first. Calls may
            have other numbers of examples.
        threads: that a call uses; None for `torch.get_num_threads()` at each call. It never uses more than there are
            cores that the calling thread may run on.
        target: "host"; or "avx2" or "generic" for kernels that use no more than AVX2, or SSE4.2 .
        precision: on a CPU "fp32", or "bf16": weights and values between layers rounded to bfloat16, sums in float32.
            Inputs and outputs stay float32. What gains nothing by it stays fp32: `Compiled.layers` tells.
        tune: time both layouts and several blocks on the example inputs, and keep what is fastest for their batch,
            instead of trusting the estimates. Takes seconds.

    Raises:
        EngineError: the model cannot be captured, or the processor multiplies no bfloat16.
        MaskError: the mask does not fit the model.
        MissingExtraError: llvmlite is not installed.

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
        check_computed_removed(model, mask.parameters(model), mask)
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
    """Return a module that trains like the model under the mask, with kernels that compute only what is kept.

    It has the model's own parameters, buffers and modules under their names: optimisers, state dicts, clipping and
    checkpoints work as with the model, and what it learns is in the model. The mask is held as by `tk.hold`.

    In training mode, convolutions, linear layers and LSTMs under the mask (and batch norms, ReLUs, sums and pools
    around them) run in sparse kernels, forward and backward; all else runs in torch at its place. Layers that would be
    slower so, by a fixed rule of density and shape, run densely: ``print`` of the module tells. In evaluation mode the
    model itself runs in torch.

    A model is traced by `torch.fx`. Where its way depends on its data, its code runs as it is, and the modules that it
    calls are traced in its place, down to single layers.

    Args:
        model: float32 on the CPU.
        mask: of parameters of the model. None: nothing is pruned, and only convolutions in a row that kernels do as
            fast as torch take part, with what is between them: on processors with AVX-512.
        example_inputs: a tensor, a tuple of arguments or a dictionary of named ones, the batch first. Other batches may
            have other sizes.
        target: as of `tk.compile`.
        precision: ``"fp32"``, or ``"bf16"``: calls in training mode compute as under ``torch.autocast("cpu",
            torch.bfloat16)``, which may be around them or not, in kernels as well as in torch. Values between layers
            and their gradients are bfloat16, parameters and their gradients float32. Outside of autocast, outputs are
            float32 again. Layers over tokens run in torch.

    Raises:
        MaskError: the mask does not fit the model.
        CaptureError: the example does not run through the model.
        EngineError: it is not in float32 on the CPU, or bfloat16 is asked for where the processor does not multiply it.
        UsageError: another precision.
        MissingExtraError: llvmlite is not installed.

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
    """Keep pruned weights at 0 in any loop, as `tk.hold` does."""
    return Hold(model, mask if isinstance(mask, Mask) else Mask(mask))
