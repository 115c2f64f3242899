"""Segments with a penalty, against a loop in plain PyTorch that adds it to the loss; resuming, keys, refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ticketry.core.sparse_training.penalties import BLOCK_PENALTIES, PENALTIES
from ticketry.errors import InterruptedTrainingError, ScopeError, UsageError
from ticketry.lab.training.execute import execute
from ticketry.lab.training.job import Watch
from ticketry.lab.training.segment import Segment
from ticketry.lab.training.variants import Penalty
from ticketry.search.gating.gating import Gating
from ticketry.tasks.recipe import Recipe
from ticketry_engine.support.seeds import generator, mix_seeds

OF_WEIGHTS = tuple(kind for kind in PENALTIES if kind != "group_lasso")
WEIGHTS = ("0.weight", "4.weight", "5.weight")
NAMES = {"l1_scales": ("1.weight",), "hoyer_square": WEIGHTS, "group_hoyer_square": WEIGHTS}
STEPS = 20
SGD = Recipe(length="24it", batch=32, lr=0.05, momentum=0.9)


def some(kind: str, strength: float = 0.01) -> Penalty:
    return Penalty(kind=kind, strength=strength, names=NAMES[kind])


def defined(kind: str, w: Tensor) -> Tensor:
    if kind == "l1_scales":
        return w.abs().sum()
    sums = [w.abs().sum()] if kind == "hoyer_square" else [w.norm(dim=0).sum(), w.norm(dim=1).sum()]
    return sum(one**2 for one in sums) / (w**2).sum()


def bare_loop(task, kind, strength, mask=None):
    """Weights, and the task's losses, of 20 steps with the penalty in the loss."""
    recipe = SGD
    torch.manual_seed(mix_seeds(5, "initialisation"))
    model, train, losses = task.build(), task.load().train, []
    parameters = dict(model.named_parameters())
    keep = {name: mask[name].float() for name in mask} if mask else {}
    for name in keep:
        parameters[name].data *= keep[name]
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum)
    while len(losses) < STEPS:
        order = torch.randperm(len(train), generator=generator(6, "order", len(losses) // 7))
        for batch in order.split(recipe.batch)[: STEPS - len(losses)]:
            torch.manual_seed(mix_seeds(6, "step", len(losses)))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(train.inputs[batch]), train.targets[batch])
            added = sum(defined(kind, parameters[name]) for name in NAMES[kind])
            (loss + strength * added).backward()
            for name in keep:
                parameters[name].grad *= keep[name]
            optimizer.step()
            losses.append(float(loss.detach()))
    return model.state_dict(), losses


@pytest.mark.parametrize(("kind", "masked"), zip(OF_WEIGHTS, (True, False, True), strict=True))
def test_as_in_a_bare_loop(lab, points, half, kind, masked):
    mask = half if masked else None
    segment = lab.segment(points, start=5, order_seed=6, mask=mask, last=STEPS, recipe=SGD, variants=[some(kind)])
    result = lab.train(segment)
    wanted, losses = bare_loop(points, kind, 0.01, lab.store.get_mask(half) if masked else None)
    state = lab.state(result)
    for name, value in wanted.items():
        assert torch.allclose(state[name], value, rtol=1e-3, atol=1e-5), name
    told = [loss for _, loss in result.record["loss"]]
    assert told == pytest.approx(losses, rel=1e-4)  # the task's, without the penalty
    plain = lab.state(lab.train(replace(segment, variants=())))
    assert not torch.allclose(plain[NAMES[kind][0]], state[NAMES[kind][0]], atol=1e-3)
    if kind == "l1_scales":
        assert state["1.weight"].abs().sum() < plain["1.weight"].abs().sum()


@pytest.mark.parametrize("kind", BLOCK_PENALTIES)
def test_on_blocks_as_in_a_bare_loop(lab, points, monkeypatch, kind):
    """Blocks of up to four rows at a column, by hand."""

    def in_blocks(_, w):
        norms = [(part.norm(), len(part) ** 0.5) for rows in w.split(4) for part in rows.flatten(1).t()]
        if kind == "group_lasso":
            return sum(norm * root for norm, root in norms)
        return sum(norm for norm, _ in norms) ** 2 / (w**2).sum()

    by = Penalty(kind=kind, strength=0.01, names=WEIGHTS, pattern="4x1")
    result = lab.train(lab.segment(points, start=5, order_seed=6, last=STEPS, recipe=SGD, variants=[by]))
    monkeypatch.setitem(globals(), "defined", in_blocks)
    monkeypatch.setitem(NAMES, kind, WEIGHTS)
    wanted, losses = bare_loop(points, kind, 0.01)
    state = lab.state(result)
    for name, value in wanted.items():
        assert torch.allclose(state[name], value, rtol=1e-3, atol=1e-5), name
    assert [loss for _, loss in result.record["loss"]] == pytest.approx(losses, rel=1e-4)


def test_a_pattern_is_in_the_key_where_there_is_one(lab, points):
    segment = lab.segment(points, start=5, variants=[some("group_hoyer_square")])
    of_blocks = replace(segment, variants=(replace(segment.variant(Penalty), pattern="4x1"),))
    assert "pattern" not in segment.describe()["variants"][0]
    assert of_blocks.describe()["variants"][0]["pattern"] == "4x1"
    assert len({segment.key, of_blocks.key}) == 2
    assert Segment.from_description(json.loads(json.dumps(of_blocks.describe())), points) == of_blocks
    with pytest.raises(UsageError, match="is not of blocks"):
        Penalty(kind="hoyer_square", strength=1, names=WEIGHTS, pattern="4x1")
    with pytest.raises(UsageError, match="say which"):
        Penalty(kind="group_lasso", strength=1, names=WEIGHTS)
    with pytest.raises(UsageError, match="groups of a penalty need weights that go together"):
        Penalty(kind="group_lasso", strength=1, names=WEIGHTS, pattern="2:4")


def test_interrupted_and_gone_on_with(lab, points, tmp_path, equal_bits):
    segment = lab.segment(points, start=5, order_seed=6, variants=[some("hoyer_square")])
    wanted = lab.state(lab.train(segment))

    class Stop(Watch):
        def is_stop_requested(self) -> bool:
            return True

    other = type(lab)(tmp_path / "other")
    for _ in range(2):
        with pytest.raises(InterruptedTrainingError):
            execute(other.store, None, segment, (), Stop(checkpoint_seconds=1e-9))
    assert equal_bits(other.state(other.train(segment)), wanted)


def test_refusals(lab, points):
    segment = lab.segment(points, start=5, variants=[some("hoyer_square")])
    with pytest.raises(UsageError, match="without gates"):
        replace(segment, variants=(some("hoyer_square"), Gating(scope=("0.weight",))))
    with pytest.raises(ScopeError, match="'nothing'"):
        lab.train(replace(segment, variants=(Penalty(kind="hoyer_square", strength=1, names=("nothing",)),)))
    with pytest.raises(UsageError, match="not known"):
        Penalty(kind="l3", strength=1, names=("a",))
    with pytest.raises(UsageError, match="from 0 to"):
        Penalty(kind="l1_scales", strength=-1, names=("a",))
    with pytest.raises(UsageError, match="no parameter"):
        Penalty(kind="l1_scales", strength=1, names=())
