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
from engine.models import Of, assert_exact, ops_in_torch
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


def check(graph: Any, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    with torch.no_grad():
        wanted = model(*args, **kwargs)
    made = Program(graph)(*args, **kwargs)
    (one, (two, nothing)), pair = made["pair"], wanted["pair"]
    found, expected = (made["made"], one, made["pair"].one, two), (wanted["made"], pair.one, pair.one, pair.two[0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)  # the scale has become part of the weights
    assert nothing is None
    assert made["flag"] is wanted["flag"]


def test_inputs_in_a_tuple_or_by_name_with_constants():
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
    graph = capture(model, None, {"x": torch.randn(2, 4), "scale": 3.0, "flag": True})
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
    x = torch.randn(4, 4)
    graph = capture(Of(lambda m, x: x.view(2, 2, 4).sum(1)), None, x)
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
    def blocks(m: Of, x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = m.layer(x)
        with torch.autocast("cpu", enabled=False):
            z = torch.relu(y)
        with torch.no_grad():
            return z + x

    model = Of(blocks, layer=nn.Linear(4, 4))
    graph = capture(model, None, torch.randn(2, 4))
    x = torch.randn(3, 4)
    with torch.no_grad():
        assert torch.allclose(Program(graph)(x), model(x))
    assert not ops_in_torch(graph)


def test_outputs_that_are_inputs_or_weights():
    weights, x = nn.ParameterList([torch.randn(3)]), torch.randn(2, 3)
    model = Of(lambda m, x: OrderedDict(x=x, weight=m.held[0], number=4, text="yes", y=x + m.held[0]), held=weights)
    made = Program(capture(model, None, x))(x)
    assert torch.equal(made["x"], x)
    assert torch.equal(made["weight"], weights[0])
    assert (made["number"], made["text"]) == (4, "yes")


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


def test_models_that_differ_in_hidden_settings_are_captured_anew(tmp_path, monkeypatch):
    class Slots:
        """A setting under a private name."""

        __slots__ = ("__scale",)

        def __init__(self, scale: float) -> None:
            self.__scale = scale

        def read(self) -> float:
            return self.__scale

    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path))
    x = torch.randn(4, 16)
    for value in (2.0, 5.0):
        monkeypatch.setattr(sys, "argv", ["program", str(value)])
        model = Of(lambda m, x: m.layer(x) * m.held.read() * float(sys.argv[1]), layer=nn.Linear(16, 16)).eval()
        model.held = Slots(value)
        with torch.no_grad():
            torch.testing.assert_close(tk.compile(model, None, x)(x), model.layer(x) * value**2, atol=1e-3, rtol=1e-4)


def test_models_that_cannot_be_captured_are_refused_with_the_reason():
    def under_autocast(m: Of, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return x @ x.t()

    decides = Of(lambda m, x: x + 1 if x.sum() > 0 else x)
    for model, message in (
        (Of(under_autocast), r"opens torch\.autocast"),
        (decides, r"(?s)torch\.export does not take Of: .*decides by the values"),
        (nn.Linear(5, 3), r"does not take Linear: RuntimeError: .*\[2, 4\]"),
    ):
        with pytest.raises(CaptureError, match=message):
            capture(model, None, torch.randn(2, 4))


def test_nested_inputs():
    example = {"a": torch.randn(2, 3), "b": [torch.randn(2, 3), torch.randn(2, 3)]}
    graph = capture(Of(lambda m, parts: parts["a"] + parts["b"][0] * parts["b"][1]), None, (example,))
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

    x, model = torch.randn(3, 4), Of(lambda m, x: torch.relu(torch.ops.ticketry_test_capture.cube(x)))
    assert torch.equal(Program(capture(model, None, x))(x), (x**3).relu())


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, double=True, scale=3.0, *, limit=float("inf"), bias=None, names=("a",)):
        y = self.layer(x) * (2 if double else 1)
        y = y if scale is None else y * scale
        y = y if bias is None else y + bias
        return y.clamp(max=limit) * len(names or ())


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("call", [((X,), {}), ((), {"x": X})], ids=["in a tuple", "by name"])
def test_an_argument_that_the_example_gave_may_not_be_left_out(call: Any, tmp_path):
    (args, kwargs), model = call, Scaled().eval()
    made = tk.compile(model, None, {**kwargs, "double": False} if kwargs else (*args, False))
    fast = tk.engine.load(made.save(tmp_path / "model.tkm"))
    without = Of(lambda m, x: m.net(x, double=False), net=model)
    assert_exact(lambda _: fast(*args, **kwargs, double=False), without, X, rtol=1e-5)
    with pytest.raises(EngineError, match="'double' is left out, but the model was captured with False"):
        fast(*args, **kwargs)


def test_an_argument_that_the_example_left_out_is_the_default(tmp_path):
    model = Scaled().eval()
    fast = tk.engine.load(tk.compile(model, None, X).save(tmp_path / "model.tkm"))
    for run in (fast, partial(fast, scale=3.0, bias=None, limit=float("inf"), double=True)):
        assert_exact(run, model, X, rtol=1e-5)
    for name, value in {"scale": None, "bias": 1.0, "names": None}.items():
        with pytest.raises(EngineError, match=f"'{name}' was not given when the model was captured: compile it with"):
            fast(X, **{name: value})
    assert_exact(tk.compile(model, None, (X, True, 3.0)), model, X, rtol=1e-5)
