"""Exports models as ONNX files or torch.export archives, and compares the files with the models on random inputs."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ticketry_engine.capture.eager_checks import copy_model as copy_model
from ticketry_engine.capture.program import (
    Arguments,
    advice_on_returned_object,
    dynamic_shapes_of_call,
    silence_loggers,
)
from ticketry_engine.errors import EngineError, MissingExtraError, UsageError
from ticketry_engine.example_inputs import Inputs, output_tensors, relative_difference
from ticketry_engine.support.entry_points import entry_point

T = TypeVar("T")

FORMATS = ("onnx", "pt2")

TOLERANCE = 1e-4
"""Maximum relative error of an exported model that is accepted."""

_FIXED = "if the model needs one batch size, export it for that alone (batch=N, --batch N)"
_BATCHES = (1, 2, 5)
_SEED = 7


@dataclass(frozen=True)
class ExportCheck:
    """The difference between outputs of an exported model and its source, on random inputs of one batch size."""

    batch: int
    error: float
    """Relative error: the maximum over all outputs of norm(exported - source) / norm(source)."""


@dataclass(frozen=True)
class ExportedFile:
    """A description of an exported file, with the checks that the file passed."""

    path: str
    format: str
    batch: int | None
    """The only batch size that the file accepts; None: the file accepts any batch size."""
    bytes: int
    """Size of the file in bytes, including the second file that stores the weights if they have more than 1.9 GB."""
    parameters: int
    """Number of parameters in the file."""
    nonzero: int
    """Number of nonzero parameters in the file."""
    runtime: str
    """Name and version of the runtime that was used to check the file."""
    checks: tuple[ExportCheck, ...]


@entry_point()
def export(
    model: nn.Module,
    example_inputs: Inputs,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    batch: int | None = None,
    facts: Mapping[str, str] | None = None,
) -> ExportedFile:
    """Write a model to a file, and check that the file gives the model's outputs; delete the file if a check fails.

    Args:
        model: the model; a copy of it is exported in evaluation mode.
        example_inputs: a tensor, a tuple of the model's arguments, or a dict of keyword arguments, with the batch on
            axis 0.
        path: path of the file.
        format: ``onnx`` (written by torch's exporter, read by ONNX Runtime) or ``pt2`` (torch.export); None: the format
            of the path's suffix, or ONNX if the suffix is neither.
        batch: the only batch size that the file accepts; None: the file accepts any batch size.
        facts: metadata for the file.

    Raises:
        UsageError: if the format is unknown, or differs from the path's suffix.
        MissingExtraError: if the libraries for the format are not installed.
        EngineError: if the model cannot be exported, or if the file gives other outputs than the model.
    """
    if not isinstance(example_inputs, Tensor | tuple | Mapping):
        raise UsageError(
            "example_inputs of an export is a tensor, a tuple of the model's arguments in their order, or a dict of"
            f" them by name, not a {type(example_inputs).__name__}"
        )
    target = Path(path)
    format = format_of(target, format)
    if format == "onnx" and find_spec("onnxruntime") is None:
        raise MissingExtraError("onnxruntime", "onnx", "checking what was exported")
    if batch is not None and batch < 1:
        raise UsageError(f"a batch has at least one example, not {batch}")
    if target.is_dir():
        raise UsageError(f"{target} is a folder: name the file to write")
    source = copy_model(model)
    # By itself not 1: torch.export takes a size of 1 for a constant.
    given = Arguments.from_examples(example_inputs)
    examples = batch or 2
    call = given.with_batch_size(examples, seed=_SEED)
    shapes = dynamic_shapes_of_call(source, call.args, call.kwargs, examples) if batch is None else None
    write: Callable[..., None] = write_onnx if format == "onnx" else _write_pt2
    read = _read_onnx if format == "onnx" else _read_pt2

    def write_draft(file: Path) -> tuple[str, tuple[ExportCheck, ...]]:
        write(source, call.args, file, named=call.kwargs, dynamic_shapes=shapes, facts=dict(facts or {}))
        runtime, run = read(file)
        return runtime, _check_outputs(source, run, given, _BATCHES if batch is None else (batch,), runtime)

    (runtime, checks), size = _write_and_move(target, write_draft)
    parameters = list(source.parameters())
    return ExportedFile(
        path=str(target),
        format=format,
        batch=batch,
        bytes=size,
        parameters=sum(value.numel() for value in parameters),
        nonzero=sum(int(value.count_nonzero()) for value in parameters),
        runtime=runtime,
        checks=checks,
    )


def format_of(path: Path, format: str | None) -> str:
    """Return the format of a file: `format` if it is given, else the format of the path's suffix, else "onnx".

    Raise `UsageError` if the format is unknown, or differs from the suffix.
    """
    if format is not None and format not in FORMATS:
        raise UsageError(f"the format of an export is one of {', '.join(FORMATS)}, not {format!r}")
    ending = path.suffix.lower().removeprefix(".")
    named = ending if ending in FORMATS else None
    if format and named and format != named:
        raise UsageError(
            f"{path} is named as {named}, and {format} was asked for: name another file, or format={named!r}"
        )
    return format or named or FORMATS[0]


def _write_and_move(target: Path, write_draft: Callable[[Path], T]) -> tuple[T, int]:
    """Call `write_draft` with a temporary path, and move the file written there to `target`.

    Return (result of `write_draft`, size of the file in bytes).
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The names inside are the final ones, for an ONNX file names the one beside it.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".ticketry-") as folder:
            made = write_draft(Path(folder) / target.name)
            files = sorted(Path(folder).iterdir())
            size = sum(file.stat().st_size for file in files)
            for file in files:
                os.replace(file, target.parent / file.name)
    except OSError as error:
        raise EngineError(f"{target} cannot be written: {error.strerror or error}") from error
    return made, size


