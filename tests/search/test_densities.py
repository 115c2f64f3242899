"""Densities as people write them: one or several mean the same for every method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from ticketry.cli.search import read_arguments
from ticketry.errors import UsageError
from ticketry.experiments.request import build_request
from ticketry.search import METHODS, method

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


@pytest.mark.parametrize("method", SIDE_BY_SIDE + ONE)
def test_one_density_or_several(method: str) -> None:
    for written, density in WRITTEN:
        if method in SIDE_BY_SIDE or len(density) == 1:
            made = settings(method, density=written)
            assert made.density in (density, density[0])
            assert made == settings(method, density=density)
    for name, written in (("density", "10"), ("density", 10), ("sparsity", "a tenth")):
        with pytest.raises(UsageError, match="write it as 0.1" if name == "sparsity" else r"10 %\? write 10% or 0.1"):
            settings(method, **{name: written})


def test_sparsity_levels_and_budgets() -> None:
    assert settings("oneshot", sparsity="80%").targets == (0.2,)
    assert settings("iterative", densities="50%,20%").densities == (0.5, 0.2)
    assert settings("iterative", flops="25%").flops == (0.25,)
    assert settings("oneshot", flops=0.25).flops == (0.25,)


def test_names_and_numbers_of_gates_alone() -> None:
    assert settings("oneshot", spare="fc3").spare == ("fc3",)
    assert settings("oneshot", half_rate=["fc3.weight"]).half_rate == ("fc3.weight",)
    assert settings("continuous", init=0.1, penalty=1e-7).inits_and_penalties == ((0.1, 1e-7),)


def test_an_integer_is_the_same_run() -> None:
    (made,) = settings("oneshot", density=1).density
    assert repr(made) == "1.0"


FORMS = ["--density 0.2,0.1", "--density 0.2 0.1", "--density 20%,10%", "--density=0.1,0.2", "--sparsity 80%,0.9"]


@pytest.mark.parametrize(
    ("name", "words"), [*(("iterative", words) for words in FORMS), *((name, FORMS[0]) for name in METHODS.built_in)]
)
def test_every_method_takes_them_in_every_form(name: str, words: str) -> None:
    settings = read_arguments([name, *words.split()], command="search")[1].settings
    assert [one for one in settings.targets if one in (0.2, 0.1)] == [0.2, 0.1]


@pytest.mark.parametrize("name", ["iterative", "continuous", "stochastic"])
def test_one_is_stored_as_a_number_as_ever(name: str) -> None:
    kind = method(name).Settings
    for value in (0.1, "10%", (0.1,), [0.1], "0.1"):
        assert kind(density=value).density == 0.1
    for value in (None, (), []):
        assert kind(density=value).density is None
    assert kind(density="0.2,0.1").density == kind(density=[0.2, 0.1]).density == (0.2, 0.1)
    for wrong, said in (((0.2, 1.2), "density"), ((0.2, "20%"), "each share once"), ((True,), "is a number or a text")):
        with pytest.raises(UsageError, match=said):
            kind(density=wrong)
    with pytest.raises(UsageError, match=r"either density .* or sparsity"):
        kind(density=(0.2, 0.1), sparsity=0.5)


def test_iterative_levels_pass_through_each() -> None:
    """By hand: a fifth of the rest goes at each level, and at the densities requested the levels begin anew."""
    kind = method("iterative").Settings
    assert kind(density=(0.5, 0.3)).targets == (0.8, 0.64, 0.512, 0.5, 0.4, 0.32, 0.3)
    assert kind(density=(0.3, 0.5)).targets == kind(sparsity=(0.5, 0.7)).targets
    assert kind(density=(0.8, 0.64)).targets == (0.8, 0.64)
    assert kind(densities=(0.5, 0.3)).targets == (0.5, 0.3), "every level, and no others"
    for single in (0.5, 0.05, 0.0123):
        levels = kind(density=single).targets
        assert kind(density=(0.9, single)).targets[-1] == single
        assert list(levels[:-1]) == [float(f"{0.8**k:.12g}") for k in range(1, len(levels))]
    with pytest.raises(UsageError, match="is not reached in 200 levels"):
        kind(density=(0.5, 1e-9), rate=0.01)


OPTIONS: dict[str, Any] = {"replicates": 1, "controls": (), "recipe": {"length": "8it"}, "workers": 0}


def found(store: Path, name: str, **settings: Any) -> tk.Run:
    return tk.run(name, **settings, **OPTIONS, store=store)


def test_an_iterative_ticket_is_that_of_its_density_alone(tmp_path: Path) -> None:
    both = found(tmp_path, "iterative", density=(0.5, 0.4))
    alone = found(tmp_path, "iterative", density=0.5)
    assert alone.now["steps_trained"] == 0, "its levels are those of the search for both"
    assert [round(one.density, 2) for one in both.tickets] == [0.8, 0.64, 0.51, 0.5, 0.4]
    assert both.tickets[3].load().mask == alone.tickets[3].load().mask
    assert json.loads((both.path / "run.json").read_text())["settings"]["density"] == [0.5, 0.4]
    assert json.loads((alone.path / "run.json").read_text())["settings"]["density"] == 0.5
    request = build_request("iterative", "digits", method("iterative").Settings(density=(0.5, 0.4)))
    assert request.planned_densities[0.4] == 5


def test_gates_search_for_each_alone(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rounds": 1, "rewind": "0", "gate_lr": 30.0, "recipe": {"length": "24it"}}
    options = {**OPTIONS, **settings, "store": tmp_path}
    both = tk.run("continuous", density=(0.6, 0.4), **options)
    assert [one.level for one in both.tickets] == [1, 2]
    for mine, density in zip(both.tickets, (0.6, 0.4), strict=True):
        alone = tk.run("continuous", density=density, **options)
        assert alone.now["steps_trained"] == 0
        assert [mine.load().mask] == [one.load().mask for one in alone.tickets]
        assert mine.density == pytest.approx(density, rel=0.1)
    request = build_request("continuous", "digits", method("continuous").Settings(rounds=2, density=(0.6, 0.4)))
    assert request.planned_densities == {0.6: 2, 0.4: 4}
    assert len(request.tickets) == 4
