"""Dense engines to compare with: torch eager, channels_last, torch.compile with freezing, ONNX Runtime and OpenVINO.

An engine is prepared for one case and then called with the case's inputs, its threads pinned down and nothing of it
left spinning. In bf16 the weights of torch's three are bfloat16; inputs come and outputs go as float32, and the
conversions are part of the time, as are changes of layout.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ticketry_engine.bench.workload import Case
from ticketry_engine.errors import EngineError, MissingExtraError, UsageError
from ticketry_engine.example_inputs import outputs_of
from ticketry_engine.export import first_line, quiet
from ticketry_engine.processor import computes_in_bf16

Call = Callable[..., Any]
"""Takes the case's inputs, returns outputs."""

Infer = Callable[[dict[str, Any]], Sequence[Any]]
"""From arrays by the names of inputs to those of the outputs, in order."""


class UnavailableError(EngineError):
    """An engine that this machine or this number format does not have; the message says why, in a few words."""


class Contender(Protocol):
    """What can be timed."""

    @property
    def name(self) -> str:
        """As tables have it."""

    @property
    def sparse(self) -> bool:
        """Whether it makes use of zeros; what it saves is told against the fastest that does not."""

    @property
    def model(self) -> nn.Module | None:
        """The model that it runs, where that is not the case's: its outputs are compared with that one's."""

    def prepare(self, case: Case) -> Call:
        """Everything that is done once: compile, pack. `case` has the contender's own model, if it has one.

        Raises:
            UnavailableError: if it cannot be had here.
            EngineError: if it cannot run the model.
        """

    def versions(self) -> dict[str, str]:
        """Of the libraries that it runs on."""


class Eager:
    """torch as it is, in its default layout."""

    name: ClassVar[str] = "eager"
    sparse: ClassVar[bool] = False
    model: ClassVar[None] = None
    layout: ClassVar[torch.memory_format] = torch.contiguous_format

    def prepare(self, case: Case) -> Call:
        return _converted(_in_precision(case, self.layout), case, self.layout, torch.inference_mode)

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}


class ChannelsLast(Eager):
    """torch with weights and inputs in channels_last."""

    name, layout = "channels_last", torch.channels_last

    def prepare(self, case: Case) -> Call:
        if not _has_images(case):
            raise UnavailableError("the inputs are no images [n, c, h, w]")
        return super().prepare(case)


class Compiled(Eager):
    """torch.compile: Inductor with freezing, which folds norms and packs weights; images in channels_last.

    In the default layout a ResNet-18 takes a quarter more; `max_autotune` and the C++ wrapper change nothing.
    """

    name = "compile"

    def prepare(self, case: Case) -> Call:
        if not any(shutil.which(one) for one in (os.environ.get("CXX", ""), "g++", "clang++", "c++") if one):
            raise UnavailableError("no C++ compiler on this machine")
        layout = torch.channels_last if _has_images(case) else torch.contiguous_format
        model = _in_precision(case, layout)
        compiled: Call = torch.compile(model, fullgraph=False, dynamic=False, options={"freezing": True})
        run = _converted(compiled, case, layout, torch.no_grad)
        try:
            # Else the ninth shape of one class of modules would silently run in eager torch.
            with (
                quiet(),
                torch._dynamo.config.patch(
                    recompile_limit=1024, accumulated_recompile_limit=4096, fail_on_recompile_limit_hit=True
                ),
            ):
                run(*case.args, **case.kwargs)
        except Exception as error:  # of any backend
            raise EngineError(f"torch.compile failed: {type(error).__name__}: {first_line(error)}") from error
        return run


def _has_images(case: Case) -> bool:
    return any(tensor.dim() == 4 for tensor in case.tensors)


def _in_precision(case: Case, layout: torch.memory_format) -> nn.Module:
    """A copy of the model with weights in the case's number format and this layout."""
    model = copy.deepcopy(case.model).requires_grad_(False)
    if case.precision == "bf16":
        model = model.to(torch.bfloat16)
    if layout == torch.channels_last:
        for value in (*model.parameters(), *model.buffers()):
            if value.dim() == 4:
                value.data = value.data.contiguous(memory_format=torch.channels_last)
    return model


def _converted(function: Call, case: Case, layout: torch.memory_format, mode: Callable[[], Any]) -> Call:
    """The call with inputs brought into format and layout, and outputs to float32."""
    half = case.precision == "bf16"

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if half and leaf.is_floating_point():
            leaf = leaf.to(torch.bfloat16)
        if layout == torch.channels_last and leaf.dim() == 4:
            leaf = leaf.contiguous(memory_format=layout)
        return leaf

    def back(leaf: Any) -> Any:
        return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype == torch.bfloat16 else leaf

    def run(*inputs: Any, **named: Any) -> Any:
        with mode():
            made = function(*tree_map(convert, inputs), **tree_map(convert, named))
            return tree_map(back, made) if half else made

    return run


class Shrunk:
    """A dense engine on the physically smaller model of a channel-wise mask: sparse, with no sparse kernels."""

    sparse: ClassVar[bool] = True

    def __init__(self, engine: Contender, small: nn.Module, model: nn.Module | None = None) -> None:
        """`model` is the masked one, whose outputs these are to be, where that is not the case's."""
        self.name, self.model = f"{engine.name}, shrunk", model
        self._engine, self._small = engine, small

    def prepare(self, case: Case) -> Call:
        return self._engine.prepare(case.of(self._small))

    def versions(self) -> dict[str, str]:
        return self._engine.versions()


