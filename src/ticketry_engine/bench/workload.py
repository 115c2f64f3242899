"""What is timed: a model, one batch of its inputs, a number format and so many threads."""

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
    """The same for every engine of a comparison."""

    model: nn.Module
    """Dense, in evaluation mode, float32 on the CPU; removed weights are zeros."""
    inputs: tuple[Any, ...] | Mapping[str, Any]
    """Arguments of one call, in their order or by name, contiguous."""
    precision: str = "fp32"
    """fp32 or bf16: of the arithmetic. Inputs and outputs are float32 in both."""
    threads: int = 1

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"the precision is one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        if self.threads < 1:
            raise UsageError(f"there is at least 1 thread, not {self.threads}")
        check_model(self.model)
        if self.model.training:
            raise UsageError("only models in evaluation mode are timed: call model.eval() first")

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments that are given by their place."""
        return () if isinstance(self.inputs, Mapping) else self.inputs

    @property
    def kwargs(self) -> dict[str, Any]:
        """Those that are given by name."""
        return dict(self.inputs) if isinstance(self.inputs, Mapping) else {}

    def outputs(self, function: Callable[..., Any]) -> list[Tensor]:
        """What a function of the inputs returns."""
        return outputs_of(function(*self.args, **self.kwargs))

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the inputs, in order."""
        return outputs_of((self.args, self.kwargs))

    @property
    def batch(self) -> int:
        """Examples in the inputs."""
        return batch_of(self.inputs)

    def of(self, model: nn.Module) -> Case:
        """The case of another model, with the same inputs."""
        return replace(self, model=model)

    @entry_point()
    def reference(self) -> list[Tensor]:
        """Outputs of eager torch in float32."""
        with torch.inference_mode():
            return self.outputs(self.model)

    @entry_point()
    def rounding(self) -> float:
        """Relative error of `reference` against float64, by which other roundings may differ too; 0 if the model does
        not run in float64."""

        def double(leaf: Any) -> Any:
            return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

        args, kwargs = tree_map(double, (self.args, self.kwargs))
        try:
            with torch.inference_mode():
                exact = outputs_of(copy.deepcopy(self.model).double()(*args, **kwargs))
        except RuntimeError:  # float32 is written into it
            return 0.0
        return difference(self.reference(), exact)

    @cached_property
    def onnx(self) -> Path:
        """The model as an ONNX file for inputs of just these shapes; gone with the case.

        Raises:
            EngineError: if the exporter cannot follow the model.
        """
        folder = tempfile.mkdtemp(prefix="ticketry-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        file = Path(folder) / "model.onnx"
        write_onnx(self.model, self.args, file, named=self.kwargs)
        return file
