"""Dense engines that read ONNX: ONNX Runtime and OpenVINO, with threads pinned down and nothing left spinning."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ticketry.engine.bench.case import Case
from ticketry.engine.bench.dense import Call, UnavailableError
from ticketry.engine.bench.machine import computes_in_bf16
from ticketry.engine.onnx_file import first_line
from ticketry.errors import EngineError, MissingExtraError


class OnnxRuntime:
    """ONNX Runtime's CPU provider: all of its graph's optimisations, one operator after another."""

    name: ClassVar[str] = "onnxruntime"
    sparse: ClassVar[bool] = False
    model: ClassVar[None] = None

    def prepare(self, case: Case) -> Call:
        _require("onnxruntime")
        if case.precision == "bf16":
            raise UnavailableError("its CPU provider has no bf16")
        file = _onnx(case)
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = case.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Its threads may wait spinning inside a call, for that is fast, but not while another engine is timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise EngineError(f"ONNX Runtime cannot load the model: {first_line(error)}") from error
        names = _names([entry.name for entry in session.get_inputs()], case)

        def run(*inputs: Any) -> list[Tensor]:
            found = session.run(None, dict(zip(names, map(_array, _tensors(inputs)), strict=True)))
            return [torch.from_numpy(array) for array in found]

        return run

    def versions(self) -> dict[str, str]:
        return _versions("onnxruntime", "onnx")


class OpenVino:
    """OpenVINO's CPU plug-in, one stream. Without the hint of precision it would compute in bf16 where it can."""

    name: ClassVar[str] = "openvino"
    sparse: ClassVar[bool] = False
    model: ClassVar[None] = None

    def prepare(self, case: Case) -> Call:
        _require("openvino")
        hint = {"fp32": "f32", "bf16": "bf16"}[case.precision]
        file = _onnx(case)
        import openvino as ov

        core = ov.Core()
        listed = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        # It lists bf16 also where the processor has AVX-512 without it, and then computes in another precision.
        if case.precision == "bf16" and not ("BF16" in listed and computes_in_bf16()):
            raise UnavailableError("no bf16 on this processor")
        settings: Mapping[str, Any] = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": case.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # all engines are kept on the same cores, from outside
        }
        try:
            compiled = core.compile_model(core.read_model(str(file)), "CPU", settings)
        except Exception as error:
            raise EngineError(f"OpenVINO cannot load the model: {first_line(error)}") from error
        _check_settings(compiled, hint, case.threads)
        request = compiled.create_infer_request()
        names = _names([entry.get_any_name() for entry in compiled.inputs], case)
        outputs = list(compiled.outputs)

        def run(*inputs: Any) -> list[Tensor]:
            feed = dict(zip(names, map(_array, _tensors(inputs)), strict=True))
            found = request.infer(feed, share_inputs=True, share_outputs=True)  # outputs are of this call only
            return [torch.from_numpy(found[output]) for output in outputs]

        return run

    def versions(self) -> dict[str, str]:
        return _versions("openvino", "onnx")


def _check_settings(compiled: Any, hint: str, threads: int) -> None:
    """A hint may be ignored: what it runs with is asked for, for a comparison stands on it."""
    told = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if told != hint:
        raise EngineError(f"OpenVINO computes in {told} though {hint} was asked for")
    used = compiled.get_property("INFERENCE_NUM_THREADS")
    if used != threads:
        raise EngineError(f"OpenVINO uses {used} threads though {threads} were asked for")


def _require(package: str) -> None:
    if find_spec(package) is None:
        raise UnavailableError("not installed")


def _onnx(case: Case) -> Any:
    try:
        return case.onnx
    except MissingExtraError as error:
        raise UnavailableError(f"{error.args[0]} is not installed, which its models are written with") from None


def _names(declared: list[str], case: Case) -> list[str]:
    if len(declared) != len(case.tensors):
        raise EngineError(
            f"the ONNX model has {len(declared)} inputs and the call {len(case.tensors)} tensors: one is not used"
        )
    return declared


def _tensors(inputs: tuple[Any, ...]) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(inputs)[0] if isinstance(leaf, Tensor)]


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


def _versions(*packages: str) -> dict[str, str]:
    return {package: version(package) for package in packages}
