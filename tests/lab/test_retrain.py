"""Ways of retraining, each in closed form."""

from __future__ import annotations

import pytest

from ticketry.core.prune import prune
from ticketry.errors import UsageError
from ticketry.lab.retrain import retraining
from ticketry.lab.training.optimizer import learning_rate
from ticketry.lab.training.segment import Start

T = 24

# (k, first, last, whose weights)
CASES = {
    "continue": [(0, 0, T, "rewound"), (7, 7, T, "rewound"), (T, T, T, "rewound")],
    "restart": [(0, 0, T, "rewound"), (7, 0, T, "rewound"), (T, 0, T, "rewound")],
    "rewind_lr": [(0, 0, T, "trained"), (7, 7, T, "trained"), (T, T, T, "trained")],
    "finetune": [(0, T, 2 * T, "trained"), (7, T, 2 * T - 7, "trained"), (T, T, 2 * T, "trained")],
    "none": [(0, T, T, "trained"), (7, T, T, "trained"), (T, T, T, "trained")],
}


@pytest.fixture
def networks(lab, points):
    """A dense network and, by step, the states on its way; a ticket's trained network."""
    dense = lab.train(lab.segment(points, start=0), keep=(0, 7, T))
    trained = lab.train(lab.segment(points, start=1))
    return {step: lab.at(dense, step) for step in (0, 7, T)}, trained


@pytest.mark.parametrize("retrain", CASES)
@pytest.mark.parametrize("index", range(3))
def test_steps_and_weights(lab, points, half, networks, retrain, index):
    kept, trained = networks
    step, first, last, whose = CASES[retrain][index]
    segment = retraining(
        lab, points, points.recipe, retrain=retrain, mask=half, rewound=kept[step], trained=trained, order_seed=9
    )
    assert (segment.first, segment.last, segment.total, segment.per_epoch) == (first, last, T, 7)
    assert segment.start == Start(state={"rewound": kept[step], "trained": trained}[whose].model)
    assert (segment.mask, segment.order_seed, segment.recipe) == (half, 9, points.recipe)
    assert lab.store.get_mask(segment.mask) == prune(points.build(), 0.5, score="random")


@pytest.mark.parametrize("retrain", CASES)
def test_each_can_be_trained(lab, points, half, networks, retrain):
    kept, trained = networks
    segment = retraining(
        lab, points, points.recipe, retrain=retrain, mask=half, rewound=kept[7], trained=trained, order_seed=9
    )
    before = lab.ledger.steps_trained
    result = lab.train(segment)
    assert lab.ledger.steps_trained - before == segment.last - segment.first
    assert set(result.metrics) == {"validation", "test"}


def test_fine_tuning_is_at_the_last_learning_rate(lab, points, half, networks):
    kept, trained = networks
    recipe = points.recipe.changed(schedule="cosine")
    segment = retraining(
        lab, points, recipe, retrain="finetune", mask=half, rewound=kept[7], trained=trained, order_seed=0
    )
    rates = {
        learning_rate(recipe, step, total=segment.total, per_epoch=segment.per_epoch)
        for step in range(segment.first, segment.last)
    }
    assert rates == {learning_rate(recipe, T - 1, total=T, per_epoch=7)}


def test_a_mask_may_be_given_as_such(lab, points, half, networks):
    kept, trained = networks
    mask = lab.store.get_mask(half)
    common = {"retrain": "continue", "rewound": kept[7], "trained": trained, "order_seed": 0}
    assert (
        retraining(lab, points, points.recipe, mask=mask, **common).key
        == retraining(lab, points, points.recipe, mask=half, **common).key
    )


def test_unknown_word(lab, points, half, networks):
    kept, trained = networks
    with pytest.raises(UsageError, match="'rewind' is not known: continue, restart, rewind_lr, finetune, none"):
        retraining(
            lab, points, points.recipe, retrain="rewind", mask=half, rewound=kept[7], trained=trained, order_seed=0
        )
