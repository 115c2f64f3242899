"""Errors of structures and costs: what each message says to do is done, and works."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from advice import Advice, check, convolutions, images, net, x


class _FixedWidth(nn.Module):
    """A number in the code stands for a width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).relu().reshape(-1, 8))
        return out


def _channels(**options: Any) -> tk.Mask:
    return tk.structure.channels(convolutions(), images(), **options)


def _refill(mask: tk.Mask | None = None, **options: Any) -> tk.Mask:
    model = convolutions()
    return tk.structure.refill(model, mask or tk.prune(model, 0.3, keep_at_least=8), images(), **options)


def _regroup(density: float = 0.3, mask: tk.Mask | None = None, **options: Any) -> tk.Mask:
    model = convolutions()
    given = mask or tk.prune(model, 0.3, keep_at_least=8)
    return tk.structure.regroup(model, given, density, **{"rows": 4, **options})


def _empty_layer() -> tk.Mask:
    """A mask that keeps nothing in the first layer."""
    model = convolutions()
    ones = tk.Mask.ones(tk.scope(model))
    return tk.Mask({name: kept & (name != "0.weight") for name, kept in ones.items()})


def _shrunk() -> nn.Module:
    model = _FixedWidth()
    kept = {"first.weight": torch.ones(8, 8), "last.weight": torch.ones(8, 8)}
    kept["first.weight"][4:] = 0
    kept["last.weight"][:, 4:] = 0
    return tk.shrink(model, tk.Mask({**kept, "first.bias": kept["first.weight"][:, 0]}), x())


