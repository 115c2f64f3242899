"""A tick against gates that are built in, in plain PyTorch; what it leaves alone; resuming; keys."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.errors import InterruptedTrainingError, ScopeError, UsageError
from ticketry.lab.training.execute import execute
from ticketry.lab.training.job import Watch
from ticketry.lab.training.segment import Segment, Start
from ticketry.lab.training.variants import Penalty
from ticketry.search.gating.tick import Tick
from ticketry.tasks.recipe import Recipe
from ticketry_engine.support.seeds import generator, mix

FIRST, LAST = 6, 18
SGD = Recipe(length="24it", batch=32, lr=0.05, momentum=0.9)
TICK = Tick(norms=(("1.weight", "1.bias"),), head=("5.weight", "5.bias"), lr=0.02)


class Gated(nn.Module):
    """A norm whose output is phi (x + r): GatedBatchNorm2d of the authors' code, for vectors."""

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        self.bare = nn.BatchNorm1d(norm.num_features, affine=False)
        self.bare.load_state_dict({k: v for k, v in norm.state_dict().items() if k not in ("weight", "bias")})
        self.r = (norm.bias / norm.weight).detach()
        self.phi = nn.Parameter(norm.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.phi * (self.bare(x) + self.r)


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


def by_hand(points, state, mask=None):
    """Weights and worth after the tick, by modules with a gate."""
    model = points.build()
    model.load_state_dict(state)
    keep = {name: value.float() for name, value in mask.items()} if mask else {}
    for name, parameter in model.named_parameters():
        parameter.data *= keep.get(name, 1)
    gone = (model[1].weight == 0).float()
    model[1].weight.data += gone  # shift / scale of what is removed is 0 / 0
    model[1] = Gated(model[1])
    model[1].phi.data *= 1 - gone
    model.requires_grad_(False)
    trained = [model[1].phi, model[5].weight, model[5].bias]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(trained, lr=TICK.lr, momentum=0.9)
    worth, train = torch.zeros(16, dtype=torch.float64), points.load().train
    for step in range(FIRST, LAST):
        order = torch.randperm(len(train), generator=generator(6, "order", step // 7))
        batch = order.split(32)[step % 7]
        torch.manual_seed(mix(6, "step", step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train.inputs[batch]), train.targets[batch]).backward()
        worth += (model[1].phi * model[1].phi.grad).detach().abs()
        for name in ("5.weight", "5.bias"):
            if name in keep:
                model.get_parameter(name).grad *= keep[name]
        model[1].phi.grad *= 1 - gone
        optimizer.step()
    norm, found = model[1], {k: v for k, v in model.state_dict().items() if not k.startswith("1.")}
    found |= {f"1.{k}": v for k, v in norm.bare.state_dict().items()}
    return found | {"1.weight": norm.phi.detach(), "1.bias": (norm.phi * norm.r).detach()}, worth


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_gates_built_in_train_the_same(lab, points, begun, masked):
    kept = torch.ones(16, dtype=torch.bool)
    kept[3:7] = False
    shapes = dict(points.build().named_parameters())
    tensors = {name: kept.view(-1, *[1] * (shapes[name].dim() - 1)).expand(shapes[name].shape).clone() for name in (
        "0.weight", "0.bias", "1.weight", "1.bias")}  # fmt: skip
    mask = Mask({**tensors, "4.weight": kept.expand(16, 16).clone()}) if masked else None
    before = lab.state(begun)
    _, result = ticked(lab, points, begun, mask=mask)
    wanted, worth = by_hand(points, before, mask)
    state = lab.state(result)
    assert state.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.allclose(state[name].double(), value.double(), rtol=1e-4, atol=1e-6), name
    found = lab.store.get_tensors(result.variants["tick"])["1.weight/worth"]
    assert torch.allclose(found, worth, rtol=1e-4)
    assert bool((found == 0).any()) == masked
    for name in ("0.weight", "4.weight"):  # frozen
        assert torch.equal(state[name], before[name] * mask[name] if mask else before[name])
    assert not torch.equal(state["1.weight"], before["1.weight"])
    assert not torch.equal(state["1.running_mean"], before["1.running_mean"])


def test_at_a_learning_rate_of_0_only_the_worth_is_found(lab, points, begun):
    _, result = ticked(lab, points, begun, lr=0.0)
    state, before = lab.state(result), lab.state(begun)
    assert all(torch.equal(state[name], before[name]) for name, _ in points.build().named_parameters())
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
        def stop_asked(self) -> bool:
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


@pytest.mark.parametrize(
    ("field", "value"),
    [("norms", (("1.weight", ""),)), ("head", ()), ("lr", 0.03), ("momentum", 0.5)],
)
def test_every_setting_is_in_the_key(lab, points, begun, field, value):
    segment, _ = ticked(lab, points, begun)
    assert replace(segment, variants=(replace(TICK, **{field: value}),)).trajectory != segment.trajectory
    again = Segment.from_description(json.loads(json.dumps(segment.describe())), points)
    assert again == segment
    assert again.key == segment.key
    assert not replace(segment, variants=()).describe()["variants"]


def test_names_and_refusals(lab, points, digits):
    assert Tick.of(points.build(), lr=0.02) == TICK
    with pytest.raises(ScopeError, match="no norm with a scale"):
        Tick.of(digits.build())
    with pytest.raises(UsageError, match="none is named"):
        Tick(norms=())
    with pytest.raises(UsageError, match="momentum"):
        replace(TICK, momentum=1)
    segment = lab.segment(points, start=5, variants=[TICK])
    with pytest.raises(UsageError, match="without a penalty"):
        replace(
            segment,
            variants=(
                TICK,
                Penalty(kind="l1_scales", strength=1, names=("1.weight",)),
            ),
        )
    with pytest.raises(ScopeError, match=r"'9\.weight'"):
        lab.train(replace(segment, variants=(replace(TICK, head=("9.weight",)),)))
