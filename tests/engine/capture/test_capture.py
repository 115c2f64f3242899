"""Capture as a user meets it: inputs of every kind, batches, errors, the user's model left alone."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict, namedtuple
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from interpreter import Program
from ticketry.core.mask import Mask
from ticketry.errors import CaptureError, EngineError, MaskError
from ticketry_engine.capture import capture

Pair = namedtuple("Pair", ["one", "two"])


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor | None = None, *, scale: float = 1.0, flag: bool = False) -> Any:
        made = self.layer(x) * scale
        if y is not None:
            made = made + y
        return {"made": made, "pair": Pair(made + 1, [made - 1, None]), "flag": flag}


def check(graph: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        wanted = model(*args, **kwargs)
    made = Program(graph)(*args, **kwargs)
    close = partial(torch.allclose, atol=1e-5)  # the scale has become part of the weights
    assert close(made["made"], wanted["made"])
    assert close(made["pair"].one, wanted["pair"].one)
    assert close(made["pair"][1][0], wanted["pair"].two[0])
    assert made["pair"][1][1] is None
    assert made["flag"] is wanted["flag"]
    return made


def test_a_tuple_of_inputs():
    model = Two()
    graph = capture(model, None, (torch.randn(2, 4), torch.randn(2, 3)))
    x, y = torch.randn(7, 4), torch.randn(7, 3)
    check(graph, model, x, y)
    check(graph, model, x, y=y)
    check(graph, model, y=y, x=x)
    with pytest.raises(EngineError, match="'y' has 6 examples, another one 7"):
        Program(graph)(x, y[:6])
    with pytest.raises(EngineError, match="'y' is missing"):
        Program(graph)(x)


def test_inputs_by_name_and_constants():
    model = Two()
    graph = capture(model, None, {"x": torch.randn(2, 4), "scale": 3.0, "flag": True})
    x = torch.randn(5, 4)
    check(graph, model, x=x, scale=3.0, flag=True)
    with pytest.raises(EngineError, match=r"captured with 3\.0"):
        Program(graph)(x=x, scale=2.0, flag=True)


@pytest.mark.parametrize("examples", [0, 1, 2, 5])
def test_any_example_gives_any_batch(examples: int) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    graph = capture(model, None, torch.randn(examples, 4))
    assert graph.accepts_any_batch
    assert not graph.notes
    for batch in (0, 1, 3, 65):
        x = torch.randn(batch, 4)
        with torch.no_grad():
            assert torch.allclose(Program(graph)(x), model(x))


def test_a_model_that_insists_on_its_batch():
    class Insists(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(2, 2, 4).sum(1)

    x = torch.randn(4, 4)
    graph = capture(Insists(), None, x)
    assert not graph.accepts_any_batch
    assert "the model fails for another size of axis 0 (shape '[2, 2, 4]'" in graph.notes[0]
    assert torch.equal(Program(graph)(x), x.view(2, 2, 4).sum(1))


def test_inputs_and_masks_that_do_not_fit_are_refused():
    for nothing in (None, (), {}, 3):
        with pytest.raises(CaptureError, match="hold no tensor"):
            capture(nn.Linear(4, 3), None, nothing)
    with pytest.raises(MaskError, match="which Linear lacks"):
        capture(nn.Linear(4, 3), Mask({"other": torch.ones(3, dtype=torch.bool)}), torch.randn(2, 4))


def test_blocks_without_gradients_are_taken_in():
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                y = self.layer(x)
            with torch.autocast("cpu", enabled=False):
                z = torch.relu(y)
            with torch.no_grad():
                return z + x

    model = Blocks()
    graph = capture(model, None, torch.randn(2, 4))
    x = torch.randn(3, 4)
    with torch.no_grad():
        assert torch.allclose(Program(graph)(x), model(x))
    assert all(one.native for one in graph.nodes)


def test_outputs_that_are_inputs_or_weights():
    class Passes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Any:
            return OrderedDict(x=x, weight=self.weight, number=4, text="yes", y=x + self.weight)

    model = Passes()
    x = torch.randn(2, 3)
    made = Program(capture(model, None, x))(x)
    assert torch.equal(made["x"], x)
    assert torch.equal(made["weight"], model.weight)
    assert made["number"] == 4
    assert made["text"] == "yes"


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mask = Mask({"0.weight": torch.zeros(4, 3, 3, 3, dtype=torch.bool)})
    grad = torch.is_grad_enabled()
    graph = capture(model, mask, torch.randn(2, 3, 6, 6))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.is_grad_enabled() == grad
    assert not graph.tensors["0.weight"].any()


def test_capture_needs_no_compiler_and_the_graph_no_export():
    code = (
        "import sys; sys.modules['llvmlite'] = None\n"
        "import ticketry_engine.ir, ticketry_engine.ir.reference, ticketry_engine.ir.model_file\n"
        "assert 'torch.export' not in sys.modules or 'torch._dynamo' not in sys.modules\n"
        "from ticketry_engine.capture import capture\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "import torch; capture(torch.nn.Linear(2, 2), None, torch.zeros(2, 2))\n"
        "assert not {'torch._dynamo', 'sympy'} & set(sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


class Slots:
    """A setting under a private name."""

    __slots__ = ("__scale",)

    def __init__(self, scale: float) -> None:
        self.__scale = scale

    def read(self) -> float:
        return self.__scale


def test_models_that_differ_in_hidden_settings_are_captured_anew(tmp_path, monkeypatch):
    class Hidden(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.layer, self.held = nn.Linear(16, 16), Slots(scale)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.held.read() * float(sys.argv[1])

    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path))
    x = torch.randn(4, 16)
    for value in (2.0, 5.0):
        monkeypatch.setattr(sys, "argv", ["program", str(value)])
        model = Hidden(value).eval()
        with torch.no_grad():
            torch.testing.assert_close(tk.compile(model, None, x)(x), model.layer(x) * value**2, atol=1e-3, rtol=1e-4)


def test_models_that_cannot_be_captured_are_refused_with_the_reason():
    class Auto(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return x @ x.t()

    class Decides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x

    for model, message in (
        (Auto(), r"opens torch\.autocast"),
        (Decides(), r"(?s)torch\.export does not take Decides: .*decides by the values"),
        (nn.Linear(5, 3), r"does not take Linear: RuntimeError: .*\[2, 4\]"),
    ):
        with pytest.raises(CaptureError, match=message):
            capture(model, None, torch.randn(2, 4))


def test_nested_inputs():
    class Nested(nn.Module):
        def forward(self, parts: dict[str, Any]) -> Tensor:
            return parts["a"] + parts["b"][0] * parts["b"][1]

    example = {"a": torch.randn(2, 3), "b": [torch.randn(2, 3), torch.randn(2, 3)]}
    graph = capture(Nested(), None, (example,))
    more = {"a": torch.randn(4, 3), "b": [torch.randn(4, 3), torch.randn(4, 3)]}
    assert torch.equal(Program(graph)(more), more["a"] + more["b"][0] * more["b"][1])
    with pytest.raises(EngineError, match="not 2 values"):
        Program(graph)({"a": more["a"], "b": [more["a"]]})


def test_other_inputs_keep_their_size():
    class Shared(nn.Module):
        def forward(self, x: Tensor, table: Tensor) -> Tensor:
            return x @ table

    graph = capture(Shared(), None, (torch.randn(2, 4), torch.randn(4, 3)))
    assert graph.values["x"].shape == (None, 4)
    assert graph.values["table"].shape == (4, 3)
    x, table = torch.randn(5, 4), torch.randn(4, 3)
    assert torch.equal(Program(graph)(x, table), x @ table)


def test_other_precisions():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).bfloat16()
    graph = capture(model, None, torch.randn(2, 4, dtype=torch.bfloat16))
    assert graph.values["input"].dtype == "bfloat16"
    assert Program(graph)(torch.randn(3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_operations_that_a_model_brings_itself_run_in_torch():
    library = torch.library.Library("ticketry_test_capture", "DEF")
    library.define("cube(Tensor x) -> Tensor")
    library.impl("cube", lambda x: x**3, "CompositeExplicitAutograd")

    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(torch.ops.ticketry_test_capture.cube(x))

    x = torch.randn(3, 4)
    assert torch.equal(Program(capture(Own(), None, x))(x), (x**3).relu())