# -- the formats -------------------------------------------------------------------------------------------------------

Run = Callable[..., Sequence[Tensor]]


def _read_onnx(file: Path) -> tuple[str, Run]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has no common class of errors
        raise EngineError(f"ONNX Runtime does not take what was exported: {first_line(error)}") from error
    names = [entry.name for entry in session.get_inputs()]

    def run_session(*inputs: Any, **named: Any) -> list[Tensor]:
        arrays = [leaf.numpy() for leaf in output_tensors((inputs, named))]
        return [torch.from_numpy(found) for found in session.run(None, dict(zip(names, arrays, strict=True)))]

    return f"ONNX Runtime {ort.__version__}", run_session


def _write_pt2(
    model: nn.Module,
    inputs: tuple[Any, ...],
    file: Path,
    *,
    named: dict[str, Any],
    dynamic_shapes: Any,
    facts: dict[str, str],
) -> None:
    try:
        with silence_exporters(), torch.no_grad():
            program = _export_program(model, inputs, named, dynamic_shapes)
            torch.export.save(program, str(file), extra_files={"ticketry.json": json.dumps(facts)})
    except Exception as error:  # the exporter runs the model's own code, which may raise anything
        fixed = f"; {_FIXED}" if dynamic_shapes is not None else ""
        why = advice_on_returned_object(error) or f"{type(error).__name__}: {first_line(error)}{fixed}"
        raise EngineError(f"{type(model).__name__} cannot be exported: {why}") from error


