"""A model as an ONNX file, by torch's exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ticketry.errors import EngineError, MissingExtraError

_ONE_FILE_BYTES = 1_900_000_000
"""Protocol buffers end at 2 GB: larger weights go into a file beside."""


def write_onnx(
    model: nn.Module,
    inputs: tuple[Any, ...],
    file: Path,
    *,
    dynamic_shapes: Any = None,
    facts: dict[str, str] | None = None,
) -> None:
    """Write `model`, in evaluation mode, as ONNX: one file, with one beside it (.data) only from 2 GB on.

    Args:
        dynamic_shapes: as in torch.export; None for inputs of just these shapes.
        facts: metadata of the file.

    Raises:
        MissingExtraError: without onnx or onnxscript.
        EngineError: if the exporter cannot follow the model.
    """
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "onnx", "writing ONNX")
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                model, inputs, dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False, optimize=True
            )
            assert program is not None
            program.model.metadata_props.update(facts or {})
            program.save(str(file), external_data=weights > _ONE_FILE_BYTES)
    except Exception as error:  # the exporter runs the model's own code, which may raise anything
        raise EngineError(
            f"{type(model).__name__} cannot be written as ONNX: {type(error).__name__}: {first_line(error)}"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters print, log and warn of on their way; standard output stays the caller's."""
    logger = logging.getLogger("torch.onnx")
    level, script = logger.level, logging.getLogger("onnxscript")
    script_level = script.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        script.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
            script.setLevel(script_level)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, no longer than 300 letters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"
