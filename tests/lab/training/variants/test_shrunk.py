"""Trained without the channels that its mask removes, a network is what it is with the mask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import ticketry as tk
from samples import sample
from ticketry.core.structure import channels, rebuild, shrink_plan
from ticketry.core.structure.smaller_model import plan_for_structure
from ticketry.errors import InterruptedTrainingError, MaskError
from ticketry.lab.lab import Lab
from ticketry.lab.store.store import Store
from ticketry.lab.training import job as job_module
from ticketry.lab.training import variants as shrunk_module
from ticketry.lab.training.execute import execute
from ticketry.lab.training.job import Watch
from ticketry.lab.training.loop import Loop
from ticketry.lab.training.segment import Segment, Start
from ticketry.lab.training.state import initial_state
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Split, Splits, Task
from watches import StopAt

SGD = Recipe(length="24it", batch=16, lr=0.1, momentum=0.9, weight_decay=1e-3, clip=1.0)
ADAM = Recipe(length="24it", batch=16, optimizer="adam", lr=0.01)


class Residual(nn.Module):
    """A stream to which one block adds, and a tied pair of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.inner, self.inner_norm = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.outer, self.outer_norm = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.tied, self.again = nn.Linear(6, 6), nn.Linear(6, 6)
        self.again.weight = self.tied.weight
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x)).relu()
        x = (x + self.outer_norm(self.outer(self.inner_norm(self.inner(x)).relu()))).relu().mean((2, 3))
        return self.head(self.again(self.tied(x).relu()).relu())


@pytest.fixture
def pictures(points_class: type[Task]) -> Task:
    """80 pictures of 4 x 4 pixels in three classes."""

    class Pictures(points_class):  # type: ignore[misc,valid-type]
        name = "pictures"
        recipe = SGD

        def build(self) -> nn.Module:
            return Residual()

        def load(self, data: Path | None = None) -> Splits:
            draw = torch.Generator().manual_seed(0)
            images, classes = torch.randn(120, 1, 4, 4, generator=draw), torch.randint(3, (120,), generator=draw)
            return Splits(*(Split(images[rows], classes[rows]) for rows in torch.arange(120).split([80, 20, 20])))

    return Pictures()


@pytest.fixture
def mask(lab: Lab, pictures: Task) -> str:
    """Digest of a mask of whole channels, half of them in each group."""
    return lab.store.put_mask(made_mask(pictures))


def made_mask(task: Task) -> tk.Mask:
    torch.manual_seed(0)
    return channels(task.build(), torch.randn(2, 1, 4, 4), 0.4, distribution="uniform")


def begun(lab: Lab, task: Task, recipe: Recipe, mask: str, shrunk: bool = True, last: int = 24) -> Segment:
    """From step 6 of the dense training, with the optimiser's state, to the end."""
    dense = lab.train(lab.segment(task, start=3, last=6, order_seed=4, recipe=recipe))
    start = Start(state=dense.model, optimizer=dense.training)
    return lab.segment(task, start=start, mask=mask, first=6, last=last, order_seed=4, recipe=recipe, shrunk=shrunk)


