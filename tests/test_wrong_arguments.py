"""Wrong values of each argument of public functions: the call works, or says which argument is wrong."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ticketry as tk
from advice import convolutions, images, loss, net, pairs, x
from ticketry.errors import TicketryError, UsageError


def _masked(**more: Any) -> dict[str, Any]:
    model = net()
    return {"model": model, "mask": tk.prune(model, 0.5), **more}


def _with_channels(**more: Any) -> dict[str, Any]:
    return {"model": convolutions(), "example_inputs": images(), **more}


@functools.cache
def _channels() -> tk.Mask:
    return tk.structure.channels(convolutions(), images(), 0.7)


@functools.cache
def _weights() -> tk.Mask:
    return tk.prune(convolutions(), 0.3, keep_at_least=8)


def _scoring(**more: Any) -> dict[str, Any]:
    model = net()
    return {"model": model, "scope": tk.scope(model), "batches": pairs(), "loss": loss, **more}


FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]] = {
    "scope": (tk.scope, lambda: {"model": net()}),
    "prune": (tk.prune, lambda: {"model": net(), "density": 0.5}),
    "prune by snip": (tk.prune, lambda: _scoring(density=0.5, score="snip")),
    "prune to bytes": (tk.prune, lambda: {"model": net(), "bytes": 0.95, "example_inputs": x()}),
    "allocate": (tk.allocate, lambda: {"scores": {"0.weight": torch.rand(4, 4)}, "density": 0.5}),
    "hold": (lambda **given: tk.hold(**given).release(), _masked),
    "gradual": (lambda **given: tk.gradual(**given).release(), lambda: {"model": net(), "density": 0.5, "steps": 10}),
    "gates.attach": (lambda **given: tk.gates.attach(**given).detach(), lambda: {"model": net()}),
    "Ticket": (tk.Ticket, lambda: {"mask": tk.prune(net(), 0.5), "start": net().state_dict(), "info": {}}),
    "compile": (tk.compile, lambda: _masked(example_inputs=x())),
    "sparse_training": (
        lambda **given: tk.sparse_training(**given).release(),
        lambda: _masked(example_inputs=x()),
    ),
    "cost.model": (tk.cost.model, lambda: {"model": net(), "example_inputs": x(), "target": "h100-bf16"}),
    "score.kfac": (tk.score.kfac, _scoring),
    "score.grasp": (tk.score.grasp, _scoring),
    "score.synflow": (tk.score.synflow, _scoring),
    "structure.channels": (tk.structure.channels, lambda: _with_channels(density=0.7)),
    "structure.channel_groups": (tk.structure.channel_groups, _with_channels),
    "structure.shrink": (
        tk.structure.shrink,
        lambda: _with_channels(mask=_channels()),
    ),
    "structure.refill": (
        tk.structure.refill,
        lambda: _with_channels(mask=_weights()),
    ),
    "structure.regroup": (tk.structure.regroup, _masked),
    "structure.n_m": (tk.structure.n_m, _masked),
    "structure.layouts": (tk.structure.layouts, lambda: {"model": net(), "names": ["0.weight"]}),
    "evidence.verdict": (
        tk.evidence.verdict,
        lambda: {"ticket": (90.0, 91.0), "dense": (90.5, 91.5), "claim": "matches"},
    ),
    "schedule.cubic": (tk.schedule.cubic, lambda: {"progress": 0.5, "density": 0.5}),
}
"""Name -> the function, and arguments with which it works."""

SIGNATURES = {
    "hold": tk.hold,
    "gradual": tk.gradual,
    "gates.attach": tk.gates.attach,
    "sparse_training": tk.sparse_training,
}
"""Functions that the table calls inside of others."""
CHOICE = ("scope", "score", "distribution", "collapse", "keep_at_least", "pattern", "seed")
"""Further arguments of `gradual`."""

NOT_NUMBERS = (None, "a lot", [0.5], torch.ones(2), True, 1 + 2j, float("nan"), float("inf"), -1)
NOT_WORDS = (7, ["magnitude", "snip"], "nonsense", b"magnitude", torch.ones(2), True)

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
    "batches": (torch.ones(4, 8), 3, "train", [], {"x": torch.ones(4, 8)}, nn.ReLU()),
    "loss": (
        "cross_entropy",
        nn.MSELoss(),
        nn.functional.cross_entropy,
        lambda: 0.0,
        lambda model, batch: 0.5,
        lambda model, batch: model(batch[0]),
    ),
    "cost": (0.5, "5ms", {"0.weight": 1.0}, torch.ones(2)),
    "example_inputs": ([1, 2, 3], "x", {}, (), torch.ones(3), np.ones((4, 8), np.float32), None, {"y": torch.ones(4)}),
    "scope": (["0.weight"], "0.weight", {"0.weight": (8, 8)}, 3, tk.Mask({"0.weight": torch.ones(8, 8)})),
    **dict.fromkeys(("mask", "within"), ({"0.weight": torch.ones(8, 8)}, torch.ones(8, 8), 0.5, "mask", [], None)),
    **dict.fromkeys(
        ("spare", "include", "half_rate"),
        (3, None, {"a": 1}, "nonsense", ["nonsense"], [None], torch.ones(2), [nn.Linear(2, 2)]),
    ),
    **dict.fromkeys(("types", "bypass"), ("Linear", [3], nn.Linear(2, 2), int, [int])),
    "names": (3, [3], ["nonsense"], None),
    **dict.fromkeys(("ticket", "dense"), (3.0, "a", [], ["a", "b"], None, [[1.0], [2.0]], [1.0])),
    "controls": (3.0, [1.0, 2.0], "a", {"a": 3.0}, {"a": [1.0]}),
    **dict.fromkeys(("start", "trained"), ([torch.ones(2)], 3, "weights.pt", {}, nn.ReLU())),
    "info": ([1], "text", None, {3: object()}),
    "densities": (0.5, "a", ["a"], [2.0], []),
    "granularities": ("nonsense", 3, ["nonsense"], [3]),
    "bases": (3, [3], ["nonsense"]),
    "model": (None, "resnet", nn.Linear, lambda x: x, {"0.weight": torch.ones(2)}, [nn.Linear(2, 2)]),
    "unit": ("nonsense", 7),
}
"""Argument -> values that are wrong for some function, if not for all."""

OTHER_WORDS = {
    "example_inputs": "inputs",
    "densities": "density",
    "granularities": "granularity",
    "controls": "values of the ticket",
    "steps": "step",
    "initial": "density",
    "names": "parameter",
}


def _arguments(name: str) -> list[str]:
    names = inspect.signature(SIGNATURES.get(name, FUNCTIONS[name][0])).parameters
    return [one for one in (*names, *(CHOICE if name == "gradual" else ())) if one in WRONG]


def _is_named(argument: str, value: Any, message: str) -> bool:
    words = (argument, argument.replace("_", " "), OTHER_WORDS.get(argument, argument))
    return any(word in message for word in words) or (isinstance(value, str) and value in message)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_wrong_value_works_or_is_named(name: str) -> None:
    function, arguments = FUNCTIONS[name]
    function(**arguments())
    unnamed = []
    for argument in _arguments(name):
        for value in WRONG[argument]:
            try:
                function(**{**arguments(), argument: value})
            except TicketryError as error:
                if not _is_named(argument, value, str(error)):
                    unnamed.append(f"{argument}={value!r:.60}: {error}")
            except Exception as error:
                unnamed.append(f"{argument}={value!r:.60}: {type(error).__name__}: {error}")
    assert not unnamed, "\n".join(unnamed)


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int64, np.uint8, torch.tensor])
def test_numbers_of_other_libraries_are_numbers(kind: Any) -> None:
    model = net()
    whole, half = (lambda value: value, kind) if kind in (np.float16, np.float64) else (kind, lambda value: value)
    expected = tk.prune(model, 0.5, score="random", keep_at_least=2, seed=3, iterations=2)
    found = tk.prune(model, half(0.5), score="random", keep_at_least=whole(2), seed=whole(3), iterations=whole(2))
    assert found == expected
    assert tk.structure.n_m(model, expected, whole(2), whole(4)) == tk.structure.n_m(model, expected, 2, 4)


MASK = tk.prune(net(), 0.5)
OF_A_MODEL: dict[str, Callable[[Any], object]] = {
    "prune": lambda model: tk.prune(model, 0.5),
    "scope": tk.scope,
    "hold": lambda model: tk.hold(model, MASK),
    "gradual": lambda model: tk.gradual(model, density=0.5, steps=5),
    "gates": tk.gates.attach,
    "compile": lambda model: tk.compile(model, MASK, x()),
    "sparse_training": lambda model: tk.sparse_training(model, MASK, x()),
    "cost": lambda model: tk.cost.model(model, x()),
    "shrink": lambda model: tk.shrink(model, MASK, x()),
    "channels": lambda model: tk.structure.channels(model, x(), 0.5),
    "apply_": MASK.apply_,
    "ticket": lambda model: tk.Ticket(MASK, net().state_dict(), {"method": "one-shot"}).apply(model, "start"),
}


@pytest.mark.parametrize("call", OF_A_MODEL.values(), ids=OF_A_MODEL.keys())
def test_what_is_no_model_is_refused_with_what_to_give(call: Callable[[Any], object]) -> None:
    with pytest.raises(
        UsageError, match=r"model= is a torch\.nn\.Module, not a OrderedDict: make the model and load it"
    ):
        call(net().state_dict())
    with pytest.raises(UsageError, match=r"not the class Linear: make one, Linear\(\.\.\.\)"):
        call(nn.Linear)
    with pytest.raises(UsageError, match="not a str: it is the first argument"):
        call("model.pt")