class Sparse:
    """An engine that makes use of zeros, from a function that compiles a case's model."""

    sparse: ClassVar[bool] = True

    def __init__(
        self, compile_case: Callable[[Case], Call], name: str = "ticketry", model: nn.Module | None = None
    ) -> None:
        self.name, self.model = name, model
        self._compile = compile_case
        self.compiled: Call | None = None
        """What was prepared last."""

    def prepare(self, case: Case) -> Call:
        self.compiled = self._compile(case)
        return self.compiled

    def versions(self) -> dict[str, str]:
        return {"ticketry": version("ticketry")}


class _ReadsOnnx:
    """An engine that reads the model as an ONNX file."""

    name: ClassVar[str]
    title: ClassVar[str]
    sparse: ClassVar[bool] = False
    model: ClassVar[None] = None

    def prepare(self, case: Case) -> Call:
        if find_spec(self.name) is None:
            raise UnavailableError("not installed")
        self._check(case)
        try:
            file = case.onnx
        except MissingExtraError as error:
            raise UnavailableError(f"{error.args[0]} is not installed, which its models are written with") from None
        try:
            declared, infer = self._load(file, case)
        except EngineError:
            raise
        except Exception as error:  # of any runtime
            raise EngineError(f"{self.title} cannot load the model: {first_line(error)}") from error
        if len(declared) != len(case.tensors):
            raise EngineError(
                f"the ONNX model has {len(declared)} inputs and the call {len(case.tensors)} tensors: one is not used"
            )

        def run(*inputs: Any, **named: Any) -> list[Tensor]:
            arrays = (tensor.detach().contiguous().numpy() for tensor in outputs_of((inputs, named)))
            return [torch.from_numpy(array) for array in infer(dict(zip(declared, arrays, strict=True)))]

        return run

    def versions(self) -> dict[str, str]:
        return {package: version(package) for package in (self.name, "onnx")}

    def _check(self, case: Case) -> None:
        """`UnavailableError` for a case that it has nothing for."""

    def _load(self, file: Path, case: Case) -> tuple[list[str], Infer]:
        """Names of its inputs, and what computes outputs of inputs by name."""
        raise NotImplementedError


class OnnxRuntime(_ReadsOnnx):
    """ONNX Runtime's CPU provider: all of its graph's optimisations, one operator after another."""

    name, title = "onnxruntime", "ONNX Runtime"

    def _check(self, case: Case) -> None:
        if case.precision == "bf16":
            raise UnavailableError("its CPU provider has no bf16")

    def _load(self, file: Path, case: Case) -> tuple[list[str], Infer]:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = case.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Its threads may wait spinning inside a call, for that is fast, but not while another engine is timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return [entry.name for entry in session.get_inputs()], lambda feed: session.run(None, feed)


class OpenVino(_ReadsOnnx):
    """OpenVINO's CPU plug-in, one stream. Without the hint of precision it would compute in bf16 where it can."""

    name, title = "openvino", "OpenVINO"

    def _check(self, case: Case) -> None:
        import openvino as ov

        # It lists bf16 also where the processor has AVX-512 without it, and then computes in another precision.
        listed = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if case.precision == "bf16" and not ("BF16" in listed and computes_in_bf16()):
            raise UnavailableError("no bf16 on this processor")

    def _load(self, file: Path, case: Case) -> tuple[list[str], Infer]:
        import openvino as ov

        core, hint = ov.Core(), {"fp32": "f32", "bf16": "bf16"}[case.precision]
        settings: Mapping[str, Any] = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": case.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # all engines are kept on the same cores, from outside
        }
        compiled = core.compile_model(core.read_model(str(file)), "CPU", settings)
        _check_settings(compiled, hint, case.threads)
        request, outputs = compiled.create_infer_request(), list(compiled.outputs)

        def infer(feed: dict[str, Any]) -> list[Any]:
            found = request.infer(feed, share_inputs=True, share_outputs=True)  # outputs are of this call only
            return [found[output] for output in outputs]

        return [entry.get_any_name() for entry in compiled.inputs], infer


def _check_settings(compiled: Any, hint: str, threads: int) -> None:
    """A hint may be ignored: what it runs with is asked for, for a comparison stands on it."""
    told = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if told != hint:
        raise EngineError(f"OpenVINO computes in {told} though {hint} was asked for")
    used = compiled.get_property("INFERENCE_NUM_THREADS")
    if used != threads:
        raise EngineError(f"OpenVINO uses {used} threads though {threads} were asked for")


_RIVALS: dict[str, type[Contender]] = {
    engine.name: engine for engine in (Eager, ChannelsLast, Compiled, OnnxRuntime, OpenVino)
}


def names() -> tuple[str, ...]:
    """All dense engines."""
    return tuple(_RIVALS)


def rivals(chosen: Sequence[str] | None = None) -> list[Contender]:
    """The engines of these names, each once; all of them for None.

    Raises:
        UsageError: for a name that is none of `names()`, or if there is no name.
    """
    asked = list(dict.fromkeys(names() if chosen is None else chosen))
    unknown = [name for name in asked if name not in _RIVALS]
    if unknown:
        raise UsageError(f"there is no dense engine {unknown[0]!r}: choose from {', '.join(names())}")
    if not asked:
        raise UsageError(f"name a dense engine to compare with: {', '.join(names())}")
    return [_RIVALS[name]() for name in asked]
