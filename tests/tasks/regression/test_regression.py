"""Squared error on the original scale, against scikit-learn and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_squared_error, r2_score
from torch import nn

from ticketry.errors import TaskError
from ticketry.lab.training.precision import Arithmetic
from ticketry.lab.training.supervised import course_of, evaluate
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.regression import Regression, standardised
from ticketry.tasks.task import Splits

GENERATOR = np.random.default_rng(0)
INPUTS = GENERATOR.normal(size=(1300, 3)) * [1, 100, 0.01] + [5, -300, 0]
TARGET = 1000 + 40 * INPUTS[:, 0] + 0.3 * INPUTS[:, 1] + GENERATOR.normal(size=1300)
TRAIN, VALIDATION, TEST = (np.arange(a, b) for a, b in ((0, 600), (600, 700), (700, 1300)))


def splits(target: np.ndarray = TARGET, inputs: np.ndarray = INPUTS) -> Splits:
    return standardised(inputs, target, train=TRAIN, validation=VALIDATION, test=TEST, what="the table")


class Plain(Regression):
    name, recipe = "plain", Recipe()

    def build(self) -> nn.Module:
        return nn.Linear(3, 1)

    def load(self, data: Path | None = None) -> Splits:
        return splits()


def test_metrics_are_those_of_scikit_learn_on_the_original_scale() -> None:
    torch.manual_seed(0)
    model, test = nn.Linear(3, 1), splits().test
    found = evaluate(Plain(), course_of(Plain()), model, "test", Arithmetic())
    scale, centre = TARGET[TRAIN].std(), TARGET[TRAIN].mean()
    predicted = model(test.inputs).detach().double().numpy()[:, 0] * scale + centre
    assert found["rmse"] == pytest.approx(mean_squared_error(TARGET[TEST], predicted) ** 0.5, rel=1e-5)
    assert found["r2"] == pytest.approx(r2_score(TARGET[TEST], predicted), rel=1e-4)
    assert found["loss"] == pytest.approx((found["rmse"] / scale) ** 2, rel=1e-5)
    loss = Plain().loss(model(test.inputs), test.targets).detach()
    assert float(loss) == pytest.approx(found["loss"], rel=1e-5)


def test_rows_are_in_units_of_the_training_rows_alone() -> None:
    found = splits()
    assert torch.allclose(found.train.inputs.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(found.train.inputs.std(0, correction=0), torch.ones(3), atol=1e-5)
    expected = (INPUTS[TEST] - INPUTS[TRAIN].mean(0)) / INPUTS[TRAIN].std(0)
    assert np.allclose(found.test.inputs.numpy(), expected, atol=1e-5)
    moved = INPUTS.copy()
    moved[TEST] *= 7
    assert torch.equal(splits(inputs=moved).train.inputs, found.train.inputs)
    back = found.test.targets.double()
    assert np.allclose((back[:, 0] * back[:, 1]).numpy() + TARGET[TRAIN].mean(), TARGET[TEST], rtol=1e-5)


def test_a_column_that_is_constant_in_training_is_only_centred() -> None:
    inputs = INPUTS.copy()
    inputs[TRAIN, 1] = 0.1  # its computed deviation is 1.4e-17, not 0
    found = splits(inputs=inputs)
    assert not found.train.inputs[:, 1].any()
    assert np.allclose(found.test.inputs[:, 1].numpy(), inputs[TEST, 1] - 0.1, rtol=1e-5)


def test_a_constant_target_is_refused() -> None:
    target = TARGET.copy()
    target[TRAIN] = 0.1
    with pytest.raises(TaskError, match=r"the table: the target is 0\.1 in all 600 training rows"):
        splits(target)


@pytest.mark.parametrize(("error", "r2"), [(0.0, 1.0), (0.5, 0.0)])
def test_r2_of_equal_targets_is_that_of_scikit_learn(error: float, r2: float) -> None:
    wanted = torch.tensor([[0.3, 2.0]]).repeat(700, 1)
    task, outputs = Plain(), wanted[:, :1] + error
    sums = {name: float(value) for name, value in task.measure(outputs, wanted).items()}
    found = task.summary(sums, 700)
    assert found["r2"] == r2 == r2_score([3.0] * 700, [3.0 + error] * 700)
    assert found["rmse"] == pytest.approx(2 * error)


def test_there_are_no_classes_to_smooth_over() -> None:
    with pytest.raises(TaskError, match=r"no classes to smooth over: set recipe\.label_smoothing to 0"):
        Plain().loss(torch.zeros(2, 1), torch.zeros(2, 2), label_smoothing=0.1)
