"""Ways of retraining, each in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lab_fixtures import PointsTask
from ticketry.core.prune import prune
from ticketry.errors import UsageError
from ticketry.lab.lab import Lab
from ticketry.lab.retrain import retraining
from ticketry.lab.training.segment import Segment, Start
from ticketry.lab.training.state import learning_rate

T = 24
POINTS = PointsTask()
# (k, first, last, whose weights)
CASES = {
    "continue": [(0, 0, T, "rewound"), (7, 7, T, "rewound"), (T, T, T, "rewound")],
    "restart": [(0, 0, T, "rewound"), (7, 0, T, "rewound"), (T, 0, T, "rewound")],
    "rewind_lr": [(0, 0, T, "trained"), (7, 7, T, "trained"), (T, T, T, "trained")],
    "finetune": [(0, T, 2 * T, "trained"), (7, T, 2 * T - 7, "trained"), (T, T, 2 * T, "trained")],
    "none": [(0, T, T, "trained"), (7, T, T, "trained"), (T, T, T, "trained")],
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("retrain") / "store", device="cpu") as found:
        yield found


@pytest.fixture(scope="module")
def networks(lab: Lab) -> dict[str, Any]:
    """The states of a dense network by step, another trained network, and a mask."""
    dense = lab.train(lab.segment(POINTS, start=0), keep=(0, 7, T))
    return {
        "rewound": {step: lab.at(dense, step) for step in (0, 7, T)},
        "trained": lab.train(lab.segment(POINTS, start=1)),
        "mask": prune(POINTS.build(), 0.5, score="random"),
    }


def described(lab: Lab, networks: dict[str, Any], retrain: str, step: int = 7, **more: Any) -> Segment:
    known = {"recipe": POINTS.recipe, "mask": networks["mask"], "trained": networks["trained"], "order_seed": 9}
    return retraining(lab, POINTS, retrain=retrain, rewound=networks["rewound"][step], **{**known, **more})


@pytest.mark.parametrize("retrain", CASES)
def test_steps_and_weights(lab: Lab, networks: dict[str, Any], retrain: str) -> None:
    for step, first, last, whose in CASES[retrain]:
        segment = described(lab, networks, retrain, step)
        assert (segment.first, segment.last, segment.total, segment.per_epoch) == (first, last, T, 7)
        start = networks["trained"] if whose == "trained" else networks["rewound"][step]
        assert segment.start == Start(state=start.model)
        assert (segment.order_seed, segment.recipe) == (9, POINTS.recipe)
        assert lab.store.get_mask(segment.mask) == networks["mask"]
        assert described(lab, networks, retrain, step, mask=segment.mask).key == segment.key
    segment = described(lab, networks, retrain)
    before = lab.ledger.steps_trained
    assert set(lab.train(segment).metrics) == {"validation", "test"}
    assert lab.ledger.steps_trained - before == segment.last - segment.first


def test_fine_tuning_is_at_the_last_learning_rate(lab: Lab, networks: dict[str, Any]) -> None:
    recipe = POINTS.recipe.changed(schedule="cosine")
    segment = described(lab, networks, "finetune", recipe=recipe)
    steps = range(segment.first, segment.last)
    rates = {learning_rate(recipe, step, total=segment.total, per_epoch=segment.per_epoch) for step in steps}
    assert rates == {learning_rate(recipe, T - 1, total=T, per_epoch=7)}


def test_unknown_way(lab: Lab, networks: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="'rewind' is not known: continue, restart, rewind_lr, finetune, none"):
        described(lab, networks, "rewind")
