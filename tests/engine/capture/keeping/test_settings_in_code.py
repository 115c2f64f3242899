"""Models that differ by a number somewhere in what their code reaches: none may get the graph kept of another."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry_engine.capture.keeping.model_key import UnknownError, key_of

HEAD = """
import contextlib
import enum
import functools

import torch
from torch import nn


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)


class Context(contextlib.ContextDecorator):
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False
"""

DECORATED = """
class Net(Base):
    @{decorator}
    def forward(self, x):
        return self.layer(x) * 2.0
"""

DECORATORS = [
    "torch.no_grad()",
    "torch.inference_mode()",
    "torch.enable_grad()",
    "torch.autocast('cpu', enabled=False)",
    "Context()",
    "torch.compiler.disable",
    "torch.compile(backend='eager')",
]

OTHERS = {
    "a decorated helper": """
@torch.no_grad()
def helper(x):
    return x * 2.0

class Net(Base):
    def forward(self, x):
        return helper(self.layer(x))
""",
    "a context manager": """
scales = [1.0]

@contextlib.contextmanager
def scaled():
    scales.append(2.0)
    yield
    scales.pop()

class Net(Base):
    def forward(self, x):
        with scaled():
            return self.layer(x) * scales[-1]
""",
    "a function by type": """
@functools.singledispatch
def times(number, x):
    return x

@times.register
def _(number: int, x):
    return x * 2.0

class Net(Base):
    def forward(self, x):
        return times(1, self.layer(x))
""",
    "an attribute of a function": """
def helper(x):
    return x * helper.scale

helper.scale = 2.0

class Net(Base):
    def forward(self, x):
        return helper(self.layer(x))
""",
    "a method of a table": """
class Net(Base):
    def __init__(self):
        super().__init__()
        self.find = {"scale": 2.0}.get

    def forward(self, x):
        return self.layer(x) * self.find("scale")
""",
    "a value of an enumeration": """
class Scale(enum.Enum):
    MODE = 2.0

class Net(Base):
    def __init__(self):
        super().__init__()
        self.mode = Scale.MODE

    def forward(self, x):
        return self.layer(x) * self.mode.value
""",
    "an enumeration gone through": """
class Scale(enum.Enum):
    MODE = 2.0

class Net(Base):
    def forward(self, x):
        return self.layer(x) * sum(one.value for one in Scale)
""",
    "a method of an enumeration": """
class Scale(enum.Enum):
    MODE = "mode"

    def __call__(self, x):
        return x * 2.0

class Net(Base):
    def __init__(self):
        super().__init__()
        self.mode = Scale.MODE

    def forward(self, x):
        return self.mode(self.layer(x))
""",
    "what an enumeration computes": """
class Scale(enum.Enum):
    MODE = "mode"

    def __init__(self, name):
        self.number = 2.0

class Net(Base):
    def __init__(self):
        super().__init__()
        self.mode = Scale.MODE

    def forward(self, x):
        return self.layer(x) * self.mode.number
""",
    "a class value by a name put together": """
class Net(Base):
    scale_1 = 2.0

    def forward(self, x):
        one = 1
        return self.layer(x) * getattr(self, f"scale_{one}")
""",
    "a class of classes": """
class Answers(type):
    def __getattr__(cls, name):
        return 2.0

class Settings(metaclass=Answers):
    pass

class Net(Base):
    def forward(self, x):
        return self.layer(x) * Settings.scale
""",
}

SOURCES = {**{one: DECORATED.format(decorator=one) for one in DECORATORS}, **OTHERS}


def net(source: str, number: float) -> nn.Module:
    assert source.count("2.0") == 1
    made = types.ModuleType("somebody")
    sys.modules["somebody"] = made  # where decorators look for it
    exec(compile(HEAD + source.replace("2.0", str(number)), "<somebody>", "exec"), vars(made))
    return made.Net().eval()


@pytest.mark.parametrize("case", SOURCES)
def test_each_model_gets_its_own_graph(case: str, monkeypatch, tmp_path):
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "somebody", None)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    for number in (2.0, 3.0):
        model = net(SOURCES[case], number)
        found = tk.compile(model, None, x)(x).double()
        wanted = number * torch.nn.functional.linear(x.double(), model.layer.weight.double(), model.layer.bias.double())
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


WITHOUT_A_KEY = {"torch.compiler.disable", "torch.compile(backend='eager')"}


@pytest.mark.parametrize("case", sorted(SOURCES.keys() - WITHOUT_A_KEY))
def test_equal_models_still_have_one_key(case: str, monkeypatch):
    monkeypatch.setitem(sys.modules, "somebody", None)
    arguments = ((torch.zeros(2, 8),), {})
    assert key_of(net(SOURCES[case], 2.0), arguments) == key_of(net(SOURCES[case], 2.0), arguments)


def test_names_put_together_may_mean_anything_in_a_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "somebody", None)
    source = """
import somebody

class Net(Base):
    kind = "act"

    def forward(self, x):
        return getattr(somebody, self.kind)(self.layer(x)) * 2.0
"""
    with pytest.raises(UnknownError):
        key_of(net(source, 2.0), ((torch.zeros(2, 8),), {}))
