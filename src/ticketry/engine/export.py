"""Exports a masked model, or the model without its pruned channels, as an ONNX file or a torch.export archive."""

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
from ticketry_engine.example_inputs import Inputs, resize_batch
from ticketry_engine.export import FORMATS as FORMATS
from ticketry_engine.export import ExportedFile, copy_model, first_line
from ticketry_engine.export import format_of as format_of
from ticketry_engine.support.entry_points import entry_point

_SEED = 7


@dataclass(frozen=True)
class Exported(ExportedFile):
    """A description of an exported file, with the checks that the file passed."""

    shrunk: bool
    """Whether pruned channels were removed; otherwise pruned weights are zeros in the file."""
    why_not_shrunk: str
    """Reason why pruned channels were not removed; "" if they were, or if that was not requested."""
    dense_parameters: int
    """Number of parameters of the given model."""

    def describe(self) -> dict[str, Any]:
        """Return all fields as JSON values by name."""
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
    """Write `model` under `mask` to a file, read the file and compare outputs; leave no file if that fails.

    Args:
        model: the dense model; a copy of it is exported in evaluation mode.
        mask: the mask, whose pruned weights are zeros in the file, or are absent if channels are removed; None: export
            the unchanged model.
        example_inputs: a tensor, a tuple of the model's arguments, or a dict of keyword arguments, with the batch on
            axis 0.
        path: path of the file.
        format: ``onnx`` (written by torch's exporter, read by ONNX Runtime) or ``pt2`` (torch.export); None: the format
            of the path's suffix, or ONNX if the suffix is neither.
        shrink: whether to remove the channels that the mask prunes, as `ticketry.shrink` does; None: remove them if
            that is possible.
        batch: the only batch size that the file accepts; None: the file accepts any batch size.
        facts: metadata for the file, in addition to ticketry's version.

    Raises:
        UsageError: if the format is unknown, or differs from the path's suffix.
        MissingExtraError: if the libraries for the format are not installed.
        MaskError: if the mask does not fit the model, or is not channel-wise although `shrink` is True.
        StructureError: if channels cannot be removed although `shrink` is True.
        EngineError: if the model cannot be exported, or if the file gives other outputs than the model.
    """
    if mask is None and shrink:
        raise UsageError("there is no mask that says what to shrink")
    source, why = unwrapped(model), ""
    if mask is not None:
        format_of(Path(path), format)  # before the work of shrinking
        mask, masked = mask.to("cpu"), copy_model(source)
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
    """Return (model without pruned channels, ""), or (unchanged model, reason why no channels were removed).

    Args:
        model: the masked model.
        mask: the mask.
        inputs: example inputs.
        shrink: whether to remove channels; True: raise an error if that is impossible; None: try it.
    """
    if shrink is False:
        return model, ""
    try:
        small = shrunk_model(model, mask, resize_batch(inputs, 2, seed=_SEED))
    except (MaskError, StructureError) as error:
        if shrink:
            raise
        return model, first_line(error)
    if sum(value.numel() for value in small.parameters()) >= sum(value.numel() for value in model.parameters()):
        return model, "the mask removes no channel"
    return small.eval().requires_grad_(False), ""
