"""Model files: what is read is what was written, and nothing else is believed."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import ticketry as tk
from engine.capture.test_passes import Of
from engine.ir.fuzz_model_file import load_damaged_files
from engine.ir.graphs import small
from interpreter import run
from ticketry.errors import GraphError, ModelFileError
from ticketry_engine.ir import Graph, Node, Value
from ticketry_engine.ir.model_file import KIND, dumps, load, loads, save


def equal(one: Graph, other: Graph) -> bool:
    alike = all(
        torch.equal(tensor, other.tensors[name]) and tensor.dtype == other.tensors[name].dtype
        for name, tensor in one.tensors.items()
    )
    parts = ("inputs", "outputs", "nodes", "values", "signature", "notes")
    return (
        alike
        and set(one.tensors) == set(other.tensors)
        and all(getattr(one, part) == getattr(other, part) for part in parts)
    )


def of_weight(weight: Tensor) -> Graph:
    """A graph that returns a weight."""
    one = Node("aten.clone.default", (), "y", {"args": [{"tensor": "w"}], "kwargs": {}}, {"w": "w"})
    dtype = str(weight.dtype).removeprefix("torch.")
    values = {"x": Value("x", (None, 1)), "y": Value("y", tuple(weight.shape), dtype)}
    return Graph(("x",), "y", (one,), values, {"w": weight})


def test_round_trip(tmp_path: Path) -> None:
    graph = small()
    path = save(graph, tmp_path / "model.tk", {"ticket": "mine", "density": 0.1})
    read, meta, _ = load(path)
    assert equal(graph, read)
    assert meta == {"ticket": "mine", "density": 0.1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.tk"]
    x = torch.randn(3, 3, 6, 6)
    assert torch.equal(run(read, x).logits, run(graph, x).logits)
    assert dumps(small(), {"a": 1}) == dumps(small(), {"a": 1})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_weights_of_any_kind(dtype: torch.dtype) -> None:
    for density in (0.0, 0.05, 0.5, 1.0):
        for shape in ((), (3, 5), (0, 7), (16, 9)):
            weight = (torch.randn(shape) * 5).to(dtype).masked_fill(torch.rand(shape) >= density, 0)
            graph = of_weight(weight)
            assert equal(graph, loads(dumps(graph))[0])
    if dtype.is_floating_point:
        signed = torch.zeros(64).masked_fill(torch.arange(64) % 9 == 0, -0.0).to(dtype)
        read, _ = loads(dumps(of_weight(signed)))
        assert torch.equal(read.tensors["w"].view(torch.uint8), signed.view(torch.uint8))


@pytest.mark.parametrize(("density", "number", "bits"), [(0.5, 1, 1.1), (0.1, 2, 0.55)])
def test_sparse_weights_take_little_room_and_the_oldest_format_that_has_them(density, number, bits) -> None:
    """Format 1 has a bit for each weight, which an older ticketry reads; format 2 has positions."""
    weight = torch.randn(256, 256).masked_fill(torch.rand(256, 256) > density, 0)
    data, kept = dumps(of_weight(weight)), int(weight.count_nonzero())
    assert 4 * kept < len(data) < 4 * kept + bits * 256 * 256 / 8 + 2048
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    assert json.loads(header["__metadata__"][KIND])["format"] == number
    assert torch.equal(loads(data)[0].tensors["w"], weight)
    if number == 2:
        facts = {"dtype": "float32", "shape": [256, 512], "packed": "places"}
        with pytest.raises(ModelFileError, match="weight 'w' is damaged: the number of bytes does not match"):
            loads(changed(data, tensors={"w": facts}))
        with pytest.raises(ModelFileError, match="is not in the file"):
            loads(changed(data, tensors={"w": {**facts, "shape": [256, 256], "packed": True}}))


def changed(data: bytes, **parts: Any) -> bytes:
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    document = json.loads(header["__metadata__"][KIND])
    header["__metadata__"][KIND] = json.dumps({**document, **parts})
    made = json.dumps(header).encode()
    return struct.pack("<Q", len(made)) + made + data[8 + length :]


def weights(**facts: Any) -> dict[str, Any]:
    length = struct.unpack("<Q", dumps(small())[:8])[0]
    header = json.loads(dumps(small())[8 : 8 + length])
    table = json.loads(header["__metadata__"][KIND])["tensors"]
    return {**table, "conv.weight": {**table["conv.weight"], **facts}}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: b"", "no model file"),
        (lambda data: b"\xff" * 8 + data[8:], "no model file"),
        (lambda data: changed(data, format=3), "newer ticketry"),
        (lambda data: changed(data, kind="other"), "not that of a model"),
        (lambda data: changed(data, more=1), "not all its parts"),
        (lambda data: changed(data, graph=[]), "its graph has not the parts"),
        (lambda data: changed(data, tensors={}), "tensors that are no weights"),
        (lambda data: changed(data, tensors=weights(shape=[4, 3, 3, 4])), "not the number of bits"),
        (lambda data: changed(data, tensors=weights(shape=[1 << 39, 1 << 39])), "too large"),
        (lambda data: changed(data, tensors=weights(dtype="float64")), "another data type"),
        (lambda data: changed(data, tensors=weights(packed=1)), "neither packed nor not"),
    ],
)
def test_damaged_files(make: Any, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        loads(make(dumps(small())))


def factory(op: str, args: list[Any], shape: Any, **inputs: Any) -> bytes:
    """A file whose first torch node does what it likes; nobody reads what it makes, but it would run."""
    one = Node(op, tuple(inputs), "z", {"args": args, "kwargs": {}})
    graph = small()
    nodes = (*graph.nodes[:-1], one, graph.nodes[-1])
    values = {**graph.values, "z": Value("z", shape)}
    return dumps(replace(graph, nodes=nodes, values=values))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: factory("aten.zeros.default", [[1 << 30, 1 << 30]], (3,)), "too many"),
        (lambda: factory("aten.repeat.default", [{"value": "x"}, [1 << 20, 1 << 10, 9, 1]], None, x=1), "too many"),
        (lambda: factory("aten.chunk.default", [{"value": "x"}, 1 << 20, 1], None, x=1), "too many tensors"),
        (lambda: factory("aten.tensor_split.indices", [{"value": "x"}, [0] * 200_000], None, x=1), "too many tensors"),
        (lambda: factory("aten.diff.default", [{"value": "x"}, 1 << 20, 1], None, x=1), "too many steps"),
        (lambda: factory("aten.zeros.default", [[4]], (3,)), r"it makes float32 \[4\], not float32 \(3,\)"),
        (
            lambda: factory("aten.mm.default", [{"value": "x"}, {"value": "x"}], None, x=1),
            "does not take its arguments",
        ),
        (lambda: factory("aten.max.dim", [{"value": "x"}, 1], None, x=1), "it makes a list, not float32"),
    ],
)
def test_claims_of_torch_nodes_are_checked_without_memory(data: Any, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        loads(data())


V = {"value": "x"}


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("aten.unbind.int", [{"value": "wide"}, 1]),
        ("aten.lstm.input", [{"value": "wide"}, [V, V], [V, V], False, 1, 0.0, False, False, True]),
    ],
)
def test_many_tensors_of_one_are_counted_before_they_are_made(op: str, args: list[Any]) -> None:
    """An axis that is expanded takes no memory; each of its entries as a tensor of its own does."""
    names = ("wide", "x") if op.startswith("aten.lstm") else ("wide",)

    def loaded(size: int) -> Graph:
        wide = Node("aten.expand.default", ("x",), "wide", {"args": [V, [-1, size, 3]], "kwargs": {}})
        many = Node(op, names, "many", {"args": args, "kwargs": {}})
        values = {"x": Value("x", (None, 1, 3)), "wide": Value("wide", (None, size, 3))}
        graph = Graph(("x",), "x", (wide, many), {**values, "many": Value("many", None, "list")}, {})
        return loads(dumps(graph))[0]

    with pytest.raises(ModelFileError, match="too many tensors, or takes too many steps"):
        loaded(1 << 24)
    if len(names) == 1:
        assert loaded(12).nodes[1].op == op


def test_duplicate_names_and_constants_of_javascript():
    data = dumps(small(), {"here": 0})
    for old, new in (('\\"here\\":0', '\\"here\\":0,\\"here\\":1'), ('\\"here\\":0', '\\"here\\":NaN')):
        length = struct.unpack("<Q", data[:8])[0]
        header = data[8 : 8 + length].decode().replace(old, new).encode()
        with pytest.raises(ModelFileError, match="not JSON"):
            loads(struct.pack("<Q", len(header)) + header + data[8 + length :])


def test_files_that_cannot_be_read_or_written_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3)}, str(tmp_path / "w.safetensors"))
    for path, message in (
        (tmp_path / "w.safetensors", r"w\.safetensors: this is a safetensors file, but not of a compiled model"),
        (tmp_path / "absent.tk", "there is no model file"),
        (tmp_path, "there is no model file"),
    ):
        with pytest.raises(ModelFileError, match=message):
            load(path)
    with pytest.raises(ModelFileError, match="cannot be written"):
        save(small(), tmp_path / "no" / "folder" / "model.tk")
    with pytest.raises(ModelFileError, match="no JSON"):
        save(small(), tmp_path / "model.tk", {"x": float("nan")})
    with pytest.raises(GraphError, match="makes neither tensors nor numbers"):
        factory("aten.mul.left_t", ["a", "b"], None)


def test_operations_of_the_models_own_cannot_be_saved(tmp_path: Path) -> None:
    library = torch.library.Library("ticketry_test_file", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
    one = Node("ticketry_test_file.twice.default", ("x",), "y", {"args": [{"value": "x"}], "kwargs": {}})
    graph = Graph(("x",), "y", (one,), {"x": Value("x", (None, 1)), "y": Value("y", (None, 1))}, {})
    made: Tensor = run(graph.validate(trusted=True), torch.ones(2, 1))
    assert torch.equal(made, torch.full((2, 1), 2.0))
    with pytest.raises(ModelFileError, match=r"operations of its own, such as ticketry_test_file\.twice"):
        dumps(graph)

    def of(function: Callable[[Tensor], Tensor]) -> nn.Module:
        return Of(lambda m, x: function(m.layer(x)), layer=nn.Linear(6, 8)).eval()

    model, x = of(lambda y: torch.hypot(y, y.clone().add_(1).sinc()).fmax(y.exp2())), torch.randn(3, 6)
    path = tk.compile(model, None, x).save(tmp_path / "usual.tk")
    with torch.no_grad():
        torch.testing.assert_close(tk.engine.load(path)(x), model(x))
    fast = tk.compile(of(lambda y: torch.fft.irfft(torch.fft.rfft(y))), None, x)
    with pytest.raises(ModelFileError, match=r"operations that no file may hold, such as aten\.fft_rfft"):
        fast.save(tmp_path / "model.tk")


def test_a_few_hostile_files() -> None:
    """In this process, which a crash would end; each of them in little time, or pytest's limit ends the test."""
    assert_files_are_refused_or_run(load_damaged_files(100, seed_number=3), 100)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_hostile_files() -> None:
    """In a process of its own, with a limit of memory and of time for each file: a crash or hang ends that process."""
    count, tests = 100_000, Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fuzz_model_file.py")), str(count), "3"],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": f"{tests.parent / 'src'}:{tests}:{os.environ.get('PYTHONPATH', '')}",
            "OMP_NUM_THREADS": "1",
        },
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert_files_are_refused_or_run(json.loads(ran.stdout), count)


def assert_files_are_refused_or_run(counts: dict[str, int], count: int) -> None:
    assert counts["inputs"] >= count * 0.9  # hypothesis does not repeat itself
    assert counts["refused"] > count / 2
    assert counts["ran"] > count / 100
