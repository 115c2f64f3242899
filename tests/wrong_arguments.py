"""Public functions with a call of each that works, and values that each of their arguments may be given wrongly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

import ticketry as tk
from advice import convolutions, images, loss, net, pairs, x


def _mask(model: nn.Module) -> tk.Mask:
    return tk.prune(model, 0.5)


def _channels() -> tk.Mask:
    return tk.structure.channels(convolutions(), images(), 0.7)


def _sparse() -> tk.Mask:
    return tk.prune(convolutions(), 0.3, keep_at_least=8)


def _on_net(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"model": net(), **{name: value() if callable(value) else value for name, value in more.items()}}


def _with_mask(**more: Any) -> Callable[[], dict[str, Any]]:
    def arguments() -> dict[str, Any]:
        model = net()
        return {"model": model, "mask": _mask(model), **{name: value() for name, value in more.items()}}

    return arguments


def _on_convolutions(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "model": convolutions(),
        "example_inputs": images(),
        **{name: value() if callable(value) and name != "loss" else value for name, value in more.items()},
    }


def _scoring() -> dict[str, Any]:
    model = net()
    return {"model": model, "scope": tk.scope(model), "batches": pairs(), "loss": loss}


FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]] = {
    "scope": (tk.scope, _on_net()),
    "prune": (tk.prune, _on_net(density=0.5)),
    "prune by snip": (tk.prune, lambda: {**_scoring(), "density": 0.5, "score": "snip"}),
    "prune to flops": (tk.prune, _on_net(flops=0.5, example_inputs=x)),
    "prune to bytes": (tk.prune, _on_net(bytes=0.95, example_inputs=x)),
    "allocate": (tk.allocate, lambda: {"scores": {"0.weight": torch.rand(4, 4)}, "density": 0.5}),
    "hold": (lambda **given: tk.hold(**given).release(), _with_mask()),
    "gradual": (lambda **given: tk.gradual(**given).release(), _on_net(density=0.5, steps=10)),
    "gates.attach": (lambda **given: tk.gates.attach(**given).detach(), _on_net()),
    "Ticket": (tk.Ticket, lambda: {"mask": _mask(net()), "start": net().state_dict(), "info": {}}),
    "compile": (tk.compile, _with_mask(example_inputs=x)),
    "sparse_training": (lambda **given: tk.sparse_training(**given).release(), _with_mask(example_inputs=x)),
    "cost.model": (tk.cost.model, _on_net(example_inputs=x, target="h100-bf16")),
    **{
        f"score.{name}": (getattr(tk.score, name), _scoring)
        for name in ("crop", "fisher", "grasp", "kfac", "snip", "taylor", "synflow")
    },
    "structure.channels": (tk.structure.channels, _on_convolutions(density=0.7)),
    "structure.channel_groups": (tk.structure.channel_groups, _on_convolutions()),
    "structure.shrink": (tk.structure.shrink, _on_convolutions(mask=_channels)),
    "structure.refill": (
        tk.structure.refill,
        _on_convolutions(mask=_sparse),
    ),
    "structure.regroup": (tk.structure.regroup, _with_mask()),
    "structure.n_m": (tk.structure.n_m, _with_mask()),
    "structure.layouts": (tk.structure.layouts, lambda: {"model": net(), "names": ["0.weight"]}),
    "evidence.verdict": (
        tk.evidence.verdict,
        lambda: {"ticket": (90.0, 91.0), "dense": (90.5, 91.5), "claim": "matches"},
    ),
    "schedule.cubic": (tk.schedule.cubic, lambda: {"progress": 0.5, "density": 0.5}),
}
"""Name -> the function, and arguments with which it works."""

NOT_NUMBERS = (
    *(None, "a lot", [0.5], {"a": 1}, torch.ones(2), nn.ReLU(), object(), True, 1 + 2j),
    *(float("nan"), float("inf"), -1, 1e30),
)
NOT_WORDS = (7, 0.5, ["magnitude", "snip"], "nonsense", b"magnitude", {"a": 1}, torch.ones(2), True, object())

SHARES = ("density", "sparsity", "flops", "bytes", "time", "plus", "progress", "initial", "init")
NUMBERS = ("margin", "confidence", "resolution", "temperature")
COUNTS = ("keep_at_least", "iterations", "steps", "seed", "multiple", "rows", "n", "m", "threads", "block_rows")
WORDS = (
    *("structure", "score", "distribution", "collapse", "pattern", "schedule", "base", "kind", "norms", "reduce"),
    *("coupled", "method", "budget", "by", "precision", "target", "claim", "begin", "end", "frequency"),
)

WRONG: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys((*SHARES, *NUMBERS), NOT_NUMBERS),
    **dict.fromkeys(COUNTS, (*NOT_NUMBERS, 1.5, "3")),
    **dict.fromkeys(WORDS, NOT_WORDS),
    "batches": (torch.ones(4, 8), 3, "train", [], {"x": torch.ones(4, 8)}, loss, nn.ReLU()),
    "loss": (
        "cross_entropy",
        3,
        nn.MSELoss(),
        nn.functional.cross_entropy,
        lambda: 0.0,
        lambda model, batch: 0.5,
        lambda model, batch: model(batch[0]),
        torch.ones(2),
    ),
    "cost": (0.5, "5ms", {"0.weight": 1.0}, torch.ones(2), [1.0]),
    "example_inputs": (
        [1, 2, 3],
        3,
        "x",
        (1, 2),
        {},
        (),
        [],
        torch.ones(3),
        torch.ones(4, 3),
        np.ones((4, 8), np.float32),
        None,
        object(),
        {"nonsense": torch.ones(4, 8)},
        lambda: torch.ones(4, 8),
    ),
    "scope": (["0.weight"], "0.weight", {"0.weight": (8, 8)}, 3, tk.Mask({"0.weight": torch.ones(8, 8)})),
    **dict.fromkeys(("mask", "within"), ({"0.weight": torch.ones(8, 8)}, torch.ones(8, 8), 0.5, "mask", [], None)),
    **dict.fromkeys(
        ("spare", "include", "half_rate"),
        (3, [3], None, {"a": 1}, "nonsense", ["nonsense"], [None], torch.ones(2), [nn.Linear(2, 2)]),
    ),
    **dict.fromkeys(("types", "bypass"), ("Linear", [3], nn.Linear(2, 2), int, [int])),
    "names": (3, [3], "nonsense", ["nonsense"], None),
    "ticket": (3.0, "a", [], ["a", "b"], None, [[1.0], [2.0]], [1.0]),
    "dense": (3.0, "a", [], ["a", "b"], None, [[1.0], [2.0]], [1.0]),
    "controls": (3.0, [1.0, 2.0], "a", {"a": 3.0}, {"a": [1.0]}),
    "start": ([torch.ones(2)], 3, "weights.pt", {}, None, nn.ReLU()),
    "trained": ([torch.ones(2)], 3, "weights.pt", {}, nn.ReLU()),
    "info": ([1], "text", 3, None, {3: object()}),
    "densities": (0.5, "a", ["a"], [2.0], []),
    "granularities": ("nonsense", 3, ["nonsense"], [3]),
    "bases": (3, [3], ["nonsense"]),
    "model": (None, 3, "resnet", nn.Linear, lambda x: x, {"0.weight": torch.ones(2)}, [nn.Linear(2, 2)]),
    "temperature": NOT_NUMBERS[:-1],
    "unit": ("nonsense", 7),
}
"""Argument -> values that are wrong for some function, if not for all."""
