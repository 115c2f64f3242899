"""A budget below the floor says what makes the floor, and what lowers it."""

from __future__ import annotations

import pytest

from ticketry.core.costs.cost_model import CostModel, what_lowers
from ticketry.core.costs.curve import Curve
from ticketry.core.costs.layer_cost import LayerCost
from ticketry.errors import UsageError


def costs(parts: dict[str, float], unit: str = "seconds") -> CostModel:
    layer = LayerCost(100, 1.0, {"weights": Curve((0.0, 1.0), (0.2, 1.0))})
    return CostModel(unit, {"head.weight": layer}, sum(parts.values()), fixed_parts=parts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"attention": 0.5}, r"attention 500 ms.*what lowers it: fewer heads.*or shorter sequences, fewer layers"),
        ({"layer_norm": 0.5}, r"what lowers it: fewer channels or hidden units \(structure='channels'\), fewer layers"),
        ({"global_avg_pool": 0.1}, "what lowers it: fewer layers, smaller inputs"),
        (
            {"gelu": 0.4, "softmax": 0.6},
            "what lowers it: fewer heads.*, fewer channels or hidden units.*, fewer layers",
        ),
    ],
)
def test_a_budget_below_the_floor_says_what_lowers_it(parts: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=f"below the floor: .*{said}"):
        costs(parts).budget("1ms")


def test_bytes_have_no_operations() -> None:
    with pytest.raises(UsageError) as caught:
        costs({"attention": 50.0}, "bytes").budget("1B")
    assert "what lowers it" not in str(caught.value)


def test_names_of_empty_layers_are_no_operations() -> None:
    assert what_lowers(["encoder.attention.mul, empty", "unknown"]) == "fewer layers"
