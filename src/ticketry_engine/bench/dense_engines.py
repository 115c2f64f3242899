"""Defines the dense engines to compare with: eager torch (also channels_last), torch.compile, ONNX Runtime, OpenVINO.

An engine is prepared for one case and then called with the inputs of the case. Its number of threads is fixed, and the
threads do not spin between calls. In bf16, the three torch engines have bfloat16 weights. Inputs and outputs are always
float32; the measured time includes conversions of their number format and memory format.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ticketry_engine.bench.timing import Case
from ticketry_engine.errors import EngineError, MissingExtraError, UsageError
from ticketry_engine.example_inputs import output_tensors
from ticketry_engine.export import first_line, silence_exporters
from ticketry_engine.processor import computes_in_bf16

Call = Callable[..., Any]
"""Function from the inputs of a case to its outputs."""

Infer = Callable[[dict[str, Any]], Sequence[Any]]
"""Function from input arrays by name to the output arrays, in order."""


class UnavailableError(EngineError):
    """Error for an engine that is not available on this machine or in this number format; the message says why."""


class Contender(Protocol):
    """Interface of an engine that `compare` can time."""

    @property
    def name(self) -> str:
        """Return the name of the engine in tables."""

    @property
    def sparse(self) -> bool:
        """Return whether the engine exploits zeros, and is therefore compared with the fastest dense engine."""

    @property
    def model(self) -> nn.Module | None:
        """Return the model that gives the expected outputs; None if that is the case's model."""

    def prepare(self, case: Case) -> Call:
        """Do all work that is needed only once, such as compiling the case's model; return the function to time.

        Raises:
            UnavailableError: if the engine is not available on this machine or for this case.
            EngineError: if the engine cannot run the model.
        """

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that the engine uses, by library name."""


class Eager:
    """Eager torch in the default memory format."""

    name: ClassVar[str] = "eager"
    sparse: ClassVar[bool] = False
    model: ClassVar[None] = None
    layout: ClassVar[torch.memory_format] = torch.contiguous_format

    def prepare(self, case: Case) -> Call:
        return _with_conversions(_copy_in_precision(case, self.layout), case, self.layout, torch.inference_mode)

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}


class ChannelsLast(Eager):
    """Eager torch with weights and inputs in the memory format channels_last."""

    name, layout = "channels_last", torch.channels_last

    def prepare(self, case: Case) -> Call:
        if not _has_image_inputs(case):
            raise UnavailableError("the inputs are not images [n, c, h, w]")
        return super().prepare(case)


class TorchCompile(Eager):
    """torch.compile with Inductor and freezing, the fastest settings in trials; images are in channels_last."""

    name = "compile"

    def prepare(self, case: Case) -> Call:
        if not any(shutil.which(one) for one in (os.environ.get("CXX", ""), "g++", "clang++", "c++") if one):
            raise UnavailableError("no C++ compiler on this machine")
        layout = torch.channels_last if _has_image_inputs(case) else torch.contiguous_format
        model = _copy_in_precision(case, layout)
        compiled: Call = torch.compile(model, fullgraph=False, dynamic=False, options={"freezing": True})
        run = _with_conversions(compiled, case, layout, torch.no_grad)
        try:
            # With the default limit the ninth shape of a module class would silently run in eager torch.
            with (
                silence_exporters(),
                torch._dynamo.config.patch(
                    recompile_limit=1024, accumulated_recompile_limit=4096, fail_on_recompile_limit_hit=True
                ),
            ):
                run(*case.args, **case.kwargs)
        except Exception as error:  # of any backend
            raise EngineError(f"torch.compile failed: {type(error).__name__}: {first_line(error)}") from error
        return run


def _has_image_inputs(case: Case) -> bool:
    return any(tensor.dim() == 4 for tensor in case.tensors)


def _copy_in_precision(case: Case, layout: torch.memory_format) -> nn.Module:
    """Return a copy of the case's model with weights in the case's number format and in the memory format `layout`."""
    model = copy.deepcopy(case.model).requires_grad_(False)
    if case.precision == "bf16":
        model = model.to(torch.bfloat16)
    if layout == torch.channels_last:
        for value in (*model.parameters(), *model.buffers()):
            if value.dim() == 4:
                value.data = value.data.contiguous(memory_format=torch.channels_last)
    return model


def _with_conversions(function: Call, case: Case, layout: torch.memory_format, mode: Callable[[], Any]) -> Call:
    """Return a function that converts the inputs, calls `function` in the context `mode`, and converts the outputs.

    Inputs get the case's precision and, if they are images, the memory format `layout`; outputs become float32.
    """
    half = case.precision == "bf16"

    def convert_input(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if half and leaf.is_floating_point():
            leaf = leaf.to(torch.bfloat16)
        if layout == torch.channels_last and leaf.dim() == 4:
            leaf = leaf.contiguous(memory_format=layout)
        return leaf

    def convert_output_to_float32(leaf: Any) -> Any:
        return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype == torch.bfloat16 else leaf

    def run_converted(*inputs: Any, **named: Any) -> Any:
        with mode():
            made = function(*tree_map(convert_input, inputs), **tree_map(convert_input, named))
            return tree_map(convert_output_to_float32, made) if half else made

    return run_converted


class ShrunkModel:
    """A dense engine that runs a smaller model, without the pruned channels, and counts as sparse in comparisons.

    Args:
        engine: the dense engine.
        small: the model without the pruned channels.
        model: the masked model whose outputs are expected; None: the model of the case.
    """

    sparse: ClassVar[bool] = True

    def __init__(self, engine: Contender, small: nn.Module, model: nn.Module | None = None) -> None:
        """Store the engine and the models."""
        self.name, self.model = f"{engine.name}, shrunk", model
        self._engine, self._small = engine, small

    def prepare(self, case: Case) -> Call:
        return self._engine.prepare(replace(case, model=self._small))

    def versions(self) -> dict[str, str]:
        return self._engine.versions()


class Sparse:
    """An engine that exploits zeros, given by a function that compiles a model.

    Args:
        compile_case: function that compiles the model of a case and returns the function to time.
        name: name of the engine in tables.
        model: the masked model that the engine runs; None: the model of the case.
    """

    sparse: ClassVar[bool] = True

    def __init__(
        self, compile_case: Callable[[Case], Call], name: str = "ticketry", model: nn.Module | None = None
    ) -> None:
        self.name, self.model = name, model
        self._compile = compile_case
        self.compiled: Call | None = None
        """Result of the last call of `prepare`."""

    def prepare(self, case: Case) -> Call:
        self.compiled = self._compile(case)
        return self.compiled

    def versions(self) -> dict[str, str]:
        return {"ticketry": version("ticketry")}


class _OnnxContender:
    """Base class of engines that read the model from an ONNX file."""

    name: ClassVar[str]
    title: ClassVar[str]
    sparse: ClassVar[bool] = False
    model: ClassVar[None] = None

    def prepare(self, case: Case) -> Call:
        if find_spec(self.name) is None:
            raise UnavailableError("not installed")
        self._check_supported(case)
        try:
            file = case.onnx
        except MissingExtraError as error:
            raise UnavailableError(f"{error.args[0]} is not installed, which its models are written with") from None
        try:
            declared, infer = self._load_file(file, case)
        except EngineError:
            raise
        except Exception as error:  # of any runtime
            raise EngineError(f"{self.title} cannot load the model: {first_line(error)}") from error
        if len(declared) != len(case.tensors):
            raise EngineError(
                f"the ONNX model has {len(declared)} inputs and the call {len(case.tensors)} tensors: one is not used"
            )

        def run(*inputs: Any, **named: Any) -> list[Tensor]:
            arrays = (tensor.detach().contiguous().numpy() for tensor in output_tensors((inputs, named)))
            return [torch.from_numpy(array) for array in infer(dict(zip(declared, arrays, strict=True)))]

        return run

    def versions(self) -> dict[str, str]:
        return {package: version(package) for package in (self.name, "onnx")}

    def _check_supported(self, case: Case) -> None:
        """Raise `UnavailableError` if the engine does not support the case."""

    def _load_file(self, file: Path, case: Case) -> tuple[list[str], Infer]:
        """Load the ONNX file; return its input names, and a function that computes outputs from named input arrays."""
        raise NotImplementedError


class OnnxRuntime(_OnnxContender):
    """ONNX Runtime on the CPU with all graph optimisations; operators run one after the other."""

    name, title = "onnxruntime", "ONNX Runtime"

    def _check_supported(self, case: Case) -> None:
        if case.precision == "bf16":
            raise UnavailableError("its CPU provider has no bf16")

    def _load_file(self, file: Path, case: Case) -> tuple[list[str], Infer]:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = case.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Its threads may spin inside a call, which is fast, but not while another engine is timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return [entry.name for entry in session.get_inputs()], lambda feed: session.run(None, feed)


class OpenVino(_OnnxContender):
    """OpenVINO's CPU plug-in with one stream; for fp32, a hint forbids OpenVINO to compute in bf16."""

    name, title = "openvino", "OpenVINO"

    def _check_supported(self, case: Case) -> None:
        import openvino as ov

        # It also lists bf16 for processors with AVX-512 only, and then computes in another precision.
        listed = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if case.precision == "bf16" and not ("BF16" in listed and computes_in_bf16()):
            raise UnavailableError("no bf16 on this processor")

    def _load_file(self, file: Path, case: Case) -> tuple[list[str], Infer]:
        import openvino as ov

        core, hint = ov.Core(), {"fp32": "f32", "bf16": "bf16"}[case.precision]
        settings: Mapping[str, Any] = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": case.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # `compare` pins all engines to the same cores
        }
        compiled = core.compile_model(core.read_model(str(file)), "CPU", settings)
        _check_settings(compiled, hint, case.threads)
        request, outputs = compiled.create_infer_request(), list(compiled.outputs)

        def infer(feed: dict[str, Any]) -> list[Any]:
            found = request.infer(feed, share_inputs=True, share_outputs=True)  # outputs are valid until the next call
            return [found[output] for output in outputs]

        return [entry.get_any_name() for entry in compiled.inputs], infer


