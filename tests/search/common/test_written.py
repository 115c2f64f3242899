"""Settings made in Python take what people write: a number, a text such as 20%, or several of either."""

from __future__ import annotations

from typing import Any

import pytest

import ticketry as tk
from ticketry.errors import UsageError

SIDE_BY_SIDE = ("acdc", "concrete", "dynamic", "early", "gradual", "l0", "oneshot", "regularised")
ONE = ("continuous", "decorators", "iterative", "stochastic")
WRITTEN: list[tuple[Any, tuple[float, ...]]] = [
    (0.2, (0.2,)),
    ("20%", (0.2,)),
    ("0.2", (0.2,)),
    (("50%", 0.2), (0.5, 0.2)),
    ([0.5, "20%"], (0.5, 0.2)),
    ("50%,20%", (0.5, 0.2)),
    (("64.3%",), (0.643,)),
]


def settings(method: str, **given: Any) -> Any:
    return tk.search.method(method).Settings(**given)


@pytest.mark.parametrize("method", SIDE_BY_SIDE)
@pytest.mark.parametrize(("written", "density"), WRITTEN)
def test_densities_side_by_side(method: str, written: Any, density: tuple[float, ...]) -> None:
    made = settings(method, density=written)
    assert made.density == density
    assert made == settings(method, density=density)


@pytest.mark.parametrize("method", ONE)
@pytest.mark.parametrize("written", [0.2, "20%", "0.2"])
def test_one_density(method: str, written: Any) -> None:
    density = settings(method, density=written).density
    assert density == (0.2 if isinstance(density, float) else (0.2,))


@pytest.mark.parametrize("method", SIDE_BY_SIDE + ONE)
@pytest.mark.parametrize(("name", "written"), [("density", "10"), ("density", 10), ("sparsity", "a tenth")])
def test_no_share(method: str, name: str, written: Any) -> None:
    with pytest.raises(UsageError, match="write it as 0.1" if name == "sparsity" else r"10 %\? write 10% or 0.1"):
        settings(method, **{name: written})


def test_one_or_several() -> None:
    assert settings("iterative", density="20%").density == settings("iterative", density=("20%",)).density == 0.2
    assert settings("iterative", density=(0.5, "20%")).density == settings("iterative", density="50%,20%").density
    assert settings("iterative", density=[0.5, 0.2]).density == (0.5, 0.2)


def test_sparsity_levels_and_budgets() -> None:
    assert settings("oneshot", sparsity="80%").targets == (0.2,)
    assert settings("iterative", densities="50%,20%").densities == (0.5, 0.2)
    assert settings("iterative", flops="25%").flops == (0.25,)
    assert settings("oneshot", flops=0.25).flops == (0.25,)


def test_names_and_numbers_of_gates_alone() -> None:
    assert settings("oneshot", spare="fc3").spare == ("fc3",)
    assert settings("oneshot", half_rate=["fc3.weight"]).half_rate == ("fc3.weight",)
    assert settings("continuous", init=0.1, penalty=1e-7).members == ((0.1, 1e-7),)


def test_an_integer_is_the_same_run() -> None:
    (made,) = settings("oneshot", density=1).density
    assert repr(made) == "1.0"
