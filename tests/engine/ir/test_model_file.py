"""Model files: what is read is what was written, and nothing else is believed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import ticketry as tk
from engine.ir.fuzz_model_file import load_damaged_files, split_header, with_header, with_text
from engine.ir.graphs import small
from engine.models import Of
from interpreter import run
from ticketry.errors import GraphError, ModelFileError
from ticketry_engine.ir import Graph, Node, Value
from ticketry_engine.ir.model_file import (
    KIND,
    bitmap_bytes,
    dumps,
    elias_fano_bytes,
    load,
    loads,
    pack_bits,
    pack_positions,
    save,
    unpack_bits,
    unpack_positions,
)


def assert_equal(one: Graph, other: Graph) -> None:
    torch.testing.assert_close(dict(one.tensors), dict(other.tensors), rtol=0, atol=0, equal_nan=True)
    for part in ("inputs", "outputs", "nodes", "values", "signature", "notes"):
        assert getattr(one, part) == getattr(other, part), part


def of_weight(weight: Tensor) -> Graph:
    one = Node("aten.clone.default", (), "y", {"args": [{"tensor": "w"}], "kwargs": {}}, {"w": "w"})
    dtype = str(weight.dtype).removeprefix("torch.")
    values = {"x": Value("x", (None, 1)), "y": Value("y", tuple(weight.shape), dtype)}
    return Graph(("x",), "y", (one,), values, {"w": weight})


def test_round_trip(tmp_path: Path) -> None:
    graph = small()
    path = save(graph, tmp_path / "model.tk", {"ticket": "mine", "density": 0.1})
    read, meta, _ = load(path)
    assert_equal(graph, read)
    assert meta == {"ticket": "mine", "density": 0.1}
    assert [*tmp_path.iterdir()] == [path]
    assert dumps(small(), {"a": 1}) == dumps(small(), {"a": 1})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_weights_of_any_kind(dtype: torch.dtype) -> None:
    for density in (0.0, 0.05, 0.5, 1.0):
        for shape in ((), (3, 5), (0, 7), (16, 9)):
            weight = (torch.randn(shape) * 5).to(dtype).masked_fill(torch.rand(shape) >= density, 0)
            graph = of_weight(weight)
            assert_equal(graph, loads(dumps(graph))[0])
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
    assert document_of(data)["format"] == number
    assert torch.equal(loads(data)[0].tensors["w"], weight)
    if number == 2:
        facts = {"dtype": "float32", "shape": [256, 512], "packed": "places"}
        with pytest.raises(ModelFileError, match="weight 'w' is damaged: the number of bytes does not match"):
            loads(changed(data, tensors={"w": facts}))
        with pytest.raises(ModelFileError, match="is not in the file"):
            loads(changed(data, tensors={"w": {**facts, "shape": [256, 256], "packed": True}}))


def document_of(data: bytes) -> dict[str, Any]:
    return json.loads(split_header(data)[0]["__metadata__"][KIND])


def changed(data: bytes, **parts: Any) -> bytes:
    return with_text(data, json.dumps({**document_of(data), **parts}))


def weights(**facts: Any) -> dict[str, Any]:
    table = document_of(dumps(small()))["tensors"]
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


def factory(op: str, args: list[Any], shape: Any) -> bytes:
    """A file whose first torch node does what it likes; nobody reads what it makes, but it would run."""
    one = Node(op, ("x",) if V in args else (), "z", {"args": args, "kwargs": {}})
    graph = small()
    nodes = (*graph.nodes[:-1], one, graph.nodes[-1])
    values = {**graph.values, "z": Value("z", shape)}
    return dumps(replace(graph, nodes=nodes, values=values))


V = {"value": "x"}


@pytest.mark.parametrize(
    ("op", "args", "shape", "message"),
    [
        ("zeros.default", [[1 << 30, 1 << 30]], (3,), "too many"),
        ("repeat.default", [V, [1 << 20, 1 << 10, 9, 1]], None, "too many"),
        ("chunk.default", [V, 1 << 20, 1], None, "too many tensors"),
        ("tensor_split.indices", [V, [0] * 200_000], None, "too many tensors"),
        ("diff.default", [V, 1 << 20, 1], None, "too many steps"),
        ("zeros.default", [[4]], (3,), r"it makes float32 \[4\], not float32 \(3,\)"),
        ("mm.default", [V, V], None, "does not take its arguments"),
        ("max.dim", [V, 1], None, "it makes a list, not float32"),
    ],
)
def test_claims_of_torch_nodes_are_checked_without_memory(op: str, args: list[Any], shape: Any, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        loads(factory(f"aten.{op}", args, shape))


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
        header = json.dumps(split_header(data)[0], separators=(",", ":")).replace(old, new)
        with pytest.raises(ModelFileError, match="not JSON"):
            loads(with_header(data, header.encode()))


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

    model = Of(lambda m, y: torch.hypot(y, y.clone().add_(1).sinc()).fmax(y.exp2()))
    x = torch.randn(3, 6)
    path = tk.compile(model, None, x).save(tmp_path / "usual.tk")
    torch.testing.assert_close(tk.engine.load(path)(x), model(x))
    fast = tk.compile(Of(lambda m, y: torch.fft.irfft(torch.fft.rfft(y))), None, x)
    with pytest.raises(ModelFileError, match=r"operations that no file may hold, such as aten\.fft_rfft"):
        fast.save(tmp_path / "model.tk")


def drawn(total: int, density: float) -> np.ndarray:
    return np.random.default_rng(total).random(total) < density


def read_slowly(data: bytes, count: int, low: int) -> list[int]:
    """The places, bit by bit as the page of the code says."""
    bits = [byte >> bit & 1 for byte in data for bit in range(8)]
    lower = [sum(bits[low * index + bit] << bit for bit in range(low)) for index in range(count)]
    higher, zeros = [], 0
    for bit in bits[(count * low + 7) // 8 * 8 :]:
        if bit:
            higher.append(zeros)
        else:
            zeros += 1
    return [(high << low) + rest for high, rest in zip(higher, lower, strict=True)]


@pytest.mark.parametrize(("density", "low"), [(0.4, 1), (0.1, 3), (0.01, 4)])
def test_a_slow_decoder_reads_the_same_places(density: float, low: int) -> None:
    flags = drawn(5_000, density)
    count = int(flags.sum())
    assert read_slowly(pack_positions(flags).tobytes(), count, low) == np.flatnonzero(flags).tolist()


@pytest.mark.parametrize("density", [0.0, 0.003, 0.03, 0.3, 1.0])
def test_unpacking_inverts_packing(density: float) -> None:
    for total in (0, 1, 7, 8, 127, 128, 129, 4099, 10_007):
        edges = [np.isin(np.arange(total), places) for places in ([0], [total - 1], [0, total - 1])]
        for flags in (drawn(total, density), drawn(total, density)[::-1], *edges):
            data, count = pack_positions(flags), int(flags.sum())
            assert len(data) == elias_fano_bytes(count, total)
            assert np.array_equal(unpack_positions(data, count, total), flags)
            assert len(pack_bits(flags)) == bitmap_bytes(total)
            assert np.array_equal(unpack_bits(pack_bits(flags), total), flags)
    for count in (0, 1, 100):  # few bytes cannot claim many elements
        assert elias_fano_bytes(count, 1 << 40) >= (1 << 40) // 128


def test_the_size_is_near_the_least_that_any_code_takes_and_below_bits_under_a_quarter() -> None:
    total = 1 << 20
    for density, most in ((0.2, 1.18), (0.1, 1.12), (0.05, 1.1)):
        least = total * -(density * log2(density) + (1 - density) * log2(1 - density)) / 8
        assert least < elias_fano_bytes(int(density * total), total) < most * least, density
    assert elias_fano_bytes(total // 4 - 1000, total) < bitmap_bytes(total) <= elias_fano_bytes(total // 4 + 8, total)


def test_damage_is_told() -> None:
    flags = drawn(1000, 0.1)
    data, count = pack_positions(flags), int(flags.sum())
    for damaged, wrong in ((data[:-1], count), (data, count + 80), (data, -1), (data, 1001)):
        with pytest.raises(ValueError, match="number of bytes"):
            unpack_positions(damaged, wrong, 1000)
    with pytest.raises(ValueError, match="number of positions"):
        unpack_positions(np.concatenate([data[:-4], np.zeros(4, dtype=np.uint8)]), count, 1000)
    backwards = data.copy()
    backwards[: (3 * count + 7) // 8] = np.packbits(np.tile([1, 1, 1, 0, 0, 0], count)[: 3 * count], bitorder="little")
    with pytest.raises(ValueError, match="do not increase"):
        unpack_positions(backwards, count, 1000)
    for byte, old in enumerate(data):  # whatever a byte is changed to, the answer is so many places, or an error
        for value in (0, 255, int(old) ^ 1):
            spoilt = data.copy()
            spoilt[byte] = value
            with contextlib.suppress(ValueError):
                assert int(unpack_positions(spoilt, count, 1000).sum()) == count


def test_a_few_hostile_files() -> None:
    """In this process, which a crash would end; each of them in little time, or pytest's limit ends the test."""
    assert_files_are_refused_or_run(load_damaged_files(100, seed_number=3), 100)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_hostile_files() -> None:
    """In a process of its own, with a limit of memory and of time for each file: a crash or hang ends that process."""
    count = 100_000
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fuzz_model_file.py")), str(count), "3"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert_files_are_refused_or_run(json.loads(ran.stdout), count)


def assert_files_are_refused_or_run(counts: dict[str, int], count: int) -> None:
    assert counts["inputs"] >= count * 0.9  # hypothesis does not repeat itself
    assert counts["refused"] > count / 2
    assert counts["ran"] > count / 100
