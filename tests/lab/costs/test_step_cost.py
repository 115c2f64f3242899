"""What a step costs, against closed forms: layer sizes by hand, bytes by the tensors that must be there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ticketry.core.mask import Mask
from ticketry.core.prune import prune
from ticketry.core.score import names
from ticketry.lab.costs import step_cost as costs
from ticketry.lab.costs.ledger import training_phases_of
from ticketry.lab.costs.step_cost import Costs, scoring_flops, step_flops, step_memory
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Found
from ticketry.lab.training.segment import Segment
from ticketry.records.metric import Metric
from ticketry.search.gating.gating import Gating
from ticketry.tasks import catalogue
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Classification, Course, Session, Split, Splits, Task

LAYERS = {"fc1.weight": 64 * 300, "fc2.weight": 300 * 100, "fc3.weight": 100 * 10}
PASSES = {"fc1.weight": 2, "fc2.weight": 3, "fc3.weight": 3}
"""Forward, the weight's gradient, and the input's but for the first layer."""
PARAMETERS = 64 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10


def by_hand(batch: int, mask: Mask | None = None) -> float:
    kept = {row.name: row.kept / row.total for row in mask.table()} if mask else {}
    return sum(2 * batch * PASSES[name] * size * kept.get(name, 1) for name, size in LAYERS.items())


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("store"), device="cpu") as found:
        yield found


@pytest.fixture(scope="module")
def digits() -> Task:
    return catalogue.get("digits")


def segment(lab: Lab, task: Task, mask: Mask | None = None, **changes: Any) -> Segment:
    recipe = task.recipe.changed(length="20it", **changes)
    return lab.segment(task, start=0, mask=mask, recipe=recipe)


@pytest.mark.parametrize(("batch", "density"), [(7, 1.0), (64, 0.02)])
def test_flops_of_lenet(lab: Lab, digits: Task, batch: int, density: float) -> None:
    mask = prune(lab.model(digits), density)
    dense, flops = step_flops(lab, segment(lab, digits, mask, batch=batch))
    assert dense == by_hand(batch)
    assert flops == pytest.approx(by_hand(batch, mask))
    assert step_flops(lab, segment(lab, digits, batch=batch)) == (dense, dense)
    examples = lab.sizes(digits)["train"]  # a batch is no larger than the training set
    assert step_flops(lab, segment(lab, digits, batch=10 * examples))[0] == by_hand(examples)


class Pictures(Classification):
    """Colour noise of 6 x 6; a convolution, batch norm and a linear layer."""

    name = "pictures"
    recipe = Recipe(length="4it", batch=8)

    def key(self) -> dict[str, object]:
        return {"name": "pictures of test_costs"}

    def build(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 5, 3),
            nn.Flatten(),
            nn.Linear(80, 2),
        )

    def load(self, data: Path | None = None) -> Splits:
        split = Split(torch.randn(20, 3, 6, 6), torch.arange(20) % 2)
        return Splits(split, split, split)


def test_flops_of_convolutions(lab: Lab) -> None:
    task = Pictures()
    forward = {"0.weight": 36 * 4 * 27, "3.weight": 16 * 5 * 36, "5.weight": 80 * 2}
    model = lab.model(task)
    mask = prune(model, 0.4)
    kept = {row.name: row.kept / row.total for row in mask.table()}
    dense, flops = step_flops(lab, segment(lab, task, mask))
    passes = {"0.weight": 2, "3.weight": 3, "5.weight": 3}
    assert dense == sum(2 * 8 * passes[name] * size for name, size in forward.items())
    assert flops == pytest.approx(sum(2 * 8 * passes[name] * size * kept[name] for name, size in forward.items()))


class Draws(Course):
    """A step learns from five rows, whatever the batch."""

    def sizes(self) -> dict[str, int]:
        return {"train": 100, "validation": 5, "test": 5}

    def session(self, recipe: Recipe, seed: int, arithmetic: Any) -> Session:
        return FiveRows()


class FiveRows(Session):
    def loss(self, model: nn.Module, batch: int) -> torch.Tensor:
        outputs: torch.Tensor = model(torch.ones(5, 4))
        return outputs.sum()


class OfFive(Task):
    metric = Metric("reward", unit="", higher_is_better=True)
    name = "of five"
    recipe = Recipe(length="4it", batch=50)

    def key(self) -> dict[str, object]:
        return {"name": "of five of test_costs"}

    def build(self) -> nn.Module:
        return nn.Linear(4, 3)

    def course(self, data: Path | None = None) -> Course:
        return Draws()

    def example(self, count: int, data: Path | None = None) -> torch.Tensor:
        return torch.ones(count, 4)


def test_steps_of_a_course_of_ones_own_are_not_taken_to_go_by_the_batch(lab: Lab) -> None:
    named = catalogue.get(f"{__name__}:OfFive")
    for task, batch in (OfFive(), 50), (OfFive(), 10), (named, 50):
        assert step_flops(lab, segment(lab, task, batch=batch))[0] == 2 * 2 * 5 * 4 * 3  # forward and back


def gated(lab: Lab, task: Task, **settings: Any) -> Segment:
    return replace(segment(lab, task), variants=(Gating(scope=tuple(LAYERS), **settings),))


def test_gates_are_soft_so_that_a_step_takes_the_flops_of_a_dense_one(lab: Lab, digits: Task) -> None:
    batch = digits.recipe.batch
    assert step_flops(lab, gated(lab, digits)) == (by_hand(batch), by_hand(batch))
    # The outputs that it is compared with take a forward pass more.
    compared = by_hand(batch) + 2 * batch * sum(LAYERS.values())
    assert step_flops(lab, gated(lab, digits, frozen=True, objective="reverse_kl")) == (compared, compared)


def test_memory(lab: Lab, digits: Task) -> None:
    """With Adam: weights, gradients, two moments, and the activations of the batch; the mask as floats beside."""
    batch = digits.recipe.batch
    assert digits.recipe.optimizer == "adam"
    dense = step_memory(lab, segment(lab, digits))
    activations = 4 * batch * (64 + 300 + 300 + 100 + 100 + 10)
    assert 16 * PARAMETERS <= dense <= 16 * PARAMETERS + 2 * activations
    mask = prune(lab.model(digits), 0.5)
    masked = step_memory(lab, segment(lab, digits, mask))
    assert masked - dense == pytest.approx(4 * sum(LAYERS.values()), abs=64)
    plain = step_memory(lab, segment(lab, digits, optimizer="sgd", momentum=0.0, nesterov=False))
    assert dense - plain == pytest.approx(8 * PARAMETERS, abs=64)
    assert step_memory(lab, segment(lab, digits, batch=2 * batch)) > dense
    gates = step_memory(lab, gated(lab, digits))
    assert gates - dense > 3 * 4 * sum(LAYERS.values())  # the gates, their gradients, their momentum


def test_what_is_measured_is_remembered(lab: Lab, digits: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = prune(lab.model(digits), 0.25)
    told = step_flops(lab, segment(lab, digits, mask)), step_memory(lab, segment(lab, digits, mask))
    other = prune(lab.model(digits), 0.125)

    def fails(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(costs, "_build_loop", fails)
    assert (step_flops(lab, segment(lab, digits, mask)), step_memory(lab, segment(lab, digits, mask))) == told
    # Neither another mask, nor other seeds, nor another pace.
    again = replace(segment(lab, digits, other, lr=0.5, schedule="cosine"), order_seed=7, first=3)
    assert step_memory(lab, again) == told[1]
    assert step_flops(lab, again)[1] == pytest.approx(by_hand(digits.recipe.batch, other))


class OneByOne(Classification):
    """A network that takes one example at a time."""

    name = "one by one"
    recipe = Recipe(length="4it", batch=8)

    def load(self, data: Path | None = None) -> Splits:
        split = Split(torch.randn(20, 3, 6, 6), torch.arange(20) % 2)
        return Splits(split, split, split)

    def key(self) -> dict[str, object]:
        return {"name": "one by one"}

    def build(self) -> nn.Module:
        class Single(nn.Sequential):
            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                if len(inputs) != 1:
                    raise RuntimeError("one example, please")
                found: torch.Tensor = super().forward(inputs)
                return found

        return Single(nn.Flatten(), nn.Linear(108, 2))


def test_what_cannot_be_measured_has_no_number_and_why_is_told(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    task = OneByOne()
    trained = lab.train(segment(lab, task, batch=1), measure=False)
    found = Costs(lab)
    row = found.build_cost_entry(training_phases_of(Found(0, None, trained, trained, "continue", trained)))
    assert row["dense"]["flops"] is None
    assert row["dense"]["memory"] is not None  # a batch is one example
    assert (row["dense"]["steps"], row["sparse"]) == (20, {"steps": 0, "flops": 0.0, "seconds": 0.0, "memory": 0})
    assert len(found.failures) == 1
    assert "flops of a step" in found.failures[0]
    assert "one example, please" in found.failures[0]
    assert [record.getMessage() for record in caplog.records] == found.failures


@pytest.mark.parametrize("score", names())
def test_flops_of_scoring_follow_the_examples(lab: Lab, digits: Task, score: str) -> None:
    hundred, two = scoring_flops(lab, digits, score, 100), scoring_flops(lab, digits, score, 60, 40)
    if score in ("magnitude", "random"):
        assert hundred == two == 0
    elif score == "synflow":
        assert (hundred, two) == (by_hand(100), by_hand(60))  # of the first batch nothing but the shape counts
    elif score in ("snip", "taylor"):
        assert hundred == two == by_hand(100)  # one forward and one backward pass
    elif score == "kfac":  # gradients of what layers give, and none of weights
        assert hundred == two == by_hand(100) - 2 * 100 * sum(LAYERS.values())
    else:
        assert hundred == two == pytest.approx(scoring_flops(lab, digits, score, 200) / 2)
        assert hundred >= by_hand(100)
