"""Replayed steps give the bits of steps that are computed one by one; on a machine with a GPU with real CUDA graphs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from ticketry.core.prune import prune
from ticketry.lab.lab import Lab
from ticketry.lab.training import loop, replays
from ticketry.lab.training.replays import MOST, WARM_UP, Replays, can_replay_steps
from ticketry.lab.training.supervised import SupervisedSession
from ticketry.lab.training.variant import Variant
from ticketry.lab.training.variants import HeldMask
from ticketry.tasks import catalogue
from ticketry.tasks.task import Task

HAS_GPU = torch.cuda.is_available()  # before a fixture hides it
on_a_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")


class Graphs:
    """What CUDA graphs do, as seen from outside: a replay computes with what lies where the call read, and writes to
    where it wrote. Nothing in Python runs at a replay but what computes numbers."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.parameters = model, list(model.parameters())
        self.recorded = self.replayed = 0

    def __call__(self, call: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
        buffers = {name: one.clone() for name, one in self.model.named_buffers()}
        with torch.random.fork_rng(devices=[]):
            made = call()
        for name, one in self.model.named_buffers():
            one.copy_(buffers[name])  # what is recorded is not computed, and nothing drawn
        written = [made.detach(), *(one.grad for one in self.parameters)]
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            again = call()
            for place, one in zip(written, [again.detach(), *(p.grad for p in self.parameters)], strict=True):
                place.copy_(one)

        return made, replay


@pytest.fixture
def with_graphs(monkeypatch):
    """Trainings replay steps from what stands for CUDA graphs; gives the ones of the last loop."""
    made = []

    def step_loss(self):
        made.append(Graphs(self.model))
        return Replays(self._parameters, self._compute_loss_and_gradients, made[-1])

    replaying = loop.cached_property(step_loss)
    replaying.__set_name__(loop.Loop, "_loss_function")
    monkeypatch.setattr(loop.Loop, "_loss_function", replaying)
    return made


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_the_same_bits_as_without_graphs(tmp_path, points, equal_bits, with_graphs, monkeypatch, masked):
    """Norms, dropout, smaller last batches (seven steps an epoch, of two shapes), Adam, clipping."""
    recipe = points.recipe.changed(length="40it", clip=0.5)
    mask = prune(points.build(), 0.4, score="random", seed=1) if masked else None
    found = []
    for graphs in (True, False):
        if not graphs:
            monkeypatch.undo()
        with Lab(tmp_path / str(graphs)) as lab:
            result = lab.train(lab.segment(points, start=1, recipe=recipe, mask=mask, last=39))
            found.append(lab.state(result) | lab.store.get_tensors(result.training))
    assert equal_bits(*found)
    (graphs,) = with_graphs
    # Of 39 steps six batches an epoch are of 32 examples, and every seventh of 8: 34 and 5.
    assert (graphs.recorded, graphs.replayed) == (2, 34 - WARM_UP + 5 - WARM_UP)


def batch(count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(count)), torch.zeros(count, dtype=torch.long)


def differentiated_of(model: nn.Module) -> Callable[[tuple[Tensor, Tensor]], Tensor]:
    def differentiated(batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        model.zero_grad(set_to_none=True)
        loss.backward()
        return loss

    return differentiated


def test_a_call_that_cannot_be_recorded_is_told_once_and_computed():
    model = nn.Linear(3, 2)
    asked = []

    def refuse(call: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
        asked.append(call)
        raise RuntimeError("operation not permitted when stream is capturing\nlong story")

    steps = Replays(list(model.parameters()), differentiated_of(model), refuse)
    wanted = differentiated_of(model)(batch(4))
    for _ in range(WARM_UP):
        assert torch.equal(steps(batch(4)), wanted)
    with pytest.warns(UserWarning, match="cannot be recorded as a CUDA graph .operation not permitted when stream"):
        assert torch.equal(steps(batch(4)), wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(WARM_UP + 2):
            assert torch.equal(steps(batch(5)), differentiated_of(model)(batch(5)))
    assert len(asked) == 1


def test_gradients_are_those_of_the_batch_whatever_shape_came_before():
    model = nn.Linear(3, 2)
    graphs = Graphs(model)
    steps = Replays(graphs.parameters, differentiated_of(model), graphs)
    for count in [4, 4, 4, 4, 5, 4, 5, 5, 5, 5, 4, 5, 4, 4]:
        loss = steps(batch(count)).clone()
        found = [parameter.grad.clone() for parameter in graphs.parameters]
        with torch.no_grad():
            model.weight.grad.mul_(0)  # as a mask does
        wanted = differentiated_of(model)(batch(count))
        assert torch.equal(loss, wanted)
        assert all(torch.equal(one, parameter.grad) for one, parameter in zip(found, graphs.parameters, strict=True))
    assert graphs.recorded == 2


def test_batches_of_many_shapes_do_not_fill_the_memory():
    model = nn.Linear(3, 2)
    graphs = Graphs(model)
    steps = Replays(graphs.parameters, differentiated_of(model), graphs)
    for count in range(1, MOST + 4):
        for _ in range(WARM_UP + 2):
            assert torch.equal(steps(batch(count)), differentiated_of(model)(batch(count)))
    assert graphs.recorded == MOST


class Counting(nn.Linear):
    """A layer of somebody's own, which may do anything."""


def session_of(lab: Lab, task: Task) -> SupervisedSession:
    segment = lab.segment(task, start=0)
    return SupervisedSession(task, task.load().train, segment.recipe, 0, segment.arithmetic)


@dataclass(frozen=True, kw_only=True)
class Annealed(Variant):
    """One that may do something else at every step."""

    name = "annealed"


def test_only_steps_of_known_code_are_alike(lab, digits, half):
    session, model = session_of(lab, digits), digits.build()
    assert can_replay_steps(digits, session, model, (HeldMask(mask=half),))
    assert not can_replay_steps(digits, session, model, (Annealed(),))
    carrying = type("Carrying", (SupervisedSession,), {})
    segment = lab.segment(digits, start=0)
    other = carrying(digits, digits.load().train, segment.recipe, 0, segment.arithmetic)
    assert not can_replay_steps(digits, other, model, ())
    assert not can_replay_steps(digits, session, nn.Sequential(model, Counting(10, 10)), ())
    handle = model.register_forward_hook(lambda *given: None)
    assert not can_replay_steps(digits, session, model, ())
    handle.remove()
    assert can_replay_steps(digits, session, model, ())


def test_a_task_of_somebodys_own_says_it_of_itself(lab, points, points_class):
    session = session_of(lab, points)
    assert not can_replay_steps(points, session, points.build(), ())

    class Claimed(points_class):
        replayable = True

    class Derived(Claimed):
        pass

    assert can_replay_steps(Claimed(), session, nn.Sequential(Counting(2, 2)), ())
    assert not can_replay_steps(Derived(), session, points.build(), ())


NETWORKS = {
    "digits": {},
    "cifar10": {"model": "vgg-16@0.25"},
    "cifar10, ResNet": {"model": "resnet-20@0.5"},
    "fashion-mnist": {"model": "lenet-5"},
}


@on_a_gpu
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("name", NETWORKS)
def test_cuda_graphs_give_the_same_bits(tmp_path, monkeypatch, equal_bits, name, masked):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    task = catalogue.get(name.partition(",")[0], **NETWORKS[name])
    mask = prune(task.build(), 0.3, score="random") if masked else None
    found, graphs = [], []
    record = replays.CudaGraphs.__call__
    monkeypatch.setattr(replays.CudaGraphs, "__call__", lambda self, call: graphs.append(call) or record(self, call))
    for warm_up in (WARM_UP, 10**9):
        monkeypatch.setattr(replays, "WARM_UP", warm_up)
        with Lab(tmp_path / str(warm_up), device="cuda") as lab:
            recipe = task.recipe.changed(length="30it", batch=64)
            result = lab.train(lab.segment(task, start=0, recipe=recipe, mask=mask))
            found.append(lab.state(result))
    assert len(graphs) == 1
    assert equal_bits(*found)
