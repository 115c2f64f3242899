"""Every mapping and pattern of names that a caller can pass is checked, and the nearest name is suggested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import ticketry as tk
from composed import Composed
from ticketry.errors import MaskError, TicketError, TicketryError, UsageError


def network() -> nn.Module:
    return Composed(lambda self, x: self.Head(self.body(x).relu()), body=nn.Linear(4, 8), Head=nn.Linear(8, 2))


X = torch.zeros(2, 4)
WRONG = "body.wieght"


def typo() -> tk.Mask:
    return tk.Mask({WRONG: torch.ones(8, 4)})


def renamed(state: dict[str, Any], key: str) -> dict[str, Any]:
    return {**state, key: {name.replace("weight", "wieght"): value for name, value in state[key].items()}}


def scores(shape: tuple[int, ...] = (8, 4)) -> dict[str, torch.Tensor]:
    return {WRONG: torch.ones(shape), "Head.weight": torch.ones(2, 8)}


def load_gates(net: nn.Module) -> None:
    gates = tk.gates.attach(net)
    gates.load_state_dict(renamed(gates.state_dict(), "gates"))


def load_gradual(net: nn.Module) -> None:
    pruning = tk.gradual(net, 0.5, steps=10)
    pruning.load_state_dict(renamed(pruning.state_dict(), "mask"))


def another_plan(net: nn.Module) -> None:
    tk.structure.rebuild(net, tk.structure.ShrinkPlan({WRONG: (8, 4)}, {WRONG: {0: (0,)}}, {}))


CALLS: dict[str, Callable[[nn.Module], object]] = {
    "apply_": lambda net: typo().apply_(net),
    "hold": lambda net: tk.hold(net, typo()),
    "compile": lambda net: tk.compile(net, typo(), X),
    "sparse_training": lambda net: tk.sparse_training(net, typo(), X),
    "shrink": lambda net: tk.shrink(net, typo(), X),
    "regroup": lambda net: tk.structure.regroup(net, typo(), 0.5),
    "n_m": lambda net: tk.structure.n_m(net, typo()),
    "coverage": lambda net: tk.structure.coverage(net, typo(), typo()),
    "within of prune": lambda net: tk.prune(net, 0.5, within=typo()),
    "within of gates": lambda net: tk.gates.attach(net, within=typo()),
    "within of allocate": lambda net: tk.allocate({"body.weight": torch.ones(8, 4)}, 0.5, within=typo()),
    "combined": lambda net: tk.Mask({"body.weight": torch.ones(8, 4)}) & typo(),
    "scope": lambda net: tk.prune(net, 0.5, scope=tk.Scope({WRONG: (8, 4)}, 58)),
    "spare": lambda net: tk.scope(net, spare=[WRONG]),
    "include": lambda net: tk.scope(net, include=WRONG),
    "half_rate": lambda net: tk.prune(net, 0.5, half_rate=(WRONG,)),
    "layouts": lambda net: tk.structure.layouts(net, [WRONG]),
    "layouts of allocate": lambda net: tk.allocate(
        {"body.weight": torch.ones(8, 4)}, pattern="2:4", layouts={WRONG: tk.structure.Layout(True)}
    ),
    "scores of a function": lambda net: tk.prune(net, 0.5, score=lambda model, scope, **_: scores()),
    "scores beside those in scope": lambda net: tk.prune(
        net, 0.5, score=lambda model, scope, **_: {"body.weight": torch.ones(8, 4), **scores()}
    ),
    "scores of costs": lambda net: tk.cost.model(net, X, scores=scores()),
    "mask of costs": lambda net: tk.cost.model(net, X, unit="multiplications").estimate(typo()),
    "mask of a ticket": lambda net: tk.Ticket(typo(), net.state_dict(), {}),
    "trained": lambda net: tk.Ticket(
        tk.prune(net, 0.5), net.state_dict(), {}, {**net.state_dict(), WRONG: torch.ones(1)}
    ),
    "gates": load_gates,
    "gradual": load_gradual,
    "plan": another_plan,
    "distance": lambda net: tk.evidence.distance({"body.weight": torch.ones(2)}, {"body.weight": X[0]}, [WRONG]),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_name_is_refused_with_the_nearest(name: str) -> None:
    with pytest.raises(TicketryError, match=r"did you mean body\.weight") as caught:
        CALLS[name](network())
    assert WRONG in str(caught.value)


@pytest.mark.parametrize("name", [6, "", " ", None, ("body", "weight")])
@pytest.mark.parametrize("where", ["mask", "start", "scores", "spare", "half_rate"])
def test_a_name_is_a_string_that_is_not_empty(name: Any, where: str) -> None:
    net = network()
    calls: dict[str, tuple[type[TicketryError], Callable[[], object]]] = {
        "mask": (MaskError, lambda: tk.Mask({name: torch.ones(2, 3)})),
        "start": (TicketError, lambda: tk.Ticket(tk.prune(net, 0.5), {**net.state_dict(), name: X}, {})),
        "scores": (MaskError, lambda: tk.allocate({name: torch.ones(2, 3)}, 0.5)),
        "spare": (UsageError, lambda: tk.scope(net, spare=[name])),
        "half_rate": (UsageError, lambda: tk.allocate({"w": torch.ones(2, 3)}, 0.5, half_rate=(name,))),
    }
    kind, call = calls[where]
    with pytest.raises(kind, match="name"):
        call()


def test_the_module_of_a_spared_part() -> None:
    with pytest.raises(UsageError, match="did you mean body"):
        tk.structure.channel_groups(network(), torch.randn(2, 4), spare=["bdoy"])


def test_steps_of_a_network_without_values() -> None:
    with pytest.raises(UsageError, match="did you mean random_reinit"):
        tk.evidence.verdict(
            [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], {"random_reinit": [1.0, 2.0, 3.0]}, steps={"random_renit": [5, 5, 5]}
        )


@pytest.mark.parametrize("unit", ["multiplications", "bytes"])
def test_scores_of_costs_are_checked_in_every_unit(unit: str) -> None:
    with pytest.raises(UsageError, match=r"did you mean body\.weight"):
        tk.cost.model(network(), X, unit=unit, scores=scores())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"shape \(4, 8\) for 'body\.weight', and the parameter has \(8, 4\)"):
        tk.cost.model(network(), X, unit=unit, scores={"body.weight": torch.ones(4, 8)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ([torch.ones(2)], "must map parameter names to tensors, got a list"),
        ({"w": [1.0, 2.0]}, "a tensor of real numbers for 'w', got a list"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "got complex numbers"),
    ],
)
def test_scores_are_a_mapping_of_real_tensors(wrong: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        tk.allocate(wrong, 0.5)