def _export_program(
    model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    """Return torch.export's program of a model; if tracing fails, try strict tracing, which supports `len(x)`."""
    try:
        return torch.export.export(model, inputs, named, dynamic_shapes=dynamic_shapes)
    except Exception:  # as above
        with contextlib.suppress(Exception):
            return torch.export.export(model, inputs, named, dynamic_shapes=dynamic_shapes, strict=True)
        raise


def _read_pt2(file: Path) -> tuple[str, Run]:
    with silence_exporters():
        loaded = torch.export.load(str(file)).module()

    def run_program(*inputs: Any, **named: Any) -> list[Tensor]:
        with torch.no_grad():
            return output_tensors(loaded(*inputs, **named))

    return f"torch {torch.__version__}", run_program


def _check_outputs(
    source: nn.Module, run_exported: Run, arguments: Arguments, batches: Sequence[int], runtime: str
) -> tuple[ExportCheck, ...]:
    """Compare the outputs of the exported model and its source for each batch size; return the differences.

    `run_exported` calls the exported model. Raise `EngineError` if one of the models fails, or if their outputs differ.
    """
    found = []
    for number, batch in enumerate(batches):
        call = arguments.with_batch_size(batch, seed=_SEED + 1 + number)
        try:
            with torch.no_grad():
                expected = output_tensors(source(*call.args, **call.kwargs))
        except Exception as error:  # of the model's own code
            raise EngineError(
                f"{type(source).__name__} itself does not take a batch of {batch}, in the first axis of its inputs:"
                f" {first_line(error)}; {_FIXED}"
            ) from error
        try:
            made = list(run_exported(*call.args, **call.kwargs))
        except Exception as error:  # of any runtime
            raise EngineError(
                f"{runtime} cannot run what was exported with a batch of {batch}: {first_line(error)}; {_FIXED}"
            ) from error
        error_found, floats = relative_difference(made, expected), [one for one in expected if one.is_floating_point()]
        most = max([TOLERANCE, *(_ROUNDINGS * torch.finfo(one.dtype).eps for one in floats)])
        if not error_found <= most:
            raise EngineError(
                f"what was exported is not equal to its source: at a batch of {batch} the relative error in {runtime}"
                f" is {error_found:.2g}, more than {most:.2g}; nothing was written"
            )
        found.append(ExportCheck(batch, error_found))
    return tuple(found)


_ROUNDINGS = 8
"""Number of rounding errors that are accepted in outputs whose format is narrower than float32."""
_ONE_FILE_BYTES = 1_900_000_000
"""Maximum bytes of weights in a single ONNX file, because the format of the file is limited to 2 GB.

Larger weights are stored in a second file.
"""


def write_onnx(
    model: nn.Module,
    inputs: tuple[Any, ...],
    file: Path,
    *,
    named: dict[str, Any] | None = None,
    dynamic_shapes: Any = None,
    facts: dict[str, str] | None = None,
) -> None:
    """Write a model as an ONNX file; weights of more than 1.9 GB are written to a second file (.data).

    Args:
        model: the model, in evaluation mode.
        inputs: positional arguments of an example call.
        file: path of the file.
        named: keyword arguments of the example call.
        dynamic_shapes: argument of torch.export; None: the file accepts only inputs of the given shapes.
        facts: metadata for the file.

    Raises:
        MissingExtraError: if onnx or onnxscript is not installed.
        EngineError: if the model cannot be exported.
    """
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "onnx", "writing ONNX")
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    try:
        with silence_exporters(), torch.no_grad():
            program = _onnx_program(model, inputs, named or {}, dynamic_shapes)
            program.model.metadata_props.update(facts or {})
            program.save(str(file), external_data=weights > _ONE_FILE_BYTES)
    except Exception as error:  # the exporter runs the model's own code, which may raise anything
        why = advice_on_returned_object(error) or first_line(error.__cause__ or error)
        raise EngineError(f"{type(model).__name__} cannot be written as ONNX: {why}") from error


def _onnx_program(model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], dynamic_shapes: Any) -> Any:
    """Return torch's ONNX program of a model; if tracing fails or fixes the batch size, try strict tracing."""
    options: dict[str, Any] = {"dynamo": True, "verbose": False, "optimize": True}
    failed: Exception | None = None
    try:
        made = torch.onnx.export(model, inputs, kwargs=named, dynamic_shapes=dynamic_shapes, **options)
        if dynamic_shapes is None or (made and made.exported_program and made.exported_program.range_constraints):
            return made
    except Exception as error:  # as above
        failed = error
    with contextlib.suppress(Exception):
        program = torch.export.export(model, inputs, named, dynamic_shapes=dynamic_shapes, strict=True)
        return torch.onnx.export(program, inputs, kwargs=named, dynamic_shapes=dynamic_shapes, **options)
    if failed is not None:
        raise failed
    return made


@contextlib.contextmanager
def silence_exporters() -> Iterator[None]:
    """Suppress output, log messages and warnings of exporters inside a `with` block."""
    with contextlib.redirect_stdout(io.StringIO()), silence_loggers("torch.onnx", "onnxscript", level=logging.ERROR):
        yield


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's message, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"
