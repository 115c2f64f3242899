"""Export a ticket's model, masked or physically shrunk, as ONNX or a torch.export archive, checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ticketry.core.mask import Mask
from ticketry.core.scope import unwrapped
from ticketry.core.structure.smaller_model import shrink as shrunk_model
from ticketry.errors import MaskError, StructureError, UsageError
from ticketry.version import __version__
from ticketry_engine import export as engine
from ticketry_engine.example_inputs import Inputs, at_batch
from ticketry_engine.export import FORMATS as FORMATS
from ticketry_engine.export import ExportCheck, first_line, own_copy
from ticketry_engine.export import format_of as format_of
from ticketry_engine.support.entry_points import entry_point

_SEED = 7


@dataclass(frozen=True)
class Exported:
    """An exported file, with the checks that it passed."""

    path: str
    format: str
    shrunk: bool
    """Whether masked channels were removed; otherwise pruned weights are zeros in the file."""
    why_not_shrunk: str
    """Why the model was not shrunk; empty if it was, or if that was not requested."""
    batch: int | None
    """The only batch size that the file accepts; None: any."""
    bytes: int
    """Size of the file, including the second file that stores weights from 2 GB on."""
    parameters: int
    """Parameters in the file."""
    dense_parameters: int
    """Parameters of the given model."""
    nonzero: int
    """Parameters in the file that are not 0."""
    runtime: str
    """Runtime that was used to check it."""
    checks: tuple[ExportCheck, ...]

    def describe(self) -> dict[str, Any]:
        """Return the export's facts as JSON values."""
        return asdict(self)


@entry_point()
def export(
    model: nn.Module,
    mask: Mask | None,
    example_inputs: Inputs | Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    shrink: bool | None = None,
    batch: int | None = None,
    facts: Mapping[str, str] | None = None,
) -> Exported:
    """Write `model` under `mask` to a file, read it back and compare; nothing is left behind where that fails.

    Args:
        model: dense; it is exported in evaluation mode, from a copy.
        mask: its pruned weights become zeros, or are gone where the model is shrunk; None for the unchanged model.
        example_inputs: a tensor, a tuple of the model's arguments, or a dict of keyword arguments, the batch first.
        format: ``onnx`` (by torch's exporter; read back by ONNX Runtime) or ``pt2`` (by torch.export); None for that
            of the path's ending, or ONNX.
        shrink: take out the channels that the mask removes (see `ticketry.shrink`); None does so if the mask is
            channel-wise and removes any.
        batch: the only batch size that the file is to take; None lets it take any.
        facts: metadata for the file, in addition to ticketry's version.

    Raises:
        UsageError: for an unknown format, or one that differs from the path's suffix.
        MissingExtraError: without the libraries of the format.
        MaskError: if the mask does not fit, or is not channel-wise though `shrink` was asked for.
        StructureError: if the model cannot be shrunk though that was asked for.
        EngineError: if the exporter cannot follow the model, or what it wrote is not equal to its source.
    """
    if mask is None and shrink:
        raise UsageError("there is no mask that says what to shrink")
    source, why = unwrapped(model), ""
    if mask is not None:
        format_of(Path(path), format)  # before the work of shrinking
        mask, masked = mask.to("cpu"), own_copy(source)
        mask.apply_(masked)
        source, why = _shrink(masked, mask, example_inputs, shrink)
        shrunk = source is not masked
    else:
        shrunk = False
    written = engine.export(
        *(source, example_inputs, path),
        format=format,
        batch=batch,
        facts={"ticketry": __version__, **(facts or {})},
    )
    return Exported(
        shrunk=shrunk,
        why_not_shrunk=why,
        dense_parameters=sum(value.numel() for value in model.parameters()),
        **vars(written),
    )


def _shrink(model: nn.Module, mask: Mask, inputs: Any, shrink: bool | None) -> tuple[nn.Module, str]:
    """Return the smaller model, or the unchanged model with the reason why it is not smaller."""
    if shrink is False:
        return model, ""
    try:
        small = shrunk_model(model, mask, at_batch(inputs, 2, seed=_SEED))
    except (MaskError, StructureError) as error:
        if shrink:
            raise
        return model, first_line(error)
    if not _has_fewer_parameters(small, model):
        return model, "the mask removes no channel"
    return small.eval().requires_grad_(False), ""


def _has_fewer_parameters(one: nn.Module, other: nn.Module) -> bool:
    return sum(value.numel() for value in one.parameters()) < sum(value.numel() for value in other.parameters())
