"""Two models have one key only if they are captured as one graph."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
import types
from typing import Any

import pytest
import torch
from torch import nn

from ticketry_engine.capture.keeping.model_key import UnknownError, key_of

X = ((torch.zeros(2, 4),), {})

SOURCE = """
import functools
import torch
import torch.nn.functional as F
from torch import nn

SLOPE = 0.5
TABLE = {"add": 1.0}
settings = __import__("types").SimpleNamespace(power=2)

def halved(x):
    return x * SLOPE

def act(x):
    return halved(F.relu(x)) + TABLE["add"]

class Base(nn.Module):
    shift = 1.0

    def tail(self, x):
        return x + self.shift

class Net(Base):
    def __init__(self, width=3, flag=True):
        super().__init__()
        self.inner = nn.Linear(4, width)
        self.flag = flag
        self.options = {"scale": 2.0, "names": ["a", "b"]}

    @property
    def doubled(self):
        return 2.0

    def forward(self, x):
        x = act(self.inner(x)) ** settings.power
        if self.flag:
            x = self.tail(x) * self.doubled
        return x

    def unused(self):
        return 3

def decorated(function):
    @functools.wraps(function)
    def run(*args):
        return function(*args) + 0.25
    return run
"""


def space(source: str = SOURCE) -> types.ModuleType:
    made = types.ModuleType("somebody")
    exec(compile(source, "<somebody>", "exec"), vars(made))
    return made


def key(model: nn.Module, inputs: Any = X, *more: object) -> str:
    return key_of(model.eval(), inputs, *more)


def test_equal_models_have_one_key():
    torch.manual_seed(0)
    first = key(space().Net())
    torch.manual_seed(1)
    assert key(space().Net()) == first  # other weights, other objects, the same code
    assert key(space(SOURCE.replace("return 3", "return 4")).Net()) == first  # no call reaches it


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SLOPE = 0.5", "SLOPE = 0.25"),
        ('"add": 1.0', '"add": 1.5'),
        ("x * SLOPE", "x / SLOPE"),
        ("F.relu(x)", "F.gelu(x)"),
        ("shift = 1.0", "shift = 1.5"),
        ("x + self.shift", "x - self.shift"),
        ("return 2.0", "return 2.5"),
        ("power=2", "power=3"),
        ('"scale": 2.0', '"scale": 2.5'),
        ('["a", "b"]', '["a", "c"]'),
        ("width=3", "width=5"),
        ("flag=True", "flag=1"),
        ("class Net(Base)", "class Other(Base): pass\nclass Net(Other)"),
    ],
)
def test_whatever_a_call_reaches_changes_the_key(old: str, new: str):
    assert SOURCE.count(old) >= 1
    assert key(space(SOURCE.replace(old, new)).Net()) != key(space().Net())


def test_what_is_replaced_while_it_runs_changes_the_key(monkeypatch):
    there = space()
    model = there.Net()
    before = key(model)
    changes: list[tuple[Any, str, Any]] = [
        (there, "SLOPE", 0.75),
        (there.settings, "power", 4),
        (there, "halved", lambda x: x),
        (there.Base, "tail", lambda self, x: x),
        (there, "act", there.decorated(there.act)),
        (model, "flag", False),
        (nn.Linear, "forward", lambda self, x: x),
        (nn.Module, "__call__", lambda self, x: x),
        (torch.nn.functional, "relu", lambda x: x),
        (torch, "relu", lambda x: x),
    ]
    for where, name, value in changes:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, value)
            assert key(model) != before, name
        assert key(model) == before, name
    inner = model.inner
    for other in (nn.Linear(4, 3, bias=False), nn.Sequential(inner)):
        model.inner = other
        assert key(model) != before
    model.inner = inner
    assert key(model) == before
    model.forward = types.MethodType(lambda self, x: x, model)
    assert key(model) != before
    del model.forward
    assert key(model) == before
    model.inner.weight = nn.Parameter(torch.zeros(3, 4).double())
    assert key(model) != before


def test_the_mode_the_inputs_and_what_else_is_given_count():
    model = space().Net().eval()
    before = key_of(model, X)
    assert key_of(model.train(), X) != before
    model.eval()
    assert key_of(model, ((torch.ones(2, 4),), {})) == before
    others = [((torch.zeros(3, 4),), {}), ((torch.zeros(2, 4),), {"flag": 1}), ((torch.zeros(2, 4).double(),), {})]
    keys = {before, *(key_of(model, one) for one in others), key_of(model, X, True), key_of(model, X, False)}
    assert len(keys) == 6
    torch.set_default_dtype(torch.float64)
    try:
        assert key_of(model, X) not in keys
    finally:
        torch.set_default_dtype(torch.float32)


def test_weights_that_are_one_are_told_from_weights_that_are_equal():
    class Pair(nn.Module):
        def __init__(self, second: nn.Linear | None, view: bool = False) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4, bias=False)
            self.b = second or self.a
            if view:
                self.b.weight = nn.Parameter(self.a.weight.data.view(4, 4))

        def forward(self, x):
            return self.b(self.a(x))

    apart = nn.Linear(4, 4, bias=False)
    assert len({key(Pair(None)), key(Pair(apart)), key(Pair(nn.Linear(4, 4, bias=False), view=True))}) == 3


def test_a_tensor_that_is_a_setting_counts_with_its_values():
    class Shifted(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.table = [torch.full((2,), value)]

        def forward(self, x):
            return x + self.table[0].sum()

    assert key(Shifted(1.0)) == key(Shifted(1.0)) != key(Shifted(2.0))


class Evaluating(nn.Module):
    def forward(self, x):
        return eval("x + 1")


class Environment(nn.Module):
    def forward(self, x):
        return x + len(os.environ)


class Threads(nn.Module):
    def forward(self, x):
        return x * torch.get_num_threads()


class Backend(nn.Module):
    def forward(self, x):
        return x * (2 if torch.backends.cuda.matmul.allow_tf32 else 3)


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.secret = iter([1, 2])

    def forward(self, x):
        return x


def test_what_cannot_be_told_apart_has_no_key():
    hooked = nn.Linear(4, 4)
    hooked.register_forward_hook(lambda module, args, output: output + 1)
    for model in (Evaluating(), Environment(), Threads(), Backend(), Hidden(), hooked, nn.Sequential(hooked)):
        with pytest.raises(UnknownError):
            key(model)
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    try:
        with pytest.raises(UnknownError):
            key(nn.Linear(4, 4))
    finally:
        handle.remove()


def test_what_libraries_wrap_of_torch_that_no_layer_calls_does_not_count(monkeypatch):
    before = key(space().Net())
    monkeypatch.setattr(torch, "compile", lambda *args: __import__("os").environ)  # as Lightning does
    monkeypatch.setattr(nn.Module, "smart_apply", lambda *args: eval("0"), raising=False)  # as transformers does
    assert key(space().Net()) == before
    calling = SOURCE.replace("x = act(", "torch.compile; x = act(")
    with pytest.raises(UnknownError):
        key(space(calling).Net())


def test_getattr_reaches_every_method():
    source = SOURCE.replace("self.tail(x)", 'getattr(self, "".join(["ta", "il"]))(x)')
    changed = source.replace("x + self.shift", "x - self.shift")
    assert key(space(source).Net()) != key(space(changed).Net())


def test_the_key_is_the_same_in_another_process(tmp_path, monkeypatch):
    """Whatever the seed of its hashes is."""
    (tmp_path / "somebody.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    here = key(importlib.import_module("somebody").Net())
    monkeypatch.delitem(sys.modules, "somebody")
    script = """
        import torch, somebody
        from ticketry_engine.capture.keeping.model_key import key_of
        torch.manual_seed(0)
        print(key_of(somebody.Net().eval(), ((torch.zeros(2, 4),), {})))
    """
    seed = "0" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == here
