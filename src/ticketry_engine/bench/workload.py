"""The workload of a comparison: a model, one batch of inputs, a number format, and a number of threads."""

from __future__ import annotations

import copy
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ticketry_engine.errors import UsageError
from ticketry_engine.example_inputs import batch_of, difference, outputs_of
from ticketry_engine.export import write_onnx
from ticketry_engine.support.entry_points import check_model, entry_point

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Case:
    """A workload that is the same for every engine of a comparison."""

    model: nn.Module
    """Dense model in evaluation mode, float32 on the CPU; pruned weights are zeros."""
    inputs: tuple[Any, ...] | Mapping[str, Any]
    """Arguments of one call, positional or by name; tensors are contiguous."""
    precision: str = "fp32"
    """Precision of the arithmetic, fp32 or bf16. Inputs and outputs are float32 in both."""
    threads: int = 1

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.threads < 1:
            raise UsageError(f"threads must be at least 1, got {self.threads}")
        check_model(self.model)
        if self.model.training:
            raise UsageError("only models in evaluation mode are timed: call model.eval() first")

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments of a call."""
        return () if isinstance(self.inputs, Mapping) else self.inputs

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of a call."""
        return dict(self.inputs) if isinstance(self.inputs, Mapping) else {}

    def outputs(self, function: Callable[..., Any]) -> list[Tensor]:
        """Call a function with the inputs and return its output tensors."""
        return outputs_of(function(*self.args, **self.kwargs))

    @property
    def tensors(self) -> list[Tensor]:
        """Tensors among the inputs, in order."""
        return outputs_of((self.args, self.kwargs))

    @property
    def batch(self) -> int:
        """Batch size of the inputs."""
        return batch_of(self.inputs)

    def of(self, model: nn.Module) -> Case:
        """Return the case with another model and the same inputs."""
        return replace(self, model=model)

    @entry_point()
    def reference(self) -> list[Tensor]:
        """Return the outputs of eager torch in float32."""
        with torch.inference_mode():
            return self.outputs(self.model)

    @entry_point()
    def rounding(self) -> float:
        """Return the relative error of `reference` against float64; 0 if the model does not run in float64."""

        def double(leaf: Any) -> Any:
            return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

        args, kwargs = tree_map(double, (self.args, self.kwargs))
        try:
            with torch.inference_mode():
                exact = outputs_of(copy.deepcopy(self.model).double()(*args, **kwargs))
        except RuntimeError:  # the model has float32 in its code
            return 0.0
        return difference(self.reference(), exact)

    @cached_property
    def onnx(self) -> Path:
        """ONNX file of the model for inputs of exactly these shapes; deleted with the case.

        Raises:
            EngineError: if the model cannot be exported.
        """
        folder = tempfile.mkdtemp(prefix="ticketry-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        file = Path(folder) / "model.onnx"
        write_onnx(self.model, self.args, file, named=self.kwargs)
        return file
