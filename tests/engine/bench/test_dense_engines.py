"""Every dense engine computes what eager torch does, in the number format and with the threads that were asked for."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samples import sample
from ticketry.errors import EngineError, UsageError
from ticketry_engine.bench import dense_engines
from ticketry_engine.bench.compare import TOLERANCE
from ticketry_engine.bench.dense_engines import ShrunkModel, UnavailableError, engine_names, rivals
from ticketry_engine.bench.timing import Case
from ticketry_engine.example_inputs import output_tensors, relative_difference, resize_batch

HAS_BF16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


class Words(nn.Module):
    """Integer inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(30, 8), nn.Linear(8, 4)

    def forward(self, tokens: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.table(tokens) * weight.unsqueeze(-1)
        return self.fc(hidden), hidden.sum(1)


def case(model: nn.Module, inputs: Any, precision: str = "fp32", threads: int = 1) -> Case:
    return Case(model.eval(), resize_batch(inputs, 3), precision, threads)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# Below, onnxruntime runs the same network shrunk.
@pytest.mark.parametrize("name", sample(engine_names(), ["eager", "channels_last", "openvino"]))
@pytest.mark.parametrize("precision", sample(["fp32", "bf16"], 1))
def test_images(name: str, precision: str) -> None:
    one = case(Net(), torch.randn(2, 3, 12, 12), precision)
    (engine,) = rivals([name])
    if precision == "bf16" and (name == "onnxruntime" or (name == "openvino" and not HAS_BF16)):
        with pytest.raises(UnavailableError, match="no bf16"):
            engine.prepare(one)
        return
    call = engine.prepare(one)
    for _ in range(2):
        found = output_tensors(call(*one.inputs))
        assert [tensor.dtype for tensor in found] == [torch.float32]
        error = relative_difference(found, one.reference())
        assert error <= TOLERANCE[precision]
        # It did not just compute in float32: an error as large as bfloat16's eight bits make it.
        assert (error > 1e-4) == (precision == "bf16")
    assert set(engine.versions()) <= {"torch", "onnx", "onnxruntime", "openvino"}


@pytest.mark.parametrize("name", sample(engine_names(), sorted({*engine_names()} - {"compile", "openvino"})))
def test_several_inputs_that_are_no_images(name: str) -> None:
    tokens, weight = torch.randint(0, 30, (2, 7)), torch.rand(2, 7)
    one = case(Words(), {"weight": weight, "tokens": tokens})
    (engine,) = rivals([name])
    if name == "channels_last":
        with pytest.raises(UnavailableError, match="not images"):
            engine.prepare(one)
        return
    assert one.batch == 3
    assert 0 < one.rounding() < 1e-6
    assert relative_difference(one.outputs(engine.prepare(one)), one.reference()) <= 1e-5


def test_missing_libraries_and_shrunk_models(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    one, small = case(Net(), torch.randn(2, 3, 12, 12)), Net().eval()
    shrunk = ShrunkModel(rivals(["onnxruntime"])[0], small)
    assert (shrunk.name, shrunk.sparse) == ("onnxruntime, shrunk", True)
    assert (
        relative_difference(output_tensors(shrunk.prepare(one)(*one.inputs)), replace(one, model=small).reference())
        <= 1e-5
    )
    assert capsys.readouterr() == ("", ""), "the exporter is silent"
    real = importlib.util.find_spec
    monkeypatch.setattr(dense_engines, "find_spec", lambda name: None if name == "openvino" else real(name))
    monkeypatch.setenv("PATH", "")
    for name, message in (("openvino", r"^not installed$"), ("compile", r"C\+\+ compiler")):
        with pytest.raises(UnavailableError, match=message):
            rivals([name])[0].prepare(one)


def test_an_ignored_hint_is_an_error() -> None:
    class Told:
        def __init__(self, precision: str, threads: int) -> None:
            self._told = {"INFERENCE_PRECISION_HINT": self, "INFERENCE_NUM_THREADS": threads}
            self._precision = precision

        def get_type_name(self) -> str:
            return self._precision

        def get_property(self, name: str) -> Any:
            return self._told[name]

    dense_engines._check_settings(Told("f32", 1), "f32", 1)
    with pytest.raises(EngineError, match="computes in bf16 although f32"):
        dense_engines._check_settings(Told("bf16", 1), "f32", 1)
    with pytest.raises(EngineError, match="uses 4 threads although 1"):
        dense_engines._check_settings(Told("f32", 4), "f32", 1)


def test_names() -> None:
    assert engine_names() == ("eager", "channels_last", "compile", "onnxruntime", "openvino")
    assert [engine.name for engine in rivals()] == list(engine_names())
    assert [engine.name for engine in rivals(["openvino", "eager", "openvino"])] == ["openvino", "eager"]
    with pytest.raises(UsageError, match="'tensorrt': choose from eager"):
        rivals(["tensorrt"])
    with pytest.raises(UsageError):
        rivals([])


def test_a_case_is_checked() -> None:
    x = torch.randn(2, 3, 12, 12)
    with pytest.raises(UsageError, match="fp32, bf16, got 'int8'"):
        Case(Net().eval(), (x,), "int8")
    with pytest.raises(UsageError, match="threads must be at least 1"):
        Case(Net().eval(), (x,), threads=0)
    with pytest.raises(UsageError, match="evaluation mode"):
        Case(Net(), (x,))


@pytest.mark.slow
def test_two_threads_are_really_given(monkeypatch: pytest.MonkeyPatch) -> None:
    one = case(Net(), torch.randn(2, 3, 12, 12), threads=2)
    for name in ("onnxruntime", "openvino"):
        (engine,) = rivals([name])
        assert relative_difference(output_tensors(engine.prepare(one)(*one.inputs)), one.reference()) <= 1e-5