@pytest.mark.parametrize("recipe", sample([SGD, ADAM], 1, ids=["sgd", "adam"]))
def test_it_is_trained_as_with_the_mask(lab, pictures, mask, recipe):
    sizes = []
    step = Loop._train_step

    def watched(loop, *batch):
        sizes.append(sum(p.numel() for p in loop.model.parameters()))
        step(loop, *batch)

    segment = begun(lab, pictures, recipe, mask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_train_step", watched)
        small = lab.train(segment, keep=(15,))
    model = pictures.build()
    rebuilt = rebuild(model, shrink_plan(model, lab.store.get_mask(mask), torch.randn(2, 1, 4, 4)))
    assert sizes == [sum(p.numel() for p in rebuilt.parameters())] * 18, "the network in training is small"
    masked = lab.train(begun(lab, pictures, recipe, mask, shrunk=False), keep=(15,))
    kept = lab.store.get_mask(mask)
    buffers = {name for name, _ in pictures.build().named_buffers()}
    mine, theirs = lab.state(small), lab.state(masked)
    assert mine.keys() == theirs.keys()
    # A bias before a batch norm has no gradient but rounding, which Adam scales up to whole steps.
    rounding = buffers | ({"inner.bias"} if recipe is ADAM else set())
    for name, tensor in mine.items():
        assert tensor.shape == theirs[name].shape
        if name not in rounding:
            assert torch.allclose(tensor, theirs[name], atol=1e-5), name
        if name in kept:
            assert not tensor[~kept[name]].any()
            assert tensor[kept[name]].any()
    on_the_way = [lab.store.get_tensors(lab.at(each, 15).training) for each in (small, masked)]
    assert on_the_way[0].keys() == on_the_way[1].keys()
    assert all(torch.allclose(tensor, on_the_way[1][name], atol=1e-5) for name, tensor in on_the_way[0].items())
    assert small.metrics["validation"]["loss"] == pytest.approx(masked.metrics["validation"]["loss"], abs=1e-4)


def test_norm_statistics_of_removed_channels_stay_as_they_were(lab, pictures, mask):
    segment = begun(lab, pictures, SGD, mask)
    before, after = lab.store.get_tensors(segment.start.state), lab.state(lab.train(segment))
    gone = ~lab.store.get_mask(mask)["inner_norm.weight"]
    assert gone.any()
    for name in ("inner_norm.running_mean", "inner_norm.running_var"):
        assert torch.equal(after[name][gone], before[name][gone])
        assert not torch.equal(after[name][~gone], before[name][~gone])
    assert after["inner_norm.num_batches_tracked"] == 24


def test_interrupted_it_goes_on_bit_for_bit(lab, pictures, mask, tmp_path, monkeypatch, equal_bits):
    monkeypatch.setattr(job_module, "_TICK_SECONDS", 0.0)
    segment = begun(lab, pictures, ADAM, mask)
    straight = lab.train(segment, keep=(12,))
    store = Store(tmp_path / "other")
    for digest in (segment.start.state, segment.start.optimizer):
        store.put_tensors(lab.store.get_tensors(digest))
    store.put_mask(lab.store.get_mask(mask))
    for stop in (9, 17):
        with pytest.raises(InterruptedTrainingError):
            execute(store, None, segment, (12,), StopAt(at=stop, checkpoint_seconds=1e9))
    assert execute(store, None, segment, (12,), Watch()).steps == 24 - 17
    for step in (12, 24):
        mine, other = store.load_result(segment.trajectory, step), lab.store.load_result(segment.trajectory, step)
        assert {n: mine[n] for n in ("model", "training", "loss")} == {
            n: other[n] for n in ("model", "training", "loss")
        }
    assert store.load_result(segment.trajectory, 24)["metrics"] == straight.metrics


def test_the_plan_is_found_once(lab, pictures, mask, monkeypatch):
    counted = []
    monkeypatch.setattr(
        shrunk_module, "plan_for_structure", lambda *given: counted.append(given) or plan_for_structure(*given)
    )
    segment = begun(lab, pictures, SGD, mask)
    for seed in (4, 5):
        lab.train(replace(segment, order_seed=seed))
    assert len(counted) == 1
    from ticketry.lab.store.maintenance import check, collect_garbage

    assert check(lab.store).is_undamaged
    collect_garbage(lab.store, grace_seconds=0)
    lab.train(replace(segment, order_seed=6))
    assert len(counted) == 1


def test_a_module_that_decides_by_its_activations_is_left_alone(lab, pictures):
    class Signed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    class Deciding(type(pictures)):
        name = "deciding"

        def build(self) -> nn.Module:
            torch.manual_seed(0)
            return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), Signed(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))

    task = Deciding()
    reasons = {group.name: group.reason for group in lab.structure(task).groups}
    assert "2 is spared" in reasons["1"]
    assert not reasons["3"]
    chosen = channels(task.build(), torch.randn(2, 1, 4, 4), 0.8, spare=("2",))
    mask = lab.store.put_mask(chosen)
    assert not chosen["3.weight"].all()
    small, masked = (
        lab.train(lab.segment(task, start=3, mask=mask, order_seed=4, shrunk=shrunk)) for shrunk in (True, False)
    )
    for name, tensor in lab.state(small).items():
        assert torch.allclose(tensor, lab.state(masked)[name], atol=1e-5), name


def test_a_mask_of_single_weights_is_refused(lab, pictures):
    model = pictures.build()
    single = lab.store.put_mask(tk.prune(model, 0.5))
    with pytest.raises(MaskError, match="not channel-wise"):
        lab.train(lab.segment(pictures, start=3, mask=single, shrunk=True))


def test_initial_states_are_the_same(lab, pictures, mask, equal_bits):
    """At its first step a shrunk segment's state is the dense one times the mask."""
    segment = lab.segment(pictures, start=3, mask=mask, shrunk=True)
    start = lab.state(lab.train(segment.shortened_to(0)))
    kept, dense = dict(lab.store.get_mask(mask)), initial_state(pictures, 3)
    kept["again.weight"] = kept["tied.weight"]
    assert equal_bits(start, {n: t * kept[n] if n in kept else t for n, t in dense.items()})


def test_in_float64_it_is_the_masked_network_to_rounding(pictures):
    """The loop's own arithmetic is fp32; what it does, cut, train, expand, in float64."""
    torch.manual_seed(1)
    whole = Residual().double().train()
    x, y = torch.randn(16, 1, 4, 4, dtype=torch.float64), torch.randint(3, (16,))
    found = made_mask(pictures)
    found.apply_(whole)
    small = rebuild(whole, plan := shrink_plan(whole, found, x[:2]))
    for model in (whole, small):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        kept = tk.hold(model, found) if model is whole else None
        for _ in range(10):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        if kept:
            kept.release()
    for (name, one), two in zip(small.named_parameters(), whole.parameters(), strict=True):
        assert torch.allclose(plan.expand(name, one.detach(), torch.zeros_like(two)), two.detach(), atol=1e-12), name
        assert torch.equal(plan.cut(name, plan.expand(name, one.detach(), torch.randn_like(two))), one)
