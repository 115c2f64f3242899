"""What is timed: a model, one batch of its inputs, a number format and so many threads."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ticketry.errors import EngineError, UsageError

PRECISIONS = ("fp32", "bf16")

Inputs = Tensor | tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """The same for every engine of a comparison."""

    model: nn.Module
    """Dense, in evaluation mode, float32 on the CPU; removed weights are zeros."""
    inputs: tuple[Any, ...]
    """Arguments of one call, contiguous."""
    precision: str = "fp32"
    """fp32 or bf16: of the arithmetic. Inputs and outputs are float32 in both."""
    threads: int = 1

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"the precision is one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        if self.threads < 1:
            raise UsageError(f"there is at least 1 thread, not {self.threads}")
        if self.model.training:
            raise UsageError("only models in evaluation mode are timed: call model.eval() first")

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the inputs, in order."""
        return [leaf for leaf in tree_flatten(self.inputs)[0] if isinstance(leaf, Tensor)]

    @property
    def batch(self) -> int:
        """Examples in the inputs."""
        return batch_of(self.inputs)

    def of(self, model: nn.Module) -> Case:
        """The case of another model, with the same inputs."""
        return replace(self, model=model)

    def reference(self) -> list[Tensor]:
        """Outputs of eager torch in float32."""
        with torch.inference_mode():
            return outputs_of(self.model(*self.inputs))

    @cached_property
    def onnx(self) -> Path:
        """The model as an ONNX file for inputs of just these shapes; gone with the case.

        Raises:
            EngineError: if the exporter cannot follow the model.
        """
        from ticketry.engine.onnx_file import write_onnx

        file = Path(self._folder.name) / "model.onnx"
        write_onnx(self.model, self.inputs, file)
        return file

    @cached_property
    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="ticketry-")


def as_arguments(inputs: Inputs) -> tuple[Any, ...]:
    """A tensor, or a tuple of arguments, as a tuple of arguments."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def batch_of(inputs: Inputs) -> int:
    """Examples in the inputs: the first size of their first tensor.

    Raises:
        UsageError: if there is no tensor with a dimension.
    """
    for leaf in tree_flatten(as_arguments(inputs))[0]:
        if isinstance(leaf, Tensor) and leaf.dim():
            return leaf.shape[0]
    raise UsageError("the inputs hold no tensor that has a batch dimension")


def at_batch(inputs: Inputs, batch: int, seed: int = 0) -> tuple[Any, ...]:
    """Inputs with `batch` examples, made of the given ones: repeated, with noise where they are real numbers.

    The noise, half as strong as the inputs vary, makes every example differ from every other, so that an engine that
    mixes examples up does not go unnoticed. Only tensors whose first size is the batch are changed.
    """
    arguments = as_arguments(inputs)
    examples = batch_of(arguments)
    generator = torch.Generator().manual_seed(seed)
    leaves, spec = tree_flatten(arguments)

    def made(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != examples:
            return leaf
        rows = leaf[torch.arange(batch) % examples].contiguous()
        if not leaf.is_floating_point():
            return rows
        spread = float(leaf.std()) if leaf.numel() > 1 else 1.0
        return rows + 0.5 * spread * torch.randn(rows.shape, generator=generator, dtype=rows.dtype)

    whole: tuple[Any, ...] = tree_unflatten([made(leaf) for leaf in leaves], spec)
    return whole


def outputs_of(made: Any) -> list[Tensor]:
    """The tensors in what a model returns, in order."""
    return [leaf for leaf in tree_flatten(made)[0] if isinstance(leaf, Tensor)]


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Relative error of outputs: the largest, over the tensors, of norm(found - expected) / norm(expected).

    Infinite where something is not a finite number. A tensor that should be 0 throughout is compared with 1.

    Raises:
        EngineError: if count or shapes are not the same.
    """
    shapes = [tuple(tensor.shape) for tensor in found], [tuple(tensor.shape) for tensor in expected]
    if shapes[0] != shapes[1]:
        raise EngineError(f"the outputs have the shapes {shapes[0]}, not {shapes[1]}")
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        exact = other.double()
        error = float((one.double() - exact).norm() / (exact.norm() or 1.0))
        worst = max(worst, error) if error == error else float("inf")
    return worst
