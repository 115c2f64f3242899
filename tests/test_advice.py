"""Errors of masks, scopes and scores: what each message says to do is done, and works."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import ticketry as tk
from advice import Advice, check, loss, net, pairs, x


class _OwnProduct(nn.Module):
    """A weight that no linear layer of torch's holds."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


class _Idle(nn.Module):
    """The second layer is not used in a call."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.used(x)
        return out


class _Integers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Linear(8, 8)
        self.codes.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x)
        return out


def _unequal() -> nn.Module:
    """All weights of the last layer are smaller than those of the first."""
    model = net()
    with torch.no_grad():
        model[2].weight.mul_(1e-3)
    return model


def _by_row(rows: int) -> tk.Mask:
    """A mask of whole blocks of rows."""
    return tk.prune(net(), 0.5, pattern=f"{rows}x1")


def _weight_norm(keep: int) -> nn.Module:
    """Mask a row of a layer with weight_norm but for `keep` of its weights."""
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)))
    kept = torch.ones(8, 8)
    kept[0, keep:] = 0
    (name,) = tk.scope(model).shapes
    return tk.Mask({name: kept}).apply_(model)


def _lazy(call: bool) -> tk.Mask:
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 8))
    if call:
        model(x())
    return tk.prune(model, 0.5)


def _meta(*, initialise: bool) -> tk.Mask:
    model = net().to("meta")
    if initialise:
        model.to_empty(device="cpu")
        for layer in (model[0], model[2]):
            layer.reset_parameters()
    return tk.prune(model, 0.5)


def _of_inference_mode(*, copied: bool) -> Any:
    with torch.inference_mode():
        model = net()
    if copied:
        model = copy.deepcopy(model)
    with tk.hold(model, tk.prune(model, 0.5)) as held:
        model(x()).sum().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
    return held


def _torchscript(*, afterwards: bool) -> Any:
    model = net()
    gates = tk.gates.attach(model if afterwards else torch.jit.script(model))
    gates.detach()
    return torch.jit.script(model)(x())


def _spared() -> tk.Scope:
    model = net()
    return tk.scope(model, spare=[net()[0]])


def _own_module() -> tk.Scope:
    model = net()
    return tk.scope(model, spare=[model[0]])


CASES = {
    # densities and budgets of prune
    "no density": Advice(
        "give either density= (fraction kept) or sparsity= (fraction removed), or a budget in their place: flops=",
        lambda: tk.prune(net()),
        lambda: tk.prune(net(), density=0.5),
        lambda: tk.prune(net(), sparsity=0.5),
        lambda: tk.prune(net(), flops=0.5, example_inputs=x()),
        lambda: tk.prune(net(), bytes=0.9, example_inputs=x()),
    ),
    "density and sparsity": Advice(
        "give either density= (fraction kept) or sparsity= (fraction removed), and only one",
        lambda: tk.prune(net(), 0.5, sparsity=0.5),
        lambda: tk.prune(net(), 0.5),
    ),
    "density of text": Advice(
        "write it as 0.1 or as 10%",
        lambda: tk.prune(net(), "a tenth"),
        lambda: tk.prune(net(), 0.1),
        lambda: tk.prune(net(), "10%"),
    ),
    "percentage as a number": Advice(
        "write 50% or 0.5", lambda: tk.prune(net(), 50), lambda: tk.prune(net(), "50%"), lambda: tk.prune(net(), 0.5)
    ),
    "flops without inputs": Advice(
        "prune(..., example_inputs=x)",
        lambda: tk.prune(net(), flops=0.5),
        lambda: tk.prune(net(), flops=0.5, example_inputs=x()),
    ),
    "flops beside a density": Advice(
        "leave density and pattern out",
        lambda: tk.prune(net(), 0.5, pattern="4x1", flops=0.5, example_inputs=x()),
        lambda: tk.prune(net(), flops=0.5, example_inputs=x()),
    ),
    "inputs beside a density": Advice(
        "give one of these, or leave them out",
        lambda: tk.prune(net(), 0.5, example_inputs=x()),
        lambda: tk.prune(net(), 0.5),
        lambda: tk.prune(net(), flops=0.5, example_inputs=x()),
        lambda: tk.prune(net(), bytes=0.9, example_inputs=x()),
        lambda: tk.prune(net(), 0.5, pattern="4x1", example_inputs=x()),
    ),
    "base without a time": Advice(
        "leave base out", lambda: tk.prune(net(), 0.5, base="engine"), lambda: tk.prune(net(), 0.5)
    ),
    "structure of a density": Advice(
        "leave them out", lambda: tk.prune(net(), 0.5, structure="rows:4"), lambda: tk.prune(net(), 0.5)
    ),
    "batches without a score": Advice(
        "such as score='snip', or leave batches and loss out",
        lambda: tk.prune(net(), 0.5, batches=pairs(), loss=loss),
        lambda: tk.prune(net(), 0.5, batches=pairs(), loss=loss, score="snip"),
        lambda: tk.prune(net(), 0.5),
    ),
    "regrow by magnitude": Advice(
        "such as snip, taylor, fisher, crop, grasp or synflow",
        lambda: tk.prune(net(), 0.5, regrow=True, iterations=2),
        *(
            lambda name=name: tk.prune(net(), 0.5, regrow=True, iterations=2, score=name, batches=pairs(), loss=loss)
            for name in ("snip", "taylor", "fisher", "crop", "grasp", "synflow")
        ),
    ),
    "flops of an idle layer": Advice(
        "spare them in the scope",
        lambda: tk.prune(_Idle(), flops=0.5, example_inputs=x()),
        lambda: tk.prune(_Idle(), flops=0.5, example_inputs=x(), scope=tk.scope(_Idle(), spare=["idle"])),
    ),
    "denser than a pattern": Advice(
        "ask for 0.5 or less",
        lambda: tk.prune(net(), 0.75, pattern="2:4"),
        lambda: tk.prune(net(), 0.5, pattern="2:4"),
        lambda: tk.prune(net(), 0.25, pattern="2:4"),
    ),
    "blocks of one row": Advice(
        "write unstructured",
        lambda: tk.prune(net(), 0.5, pattern="1x1"),
        lambda: tk.prune(net(), 0.5, pattern="unstructured"),
    ),
    "unknown pattern": Advice(
        "unstructured, channel",
        lambda: tk.prune(net(), 0.5, pattern="rows"),
        *(lambda text=text: tk.prune(net(), 0.5, pattern=text) for text in ("channel", "4x1", "16x1", "2:4")),
    ),
    "denser than the mask before": Advice(
        "ask for at most 0.5",
        lambda: tk.prune(net(), 0.75, within=tk.prune(net(), 0.5)),
        lambda: tk.prune(net(), 0.5, within=tk.prune(net(), 0.5)),
    ),
    "a mask of another pattern": Advice(
        "Go on from a mask that was made with this pattern",
        lambda: tk.prune(net(), 0.25, pattern="4x1", within=tk.prune(net(), 0.5)),
        lambda: tk.prune(net(), 0.25, pattern="4x1", within=_by_row(4)),
    ),
    "half rate of N:M": Advice(
        "leave it out",
        lambda: tk.prune(net(), 0.5, pattern="2:4", half_rate=("0",)),
        lambda: tk.prune(net(), 0.5, pattern="2:4"),
    ),
    "an empty layer": Advice(
        "the lowest that leaves some in each is 0.5079: choose it, another distribution (layerwise, erk), spare the"
        " layer, or keep a weight in each (keep_at_least=1)",
        lambda: tk.prune(_unequal(), 0.25),
        lambda: tk.prune(_unequal(), 0.5079),
        lambda: tk.prune(_unequal(), 0.25, distribution="layerwise"),
        lambda: tk.prune(_unequal(), 0.25, distribution="erk"),
        lambda: tk.prune(_unequal(), 0.25, scope=tk.scope(_unequal(), spare=["2"])),
        lambda: tk.prune(_unequal(), 0.25, keep_at_least=1),
    ),
    "an empty layer of blocks": Advice(
        "choose a higher density, another distribution (layerwise, erk), smaller blocks, spare the layer, or keep a"
        " block in each (keep_at_least=1)",
        lambda: tk.prune(_unequal(), 0.516, pattern="4x1"),
        lambda: tk.prune(_unequal(), 0.75, pattern="4x1"),
        lambda: tk.prune(_unequal(), 0.516, pattern="4x1", distribution="layerwise"),
        lambda: tk.prune(_unequal(), 0.516, pattern="4x1", distribution="erk"),
        lambda: tk.prune(_unequal(), 0.516, pattern="2x1"),
        lambda: tk.prune(_unequal(), 0.516, pattern="4x1", scope=tk.scope(_unequal(), spare=["2"])),
        lambda: tk.prune(_unequal(), 0.516, pattern="4x1", keep_at_least=1),
    ),
    # scopes
    "nothing in scope": Advice(
        "include=",
        lambda: tk.prune(_OwnProduct(), 0.5),
        lambda: tk.prune(_OwnProduct(), 0.5, scope=tk.scope(_OwnProduct(), include=["matrix"])),
    ),
    "integers in scope": Advice(
        "leave it out with spare=",
        lambda: tk.prune(_Integers(), 0.5),
        lambda: tk.prune(_Integers(), 0.5, scope=tk.scope(_Integers(), spare=["codes"])),
    ),
    "spare another model's module": Advice("give modules of this very model, or their names", _spared, _own_module),
    "misspelt name": Advice(
        "did you mean",
        lambda: tk.scope(nn.Sequential(nn.Linear(4, 4)), spare=["0.wght"], include=["0.bias"]),
        lambda: tk.scope(nn.Sequential(nn.Linear(4, 4)), spare=["0.weight"], include=["0.bias"]),
    ),
    "scope of names": Advice(
        "tk.scope(model, include=[...]) makes one",
        lambda: tk.prune(net(), 0.5, scope=["0.weight"]),
        lambda: tk.prune(net(), 0.5, scope=tk.scope(net(), include=["0.weight"])),
    ),
    "a mask of tensors": Advice(
        "tk.Mask({name: tensor",
        lambda: tk.hold(net(), {"0.weight": torch.ones(8, 8)}),
        lambda: tk.hold(net(), tk.Mask({"0.weight": torch.ones(8, 8)})).release(),
        lambda: tk.hold(model := net(), tk.prune(model, density=0.1)).release(),
    ),
    "an empty row under weight_norm": Advice(
        "keep one weight of each row", lambda: _weight_norm(0), lambda: _weight_norm(1)
    ),
    # models
    "lazy": Advice("call the model once", lambda: _lazy(False), lambda: _lazy(True)),
    "meta": Advice("to_empty", lambda: _meta(initialise=False), lambda: _meta(initialise=True)),
    "inference mode": Advice(
        "take copy.deepcopy(model)", lambda: _of_inference_mode(copied=False), lambda: _of_inference_mode(copied=True)
    ),
    "torchscript": Advice(
        "script or trace that afterwards",
        lambda: _torchscript(afterwards=False),
        lambda: _torchscript(afterwards=True),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_message_says_to_do_works(name: str) -> None:
    check(CASES[name])