def _check_settings(compiled: Any, hint: str, threads: int) -> None:
    """Raise `EngineError` if OpenVINO ignores the requested precision or number of threads."""
    actual = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if actual != hint:
        raise EngineError(f"OpenVINO computes in {actual} although {hint} was requested")
    used = compiled.get_property("INFERENCE_NUM_THREADS")
    if used != threads:
        raise EngineError(f"OpenVINO uses {used} threads although {threads} were requested")


_RIVALS: dict[str, type[Contender]] = {
    engine.name: engine for engine in (Eager, ChannelsLast, TorchCompile, OnnxRuntime, OpenVino)
}


def engine_names() -> tuple[str, ...]:
    """Return the names of all dense engines."""
    return tuple(_RIVALS)


def rivals(chosen: Sequence[str] | None = None) -> list[Contender]:
    """Return the dense engines with the names `chosen`, without repetition; None: all dense engines.

    Raises:
        UsageError: if a name is not in `names()`, or if `chosen` is empty.
    """
    requested = list(dict.fromkeys(engine_names() if chosen is None else chosen))
    unknown = [name for name in requested if name not in _RIVALS]
    if unknown:
        raise UsageError(f"there is no dense engine {unknown[0]!r}: choose from {', '.join(engine_names())}")
    if not requested:
        raise UsageError(f"name a dense engine to compare with: {', '.join(engine_names())}")
    return [_RIVALS[name]() for name in requested]