def _chosen() -> nn.Module:
    model = nn.Sequential(_FixedWidth(), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    return tk.shrink(model, tk.structure.channels(model, x(), 0.9), x())


def _optimizer(kind: type[torch.optim.Optimizer], *, anew: bool = False, of_model: bool = True) -> Any:
    model = convolutions()
    plan = tk.structure.shrink_plan(model, tk.structure.channels(model, images(), 0.7), images())
    optimizer = kind((model if of_model else convolutions()).parameters(), 0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = model(images()).square().mean()
        found.backward()
        return found

    optimizer.step(closure)
    small = tk.structure.rebuild(model, plan)
    if anew:
        return kind(small.parameters(), 0.1)
    return tk.structure.shrink_optimizer(optimizer, model, small, plan)


def _n_m(**options: Any) -> tk.Mask:
    model = convolutions()
    mask = tk.prune(model, 0.3, keep_at_least=8)
    return tk.structure.n_m(model, mask, **options)


def _costs(**options: Any) -> Any:
    return tk.cost.model(net(), x(), "h100-bf16", **options)


def _bytes(amount: float, **options: Any) -> tk.Mask:
    return tk.prune(net(), bytes=amount, example_inputs=x(), **options)


CASES = {
    # channels
    "density and flops": Advice(
        "give one of density, sparsity, time, flops and bytes",
        lambda: _channels(density=0.5, flops=0.5),
        lambda: _channels(density=0.5),
        lambda: _channels(flops=0.6),
        lambda: _channels(bytes=0.7),
    ),
    "base of channels": Advice(
        "leave base out", lambda: _channels(density=0.5, base="engine"), lambda: _channels(density=0.5)
    ),
    "flops of channels in iterations": Advice(
        "leave iterations and distribution out",
        lambda: _channels(flops=0.6, iterations=2),
        lambda: _channels(flops=0.6),
    ),
    "too few channels": Advice(
        "keep fewer channels in each (keep_at_least)",
        lambda: _channels(density=0.2, keep_at_least=4),
        lambda: _channels(density=0.2, keep_at_least=1),
        lambda: _channels(density=0.7, keep_at_least=4),
    ),
    "a mask that is not of channels": Advice(
        "make it with structure.channels and the same scope",
        lambda: _channels(density=0.5, within=tk.prune(convolutions(), 0.7)),
        lambda: _channels(density=0.5, within=_channels(density=0.7)),
    ),
    "slimming without norms": Advice(
        "leave it out with scope(model, spare=...), or choose another score",
        lambda: _channels(density=0.7, score="slimming"),
        lambda: _channels(density=0.95, score="slimming", scope=tk.scope(convolutions(), spare=["4"])),
        lambda: _channels(density=0.7, score="magnitude"),
    ),
    "inputs that do not fit": Advice(
        "give a tensor, a tuple or a dictionary of its arguments, two examples or more",
        lambda: tk.structure.channels(convolutions(), torch.randn(2, 3, 4, 4), 0.7),
        lambda: tk.structure.channels(convolutions(), images(), 0.7),
        lambda: tk.structure.channels(convolutions(), (images(),), 0.7),
        lambda: tk.structure.channels(convolutions(), {"input": images()}, 0.7),
    ),
    "spare of channels": Advice(
        "its modules are 0, 1",
        lambda: _channels(density=0.7, spare=["conv"]),
        lambda: _channels(density=0.7, spare=["0"]),
        lambda: _channels(density=0.7, spare=["1"]),
    ),
    # shrinking
    "a number for a width": Advice("Make a channel-wise mask, with structure.channels", _shrunk, _chosen),
    "LBFGS": Advice(
        "start a new optimiser for the smaller model",
        lambda: _optimizer(torch.optim.LBFGS),
        lambda: _optimizer(torch.optim.LBFGS, anew=True),
    ),
    "another model's optimiser": Advice(
        "give the model that the optimiser trains",
        lambda: _optimizer(torch.optim.Adam, of_model=False),
        lambda: _optimizer(torch.optim.Adam),
    ),
    # refill, regroup, N:M
    "plus and density": Advice(
        "give one of them",
        lambda: _refill(plus=0.1, density=0.9),
        lambda: _refill(plus=0.1),
        lambda: _refill(density=0.9),
    ),
    "refill of an empty layer": Advice(
        "choose a mask of higher density, or leave them whole with spare=",
        lambda: _refill(_empty_layer()),
        lambda: _refill(tk.Mask.ones(tk.scope(convolutions()))),
        lambda: _refill(_empty_layer(), spare=["0"]),
    ),
    "regroup of an empty layer": Advice(
        "spare the layer", lambda: _regroup(0.3, _empty_layer()), lambda: _regroup(0.5, _empty_layer(), spare=["0"])
    ),
    "density that groups cannot meet": Advice(
        "choose a higher density or fewer rows, spare the layer, or collapse=keep",
        lambda: _regroup(0.01, rows=8),
        lambda: _regroup(0.3, rows=8),
        lambda: _regroup(0.05, rows=2),
        lambda: _regroup(0.01, rows=8, collapse="keep"),
    ),
    "columns of the paper": Advice(
        "leave out budget= and by=",
        lambda: _regroup(method="paper", budget="global"),
        lambda: _regroup(method="paper"),
    ),
    "4:2": Advice("1 <= n < m, as in 2:4", lambda: _n_m(n=4, m=2), lambda: _n_m(n=2, m=4)),
    # costs
    "unknown profile": Advice(
        "nor a profile (h100-bf16)",
        lambda: tk.cost.model(net(), x(), "zen9"),
        lambda: tk.cost.model(net(), x(), "h100-bf16"),
    ),
    "bases of a profile": Advice(
        "leave target or bases out",
        lambda: _costs(bases=("eager",)),
        lambda: _costs(),
    ),
    "precision of a profile": Advice(
        "give precision='bf16'", lambda: _costs(precision="fp16"), lambda: _costs(precision="bf16")
    ),
    "granularity without costs": Advice(
        "tk.cost.model(..., granularities=(",
        lambda: _costs().layers["0.weight"].curve("rows:16"),
        lambda: _costs(granularities=("rows:16",)).layers["0.weight"].curve("rows:16"),
    ),
    "costs in another unit": Advice(
        "leave cost out, or take those of tk.cost.model(model, example_inputs, unit='bytes')",
        lambda: _bytes(0.9, cost=tk.cost.model(net(), x(), unit="multiplications")),
        lambda: _bytes(0.9),
        lambda: _bytes(0.9, cost=tk.cost.model(net(), x(), unit="bytes")),
    ),
    "flops below the least": Advice(
        "ask for that or more",
        lambda: tk.prune(net(), flops=0.01, example_inputs=x(), keep_at_least=8),
        lambda: tk.prune(net(), flops=0.2, example_inputs=x(), keep_at_least=8),
    ),
    "bytes below the least": Advice("ask for more", lambda: _bytes(0.01), lambda: _bytes(0.9)),
    "bytes with all weights": Advice(
        "keep fewer in each (keep_at_least)",
        lambda: _bytes(0.85, keep_at_least=64),
        lambda: _bytes(0.85, keep_at_least=1),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_message_says_to_do_works(name: str) -> None:
    check(CASES[name])
