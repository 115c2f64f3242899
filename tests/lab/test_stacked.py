"""Networks trained in a stack are those trained alone, within float error; what cannot be stacked is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.core.mask import Mask
from ticketry.core.prune import prune
from ticketry.errors import TaskError, UsageError
from ticketry.lab.gating import Gating
from ticketry.lab.lab import Lab, Result
from ticketry.lab.loop import initial_state
from ticketry.lab.precision import Arithmetic
from ticketry.lab.segment import Segment, Start
from ticketry.lab.stacked_model import Layout
from ticketry.tasks import registry
from ticketry.tasks.base import Split, Splits, Task
from ticketry.tasks.classification import Classification
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.vision import ImageClassification

SGD = Recipe(length="6it", batch=32, optimizer="sgd", lr=0.05, momentum=0.9, weight_decay=0.02)
ADAM = Recipe(length="6it", batch=32, optimizer="adam", lr=1e-3)


class Noise(ImageClassification):
    """Images of noise of any size."""

    def load(self, data: Path | None = None) -> Splits:
        return Splits(*(_noise(self.shape, count, seed) for seed, count in enumerate((150, 40, 40))))


def _noise(shape: tuple[int, ...], count: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 10, (count,), generator=generator))


def noise(model: str, size: int) -> Task:
    shape, mean = (3, size, size), (0.5, 0.5, 0.5)
    return Noise(name="noise", model=model, shape=shape, classes=10, largest=255.0, mean=mean, std=mean, recipe=SGD)


def segments(lab: Lab, task: Task, recipe: Recipe, *, masked: bool = True, count: int = 4) -> list[Segment]:
    """Members with other weights and orders; the first is dense, the second shares its weights with the third."""
    made = []
    for index in range(count):
        mask = prune(task.build(), 0.2 * index, score="random", seed=index) if masked and index else None
        made.append(lab.segment(task, start=min(index, 2), mask=mask, order_seed=10 + index, recipe=recipe))
    return made


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Of two states, relative to the norm of the second."""
    assert one.keys() == other.keys()
    assert all(one[name].shape == other[name].shape and one[name].dtype == other[name].dtype for name in other)
    flat = [torch.cat([state[name].double().flatten() for name in other]) for state in (one, other)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


CASES = {
    "digits, SGD": ("digits", SGD),
    "digits, Nesterov": ("digits", SGD.changed(nesterov=True)),
    "digits, plain SGD": ("digits", SGD.changed(momentum=0.0)),
    "digits, Adam": ("digits", ADAM),
    "digits, Adam with decay": ("digits", ADAM.changed(weight_decay=1e-2)),
    "digits, AdamW": ("digits", ADAM.changed(optimizer="adamw", weight_decay=0.1)),
    "clipped": ("digits", SGD.changed(clip=0.5)),
    "smoothed, scheduled": ("digits", SGD.changed(label_smoothing=0.1, schedule="cosine", warmup="3it")),
    "lenet-5": (noise("lenet-5", 16), SGD.changed(lr=0.01)),
    "batch norm": (noise("resnet-20-8", 8), SGD.changed(augment=("flip", "crop"), lr=0.002)),
    "batch norm, Adam": (noise("resnet-20-8", 8), ADAM.changed(augment=("crop",))),
    "vgg": (noise("vgg-11@0.0625", 32), SGD.changed(lr=0.01)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stack_trains_what_training_alone_does(tmp_path, case):
    """Weights, buffers and optimiser state, on the way and at the end, over an epoch's short last batch.

    Float errors grow from step to step (a unit that is just off in one is just on in the other), so the bound is a
    hundredth of the way that training goes; a wrong batch, mask, decay or momentum is a large part of it.
    """
    named, recipe = CASES[case]
    task = registry.get(named) if isinstance(named, str) else named
    with Lab(tmp_path / "store", precision="fp32") as lab, Lab(tmp_path / "store", precision="fp32", stack=8) as other:
        alone = lab.train_many(wanted := segments(lab, task, recipe), keep=(1, 5))
        stacked = other.train_many(segments(other, task, recipe), keep=(1, 5))
        assert len({result.segment.key for result in (*alone, *stacked)}) == 8
        for segment, one, many in zip(wanted, alone, stacked, strict=True):
            assert many.record["stack"] == {"members": 4}
            begin = start_of(lab, segment)
            for step in (1, 5, segment.last):
                states = [lab.state(lab.at(result, step)) for result in (one, many)]
                assert distance(states[1], states[0]) < 0.01 * distance(begin, states[0])
            kept = [lab.store.get_tensors(str(lab.at(result, 5).training)) for result in (one, many)]
            assert distance(kept[1], kept[0]) < 0.05
            assert losses(many) == pytest.approx(losses(one), rel=0.01)
            for split, metrics in many.metrics.items():
                assert metrics["loss"] == pytest.approx(one.metrics[split]["loss"], rel=0.01)
            if segment.mask:
                mask = lab.store.get_mask(segment.mask)
                assert all(bool((states[1][name][~kept] == 0).all()) for name, kept in mask.items())
    assert distance(lab.state(stacked[1]), lab.state(stacked[2])) > 0.01  # the members are not one network


def start_of(lab: Lab, segment: Segment) -> dict[str, Tensor]:
    state = initial_state(segment.task, int(segment.start.seed or 0))
    for name, kept in lab.store.get_mask(segment.mask).items() if segment.mask else ():
        state[name] = state[name] * kept
    return state


def losses(result: Result) -> list[float]:
    steps, values = zip(*result.record["loss"], strict=True)
    assert list(steps) == list(range(1, result.segment.last + 1))
    return list(values)


def test_in_bf16(tmp_path):
    """Within the error of bf16: no further from each other than each is from fp32."""
    task, recipe = noise("resnet-20-8", 8), SGD.changed(length="2it", lr=0.01)
    found = {}
    for name, precision, stack in (("alone", "bf16", 0), ("stacked", "bf16", 4), ("exact", "fp32", 0)):
        with Lab(tmp_path / name, precision=precision, stack=stack) as lab:
            found[name] = [lab.state(result) for result in lab.train_many(segments(lab, task, recipe))]
    for one, many, exact in zip(found["alone"], found["stacked"], found["exact"], strict=True):
        assert distance(many, one) < 2 * distance(one, exact) < 0.1


def test_a_stack_of_one(tmp_path, digits):
    with Lab(tmp_path / "store") as lab, Lab(tmp_path / "store", stack=1) as other:
        (one,), (many,) = (segments(each, digits, ADAM, count=1) for each in (lab, other))
        assert distance(lab.state(other.train(many)), lab.state(lab.train(one))) < 1e-4


def test_members_that_go_on_from_stored_states(tmp_path, digits):
    """From a state with an optimiser's, as a longer segment does; some afresh from a state alone."""
    with Lab(tmp_path / "store") as lab, Lab(tmp_path / "store", stack=8) as other:
        first = lab.train_many(segments(lab, digits, ADAM, masked=False, count=3), keep=(4,))
        rewound = [lab.at(result, 4) for result in first]
        starts = [Start(state=point.model, optimizer=point.training) for point in rewound]
        starts += [Start(state=point.model) for point in rewound]

        def asked(each: Lab) -> list[Segment]:
            make = partial(each.segment, digits, first=4, recipe=ADAM)
            return [make(start=start, order_seed=index) for index, start in enumerate(starts)]

        alone, many = (each.train_many(asked(each)) for each in (lab, other))
        assert [result.record["stack"]["members"] for result in many] == [3] * 6
        for one, stacked in zip(alone, many, strict=True):
            assert distance(lab.state(stacked), lab.state(one)) < 1e-4


def test_a_tied_weight_is_one_in_a_stack_too(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))

    assert Layout.of(Tied()).turned == {"first.weight", "second.weight", "last.weight"}
    check(tmp_path, Tied)


def test_frozen_weights_and_scalars(tmp_path):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale = nn.Linear(2, 2), nn.Parameter(torch.tensor(1.5))
            self.inner.bias.requires_grad_(False)
            self.register_buffer("offset", torch.randn(2))
            self.register_buffer("ones", torch.ones(2), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x + self.offset) * self.scale * self.ones

    check(tmp_path, Scaled)


def check(folder: Path, network: type[nn.Module]) -> None:
    """The network gives the same in a stack and alone."""
    task = points_with(network)
    with Lab(folder / "store") as lab, Lab(folder / "store", stack=8) as other:
        alone, many = (each.train_many(segments(each, task, SGD, masked=False)) for each in (lab, other))
        for one, stacked in zip(alone, many, strict=True):
            assert distance(lab.state(stacked), lab.state(one)) < 1e-4


# -- what cannot be stacked --------------------------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("unsaved", torch.zeros(2), persistent=False)


class Drops(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.linear(x), 0.5, training=self.training)


class Asks(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.mean() > 0 else -self.linear(x)


class Replaces(Layer):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + x.detach().mean(0)
        return self.linear(x) + 0 * self.seen


class WritesUnsaved(Layer):
    def forward(self, x: Tensor) -> Tensor:
        self.unsaved.add_(x.detach().mean(0))
        return self.linear(x)


class Detaches(torch.autograd.Function):
    """Says that it can be batched, and is wrong about its gradient."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None: ...

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def vmap(info, in_dims, x: Tensor) -> tuple[Tensor, int]:
        return 1.0 * x + 0.5 * (x - x.detach()), in_dims[0]


class Misleads(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return Detaches.apply(self.linear(x))


def points_with(network: type[nn.Module]) -> Task:
    class Points(Classification):
        name = "points"
        recipe = SGD

        def key(self) -> Mapping[str, object]:
            return {"name": "points", "network": network.__qualname__}

        def build(self) -> nn.Module:
            return network()

        def load(self, data: Path | None = None) -> Splits:
            return Splits(_points(100, 0), _points(20, 1), _points(20, 2))

    return Points()


def _points(count: int, seed: int) -> Split:
    places = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    return Split(places, (places.sum(1) > 0).long())


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (Drops, r"draws random numbers while it trains \(dropout\)"),
        (Asks, r"depends on the numbers it computes"),
        (Replaces, r"its buffer 'seen' is another one there than alone"),
        (WritesUnsaved, r"torch says: .*shape"),
        (Misleads, r"its gradient is another one there than alone"),
    ],
)
def test_what_cannot_be_stacked_is_refused(tmp_path, network, why):
    with Lab(tmp_path / "store", stack=4) as lab:
        asked = segments(lab, points_with(network), SGD, masked=False)
        with pytest.raises(TaskError, match=rf"cannot be trained in a stack: .*{why}.*Leave --stack away"):
            lab.train_many(asked)
        assert not any(lab.store.stored_steps(segment.trajectory) for segment in asked)
    with Lab(tmp_path / "store") as lab:  # as the message says
        assert lab.train_many(segments(lab, points_with(network), SGD, masked=False))


def test_streamed_examples_are_refused(tmp_path, digits, monkeypatch):
    splits = digits.load()
    reader = type("Reader", (), {"augmentations": (), "workers": 0, "batch": 10})()
    streamed = replace(splits, train=replace(splits.train, reader=reader))
    monkeypatch.setattr(type(digits), "load", lambda *_: streamed)
    with Lab(tmp_path / "store", stack=2) as lab, pytest.raises(TaskError, match="read from disk while it trains"):
        lab.train_many(segments(lab, digits, SGD, masked=False, count=2))


def test_gates_are_refused(lab, digits):
    stacked = replace(lab.arithmetic(digits), stacked=True)
    plain = lab.segment(digits, start=0, gates=Gating(scope=("fc1.weight",)))
    with pytest.raises(UsageError, match=r"networks with gates are trained one by one.*stack=0"):
        replace(plain, arithmetic=stacked)


def test_a_layout_of_its_own():
    with pytest.raises(UsageError, match="not in channels_last"):
        Arithmetic(channels_last=True, stacked=True)


def test_masks_of_several_members_keep_what_they_do_not_name(tmp_path, digits):
    """One names only the first layer, the other only the last."""
    shapes = {name: tuple(p.shape) for name, p in digits.build().named_parameters()}
    masks = [Mask({name: torch.rand(shapes[name]) > 0.5}) for name in ("fc1.weight", "fc3.weight")]
    with Lab(tmp_path / "store") as lab, Lab(tmp_path / "store", stack=2) as other:
        alone, many = (
            each.train_many([each.segment(digits, start=0, mask=mask, recipe=SGD) for mask in masks])
            for each in (lab, other)
        )
        for one, stacked, mask in zip(alone, many, masks, strict=True):
            assert distance(lab.state(stacked), lab.state(one)) < 1e-4
            for name, value in lab.state(stacked).items():
                if name.endswith("weight"):
                    assert torch.equal(value != 0, mask[name]) if name in mask else bool((value != 0).any())
