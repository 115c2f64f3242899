"""What is given in the place of a mask or a plan, such as a state dict: told at once, by the argument's name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.errors import UsageError

MODEL = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
X = torch.zeros(2, 8)
MASK = tk.prune(MODEL, 0.5)
S = tk.structure
OPTIMIZER = torch.optim.SGD(MODEL.parameters(), lr=0.1)

MASKS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "regroup": ("mask", lambda given: S.regroup(MODEL, given, rows=4)),
    "refill": ("mask", lambda given: S.refill(MODEL, given, X)),
    "n_m": ("mask", lambda given: S.n_m(MODEL, given)),
    "channels": ("within", lambda given: S.channels(MODEL, X, 0.5, within=given)),
    "coverage": ("mask", lambda given: S.coverage(MODEL, given, MASK)),
    "coverage, structured": ("structured", lambda given: S.coverage(MODEL, MASK, given)),
    "groups": ("mask", S.groups),
    "shuffled_structure": ("mask", lambda given: S.shuffled_structure(given, 1)),
    "shrink": ("mask", lambda given: S.shrink(MODEL, given, X)),
    "shrink_plan": ("mask", lambda given: S.shrink_plan(MODEL, given, X)),
    "hold": ("mask", lambda given: tk.hold(MODEL, given)),
    "compile": ("mask", lambda given: tk.compile(MODEL, given, X)),
    "prune": ("within", lambda given: tk.prune(MODEL, 0.3, within=given)),
    "prune, flops": ("within", lambda given: tk.prune(MODEL, flops=0.3, example_inputs=X, within=given)),
    "prune, time": ("within", lambda given: tk.prune(MODEL, time=0.9, example_inputs=X, within=given)),
    "meet": ("within", lambda given: tk.cost.meet(MODEL, X, 0.9, within=given)),
    "estimate": ("mask", lambda given: tk.cost.model(MODEL, X, unit="multiplications").estimate(given)),
    "allocate": ("within", lambda given: tk.allocate(dict(MASK), 0.3, within=given)),
    "attach": ("within", lambda given: tk.gates.attach(MODEL, within=given)),
    "fisher": (
        "at",
        lambda given: tk.score.fisher(
            MODEL, tk.scope(MODEL), batches=[X], loss=lambda model, x: model(x).sum(), at=given
        ),
    ),
    "synflow": ("at", lambda given: tk.score.synflow(MODEL, tk.scope(MODEL), batches=[X], at=given)),
    "step_flops": ("mask", lambda given: tk.meters.step_flops(MODEL, lambda: MODEL(X).sum(), given)),
    "measure_step": (
        "mask",
        lambda given: tk.meters.measure_step(MODEL, lambda model, x: model(x).sum(), X, OPTIMIZER, mask=given),
    ),
}
GIVEN = {"bits by name": dict(MASK), "a word": "a"}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize(("name", "call"), MASKS.values(), ids=MASKS)
def test_it_is_told_by_name_and_what_would_be_one(name: str, call: Callable[[Any], object], given: object):
    before = {name: tensor.clone() for name, tensor in MODEL.state_dict().items()}
    with pytest.raises(UsageError, match=rf"^{name}= is a tk\.Mask, not a {type(given).__name__}: .* makes one"):
        call(given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in MODEL.state_dict().items())


def test_every_function_of_the_room_that_takes_a_mask_is_asked():
    """By the annotations of the public functions, which say who takes one."""
    takes = {
        (name, parameter.name)
        for name, function in ((name, getattr(S, name)) for name in S.__all__)
        if inspect.isfunction(function)
        for parameter in inspect.signature(function).parameters.values()
        if "Mask" in str(parameter.annotation)
    }
    assert takes == {(case.split(",")[0], name) for case, (name, _) in MASKS.items() if case.split(",")[0] in S.__all__}


@pytest.mark.parametrize("given", [dict(MASK), MASK, None], ids=["dict", "mask", "none"])
def test_what_is_no_plan_is_told(given: Any):
    small = S.shrink(MODEL, S.channels(MODEL, X, 0.5), X)
    for call in (S.rebuild, lambda model, plan: S.shrink_optimizer(OPTIMIZER, model, small, plan)):
        with pytest.raises(UsageError, match=rf"^plan= is a tk\.structure\.ShrinkPlan, not a {type(given).__name__}:"):
            call(MODEL, given)


def test_a_whole_mask_is_no_matrix_of_rows_and_no_fit():
    with pytest.raises(UsageError, match=r"kept= is one tensor or array, not a Mask: tk\.structure\.groups\(mask\)"):
        S.row_groups(MASK)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="fits= are LayerFits, and a Tensor is none"):
        S.together(MASK)  # type: ignore[arg-type]
