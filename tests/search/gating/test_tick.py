"""A tick of Gate Decorators: what it leaves alone, resuming, keys. `test_decorators` has it by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from ticketry.errors import InterruptedTrainingError, ScopeError, UsageError
from ticketry.lab.training.execute import execute
from ticketry.lab.training.job import Watch
from ticketry.lab.training.segment import Segment, Start
from ticketry.lab.training.variants import Penalty
from ticketry.search.gating.tick import Tick
from ticketry.tasks.recipe import Recipe

FIRST, LAST = 6, 18
SGD = Recipe(length="24it", batch=32, lr=0.05, momentum=0.9)
TICK = Tick(norms=(("1.weight", "1.bias"),), head=("5.weight", "5.bias"), lr=0.02)


@pytest.fixture
def begun(lab, points):
    """The dense network after 6 steps: its norm has moved."""
    return lab.train(lab.segment(points, start=5, order_seed=6, recipe=SGD, last=FIRST), measure=False)


def ticked(lab, points, begun, mask=None, **changes):
    segment = lab.segment(
        points,
        start=Start(state=begun.model),
        mask=mask,
        order_seed=6,
        recipe=SGD,
        first=FIRST,
        last=LAST,
        variants=[replace(TICK, **changes)],
    )
    return segment, lab.train(segment, measure=False)


def test_at_a_learning_rate_of_0_only_the_worth_is_found(lab, points, begun):
    _, result = ticked(lab, points, begun, lr=0.0)
    state, before = lab.state(result), lab.state(begun)
    assert all(torch.equal(state[name], before[name]) for name, _ in points.build().named_parameters())
    assert not torch.equal(state["1.running_mean"], before["1.running_mean"])
    moved = lab.state(ticked(lab, points, begun)[1])
    assert all(torch.equal(moved[name], before[name]) for name in ("0.weight", "4.weight")), "frozen"
    assert not torch.equal(moved["1.weight"], before["1.weight"])
    assert bool((lab.store.get_tensors(result.variants["tick"])["1.weight/worth"] > 0).all())


def test_a_scale_of_0_and_a_large_shift(lab, points, begun):
    """shift / scale is 0 where there is no scale, and 10 at most; the function begins as it was."""
    state = lab.state(begun)
    state["1.weight"][0], state["1.bias"][0], state["1.bias"][1] = 0.0, 0.5, 100.0
    changed = replace(begun, model=lab.store.put_tensors(state))
    _, result = ticked(lab, points, changed, lr=0.0)
    kept = {**lab.store.get_tensors(result.variants["tick"]), **lab.store.get_tensors(result.training)}
    assert torch.equal(lab.state(result)["1.bias"], state["1.bias"])
    assert kept["variants/tick/1.weight/ratio"][0] == 0
    assert kept["variants/tick/1.weight/ratio"][1].abs() == 10
    assert kept["1.weight/worth"][0] == 0


def test_interrupted_and_gone_on_with(lab, points, begun, tmp_path):
    segment, result = ticked(lab, points, begun)

    class Stop(Watch):
        def is_stop_requested(self) -> bool:
            return True

    other = type(lab)(tmp_path / "other")
    assert other.store.put_tensors(lab.state(begun)) == begun.model
    for _ in range(2):
        with pytest.raises(InterruptedTrainingError):
            execute(other.store, None, segment, (), Stop(checkpoint_seconds=1e-9))
    again = other.train(segment, measure=False)
    assert (again.model, again.training is None) == (result.model, False)
    one, two = lab.store.get_tensors(result.training), other.store.get_tensors(again.training)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_every_setting_is_in_the_key(lab, points, begun):
    segment, _ = ticked(lab, points, begun)
    for field, value in (("norms", (("1.weight", ""),)), ("head", ()), ("lr", 0.03), ("momentum", 0.5)):
        assert replace(segment, variants=(replace(TICK, **{field: value}),)).trajectory != segment.trajectory
    again = Segment.from_description(json.loads(json.dumps(segment.describe())), points)
    assert (again, again.key) == (segment, segment.key)


def test_names_and_refusals(lab, points, digits):
    assert Tick.for_model(points.build(), lr=0.02) == TICK
    with pytest.raises(ScopeError, match="no norm with a scale"):
        Tick.for_model(digits.build())
    with pytest.raises(UsageError, match="none is named"):
        Tick(norms=())
    with pytest.raises(UsageError, match="momentum"):
        replace(TICK, momentum=1)
    segment = lab.segment(points, start=5, variants=[TICK])
    with pytest.raises(UsageError, match="without a penalty"):
        replace(segment, variants=(TICK, Penalty(kind="l1_scales", strength=1, names=("1.weight",))))
    with pytest.raises(ScopeError, match=r"'9\.weight'"):
        lab.train(replace(segment, variants=(replace(TICK, head=("9.weight",)),)))
