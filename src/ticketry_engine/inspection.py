"""Reports what the engine does with a model on this machine, for callers that decide whether to use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ticketry_engine.kernels.amx import ROWS
from ticketry_engine.kernels.bfloat import FLOAT, HALF
from ticketry_engine.kernels.target import target
from ticketry_engine.kernels.training.layout import images_of
from ticketry_engine.processor import kind, processor
from ticketry_engine.results import Place
from ticketry_engine.support.row_groups import row_groups
from ticketry_engine.training.capture import fills_blocks
from ticketry_engine.training.lstm import FEWEST
from ticketry_engine.training.sparse_training import ALL_WEIGHTS, VERSION, SparseTraining


@dataclass(frozen=True)
class Machine:
    """The processor and its kernels."""

    processor: str
    """Name and model of the processor."""
    kernels: str
    """Kind of vectors: avx512, avx2, generic or aarch64."""
    bf16: bool
    """Whether the processor multiplies bfloat16."""
    tiles: bool
    """Whether the processor multiplies bfloat16 tiles (AMX), and this process may use them."""
    numerics: int
    """Version of the training kernels' numerics: steps with equal versions and kernels compute equal bits."""


@dataclass(frozen=True)
class InspectedLayer:
    """A layer trained under a mask, and how much of its work kernels save."""

    parameter: str
    """Name of its weight, as in `Module.named_parameters`."""
    where: Place
    """"engine" or "torch"."""
    saved: float
    """Share of the layer's multiply-accumulates that kernels skip: 0 in torch, or if zeros are computed too."""
    in_sixteens: bool
    """Whether every row shares its columns with fifteen others, as kernels with AMX tiles require."""


def machine() -> Machine:
    """Return this machine's processor and what kernels are made for it.

    Raises:
        EngineError: if no kernels run on this system or processor.
        MissingExtraError: if llvmlite is not installed.
    """
    here = target()
    return Machine(f"{processor()[0]} ({kind()})", here.name, here.bf16, here.tiles, VERSION)


def inspect(
    model: nn.Module, keep: Mapping[str, Tensor], example_inputs: Any, *, precision: str = "fp32"
) -> list[InspectedLayer]:
    """Return, for each layer with a weight, where a training step runs it and what share of its work is saved.

    Args:
        model: float32, on the CPU; nothing about it changes but its weights, which are masked.
        keep: parameter name -> bool tensor, True = retained.
        example_inputs: a tensor, a tuple of arguments or a mapping of named ones, the batch first. The number of
            examples matters: see `examples_to_inspect`.
        precision: fp32 or bf16.

    Raises:
        CaptureError: if the example does not run through the model.
        EngineError: if the model is not in float32 on the CPU.
    """
    fast = SparseTraining(model.train(), keep, example_inputs, precision=precision, enforce=None)
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        names.setdefault(id(parameter), name)
    found = []
    for layer in fast.layers():
        for weight in model.get_submodule(layer.name).parameters(recurse=False):
            if weight.dim() > 1:
                name = names[id(weight)]
                computes = layer.where == "engine" and layer.kernel != ALL_WEIGHTS and name in keep
                saved = 1 - float(keep[name].double().mean()) if computes else 0.0
                found.append(InspectedLayer(name, layer.where, saved, name in keep and rows_in_sixteens(keep[name])))
    return found


def examples_to_inspect(batch: int, precision: str = "fp32") -> int:
    """Return how many examples show what kernels do with a batch of this size: a few, or one whole block of images."""
    half = precision == "bf16"
    return images_of(HALF if half else FLOAT) if fills_blocks(batch, half=half) else min(batch, FEWEST)


def rows_in_sixteens(kept: Tensor) -> bool:
    """Return whether all rows of a weight retain the same columns as fifteen others, as kernels by tiles take them."""
    return all(len(group.rows) % ROWS == 0 for group in row_groups(kept))
