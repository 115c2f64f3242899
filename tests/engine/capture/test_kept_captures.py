"""A kept capture gives the graph that a new one gives, with the weights of the model at hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ticketry as tk
from engine.a_recurrent import Recurrent
from ticketry.tasks.models import networks
from ticketry.tasks.models.networks import build
from ticketry_engine.capture import capture, pipeline
from ticketry_engine.ir import Graph
from ticketry_engine.kept_files import folder


@pytest.fixture
def exports(monkeypatch, tmp_path) -> list[int]:
    """A cache of its own, and a list that grows by every model that is really captured."""
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path))
    made: list[int] = []
    real = pipeline.record

    def counted(*args: Any, **kwargs: Any) -> Any:
        made.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(pipeline, "record", counted)
    return made


def same(first: Graph, second: Graph) -> bool:
    tensors = first.tensors.keys() == second.tensors.keys() and all(
        torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items()
    )
    return tensors and (first.inputs, first.outputs, first.nodes, first.values, first.signature, first.notes) == (
        second.inputs, second.outputs, second.nodes, second.values, second.signature, second.notes
    )  # fmt: skip


class Windows(nn.Module):
    """Shapes that hold the batch in other ways, a tied weight, a buffer that no file keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.register_buffer("bias", torch.linspace(-1, 1, 8), persistent=False)

    def forward(self, x):
        rows = self.first(x.reshape(-1, 8)).reshape(x.shape) + self.bias
        found, _ = self.attention(rows, rows, rows)
        return torch.cat([self.second(found), x.masked_fill(x < 0, float("-inf"))], -1), x.shape[0]


CASES = {
    "resnet": (lambda: build("resnet-20-8", shape=(3, 16, 16), classes=10), lambda: torch.randn(3, 3, 16, 16)),
    "recurrent": (Recurrent, lambda: {"words": torch.randint(0, 11, (2, 5)), "scale": 0.5}),
    "windows": (Windows, lambda: torch.randn(4, 3, 8)),
    "fixed": (lambda: nn.Sequential(nn.Flatten(0), nn.Linear(8, 2)), lambda: torch.randn(2, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_kept_graph_is_the_graph_of_a_new_capture(exports, tmp_path, monkeypatch, case: str):
    make, inputs = CASES[case]
    torch.manual_seed(0)
    capture(make(), None, inputs())
    made = len(exports)
    assert made
    torch.manual_seed(1)
    model = make()  # other weights
    mask = tk.prune(model, density=0.5)
    found = capture(model, mask, inputs())
    assert len(exports) == made
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path / "another"))
    wanted = capture(model, mask, inputs())
    assert len(exports) > made
    assert same(found, wanted)


def test_a_compiled_model_from_the_cache_computes_what_the_model_does(exports):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    for _ in range(2):
        model = build("resnet-20-8", shape=(3, 16, 16), classes=10).eval()
        mask = tk.prune(model, density=0.3)
        fast = tk.compile(model, mask, x, threads=1)
        mask.apply_(model)
        torch.testing.assert_close(fast(x), model(x), atol=1e-4, rtol=1e-4)
    assert len(exports) == 1


def test_a_changed_model_is_exported_anew(exports):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    first = capture(model, None, torch.ones(2, 4))
    assert same(capture(model, None, torch.ones(2, 4)), first)
    assert len(exports) == 1
    model[1] = nn.GELU()
    assert not same(capture(model, None, torch.ones(2, 4)), first)
    capture(model, None, torch.ones(2, 4), dynamic_batch=False)
    capture(model, None, torch.ones(3, 2, 4))
    assert len(exports) == 4


def test_a_tensor_that_is_no_weight_is_not_kept(exports):
    class Shifted(nn.Module):
        def forward(self, x):
            return x + torch.tensor([1.0, 2.0])

    for _ in range(2):
        capture(Shifted(), None, torch.ones(3, 2))
    assert len(exports) == 2


def test_a_damaged_capture_is_made_anew(exports):
    model = nn.Linear(4, 4)
    capture(model, None, torch.ones(2, 4))
    (kept,) = folder("captures").iterdir()
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(bytes(data))
    capture(model, None, torch.ones(2, 4))
    assert len(exports) == 2
    capture(model, None, torch.ones(2, 4))
    assert len(exports) == 2


def test_all_networks_of_ours_are_kept(exports):
    for name in ("lenet-300-100", "conv-4-16", "vgg-11@0.125", "resnet-20-8"):
        for _ in range(2):
            capture(networks.build(name, shape=(3, 32, 32), classes=10), None, torch.ones(2, 3, 32, 32))
    assert len(exports) == 4


class Named(nn.Module):
    """Its code has the name of a global, below."""

    def __init__(self) -> None:
        super().__init__()
        self.odd = nn.Linear(4, 4)

    def forward(self, x):
        return self.odd(x)


class Unreadable:
    """As objects of libraries in C may be: no dictionary behind `__dict__`."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__dict__":
            return test_an_object_that_cannot_be_read_is_in_nobodys_way
        return object.__getattribute__(self, name)


odd: Any = None


def test_an_object_that_cannot_be_read_is_in_nobodys_way(exports, monkeypatch) -> None:
    monkeypatch.setitem(globals(), "odd", Unreadable())
    model, x = Named().eval(), torch.randn(3, 4)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(tk.compile(model, None, x)(x), model(x))
    assert len(exports) == 2  # captured anew each time


def test_a_compiled_model_by_the_name_of_a_module(exports, monkeypatch) -> None:
    model, x = Named().eval(), torch.randn(3, 4)
    fast = tk.compile(model, None, x)
    fast(x)
    monkeypatch.setitem(globals(), "odd", fast)
    with torch.no_grad():
        torch.testing.assert_close(tk.compile(model, tk.prune(model, density=0.5), x)(x).isfinite().all().item(), True)
