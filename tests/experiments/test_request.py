"""A run's name stands for all that decides its numbers, and its file repeats it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ticketry.errors import UsageError
from ticketry.experiments.decoding import decode_settings
from ticketry.experiments.request import SearchRequest, build_request, level_for_density
from ticketry.experiments.run_file import format_run_file, read_run_file
from ticketry.lab.search_result import Seeds
from ticketry.search import method
from ticketry.tasks import catalogue
from ticketry.tasks.recipe import Optimizer, Recipe, recipe_from_dict

ITERATIVE = method("iterative")
DIGITS = catalogue.get("digits")


def a_run(**changes: Any) -> SearchRequest:
    return replace(SearchRequest(ITERATIVE, DIGITS, ITERATIVE.Settings(), DIGITS.recipe), **changes)


def from_tables(tables: dict[str, Any]) -> SearchRequest:
    """The run that a run file describes, put together by hand."""
    chosen = method(tables["method"])
    settings = {name: tuple(v) if isinstance(v, list) else v for name, v in tables.get("settings", {}).items()}
    return SearchRequest(
        method=chosen,
        task=catalogue.get(tables["task"], model=tables.get("model"), options=tables.get("options")),
        settings=chosen.Settings(**settings),
        recipe=recipe_from_dict(tables["recipe"]),
        replicates=tables["replicates"],
        seeds=Seeds(**tables["seeds"]),
        controls=tuple(tables["controls"]),
        control_densities=tuple(tables.get("control_densities", ())),
    )


def written_and_read(run: SearchRequest, folder: Path) -> SearchRequest:
    path = folder / "run.toml"
    path.write_text(format_run_file(run.describe(), run.task.spec), encoding="utf-8")
    return from_tables(read_run_file(path))


CHANGES = {
    "task": {"task": catalogue.get("mnist")},
    "model": {"task": catalogue.get("digits", model="conv-4-16")},
    "recipe": {"recipe": DIGITS.recipe.changed(lr=0.0013)},
    "replicates": {"replicates": 4},
    "initialisation": {"seeds": Seeds(initialisation=1)},
    "order": {"seeds": Seeds(order=1)},
    "mask": {"seeds": Seeds(mask=1)},
    "controls": {"controls": ("shuffled",)},
    "control densities": {"controls": ("shuffled",), "control_densities": (0.8,)},
    "other controls": {"controls": ("random_prune", "shuffled")},
    "rewind": {"settings": ITERATIVE.Settings(rewind="3%")},
    "levels": {"settings": ITERATIVE.Settings(levels=3)},
    "densities": {"settings": ITERATIVE.Settings(densities=(0.5, 0.2))},
    "others": {"settings": ITERATIVE.Settings(spare=("a", "b"), half_rate=("c",), retrain="restart")},
}


def test_a_name_is_stable():
    """Pinned: `ticketry list runs` and the report find runs by it."""
    task = catalogue.get("fashion-mnist")
    recipe = Recipe(length="10ep", batch=60, optimizer="adam", lr=0.0012)
    run = SearchRequest(ITERATIVE, task, ITERATIVE.Settings(levels=3), recipe, replicates=2, controls=("shuffled",))
    assert run.name == "iterative-fashion-mnist-67bb5d35"
    assert run.name == replace(run).name


def test_a_name_can_be_a_folder():
    class Odd:
        name = "../my task: 2ü"

        def key(self) -> dict[str, str]:
            return {"name": self.name}

    assert re.fullmatch(r"iterative-my-task--2ü-[0-9a-f]{8}", a_run(task=Odd()).name)


def test_what_cannot_be_searched_for_is_refused() -> None:
    with pytest.raises(UsageError, match="placebo"):
        a_run(controls=("placebo",))
    for search in (a_run, lambda replicates: ITERATIVE(None, DIGITS, replicates=replicates)):  # before there is a lab
        with pytest.raises(UsageError, match=r"replicates must be a whole number from 1 to .*, got 0"):
            search(replicates=0)


def test_controls_beside_some_tickets_only():
    run = a_run(controls=("shuffled", "random_prune"), control_densities=(0.64, 0.41))
    assert run.controls_for(2, 0.64) == ("shuffled", "random_prune")
    assert run.controls_for(4, 0.4096) == ("shuffled", "random_prune"), "0.41 is within 2 %"
    assert run.controls_for(3, 0.512) == ()
    assert run.controls_for(2, 0.31) == ("shuffled", "random_prune"), "a structure made it sparser than planned"
    assert a_run(controls=("shuffled",)).controls_for(3, 0.512) == ("shuffled",)
    counted = [sum(map(one.count_controls, one.tickets)) for one in (run, a_run(controls=("shuffled",)))]
    assert counted == [4, 10]
    with pytest.raises(UsageError, match=r"no tickets of density 0.3: it has 0.8, 0.64"):
        a_run(controls=("shuffled",), control_densities=(0.3,))
    with pytest.raises(UsageError, match="control_densities needs controls"):
        a_run(control_densities=(0.8,))
    with pytest.raises(UsageError, match=r"0 < density <= 1, not 64.0: 64 %\? write 64% or 0.64"):
        a_run(controls=("shuffled",), control_densities=(64.0,))


def test_the_level_of_a_density_is_the_nearest_one():
    settings = ITERATIVE.Settings(densities=(0.102, 0.1005, 0.1))
    assert a_run(settings=settings).planned_densities == {0.102: 1, 0.1005: 2, 0.1: 3}
    levels = [level_for_density(asked, {0.102: 1, 0.1005: 2, 0.1: 3}, "the search") for asked in (0.1, 0.1004, 0.103)]
    assert levels == [3, 2, 1]
    run = a_run(settings=settings, controls=("shuffled",), control_densities=(0.1,))
    assert [run.controls_for(level, 0.1) for level in (1, 2, 3)] == [(), (), ("shuffled",)]
    gates = method("continuous")  # only the last of its rounds has a planned density, whatever the earlier ones have
    chosen: dict[str, Any] = {"controls": ("shuffled",), "control_densities": (0.1,)}
    run = SearchRequest(gates, DIGITS, gates.Settings(density=0.1), DIGITS.recipe, **chosen)
    assert [run.controls_for(level, density) for level, density in ((5, 0.107), (1, 0.1001))] == [("shuffled",), ()]


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_file_repeats_the_run(tmp_path, change):
    run = a_run(**CHANGES[change])
    again = written_and_read(run, tmp_path)
    assert again == run
    assert again.name == run.name != a_run().name


recipes = st.builds(
    Recipe,
    length=st.sampled_from(["10ep", "0.5ep", "4000it"]),
    batch=st.integers(1, 1 << 24),
    optimizer=st.sampled_from(get_args(Optimizer)),
    lr=st.floats(0, 1e6),
    weight_decay=st.floats(0, 1e3),
    schedule=st.just("multistep"),
    milestones=st.lists(st.sampled_from(["50%", "80ep", "7it"]), min_size=1).map(tuple),
    clip=st.floats(0, 1e12),
    augment=st.sampled_from([(), ("flip",), ("crop", "flip")]),
)
seeds = st.builds(Seeds, *[st.integers(0, 2**62)] * 3)


@given(recipes, seeds, st.lists(st.floats(1e-6, 1), unique=True).map(lambda found: tuple(sorted(found, reverse=True))))
def test_numbers_come_back_to_the_last_bit(tmp_path_factory, recipe, seeds, densities):
    run = a_run(recipe=recipe, seeds=seeds, settings=ITERATIVE.Settings(densities=densities))
    assert written_and_read(run, tmp_path_factory.getbasetemp()) == run


OWN = """
from ticketry.tasks.user_task import OwnTask
from ticketry.tasks import catalogue

class Own(OwnTask):
    def __init__(self, word="", number=0):
        inner = catalogue.get("digits")
        self.inner, self.name, self.metric, self.recipe = inner, "own", inner.metric, inner.recipe
        self.word, self.number = word, number

    def key(self):
        return {}
"""


@pytest.mark.parametrize("word", ['a "quoted" \\ word', "ünï", "1e5", "#no comment"])
def test_options_of_ones_own_task_come_back(tmp_path, monkeypatch, word):
    (tmp_path / "own_task_of_a_run.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    task = catalogue.get("own_task_of_a_run:Own", options={"word": word, "number": "3"})
    run = a_run(task=task)
    again = written_and_read(run, tmp_path)
    assert again.task.spec == task.spec
    assert again.name == run.name


@pytest.mark.parametrize(
    ("data", "told"), [(b"task = ", "is not TOML"), (b"\xff\xfe", "is not TOML"), (None, "cannot be read")]
)
def test_what_is_no_run_file_is_told(tmp_path, data, told):
    path = tmp_path / "run.toml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UsageError, match=told) as caught:
        read_run_file(path)
    assert str(path) in str(caught.value)


def test_densities_in_percent_in_keywords_and_run_files(tmp_path):
    given = {"densities": ["50%", 0.2]}
    assert decode_settings(given, ITERATIVE.Settings, what="test")[0].densities == (0.5, 0.2)
    assert decode_settings({"sparsity": "90%"}, ITERATIVE.Settings, what="test")[0].sparsity == 0.9
    with pytest.raises(UsageError, match=re.escape("20 %? write 20% or 0.2")):
        decode_settings({"density": 20}, ITERATIVE.Settings, what="test")
    file = tmp_path / "run.toml"
    file.write_text('control_densities = "20%"\n[settings]\ndensity = "20%"\n')
    assert read_run_file(file)["control_densities"] == "20%"
    assert build_request(
        ITERATIVE, DIGITS, ITERATIVE.Settings(densities=(0.2,)), control_densities="20%"
    ) == build_request(ITERATIVE, DIGITS, ITERATIVE.Settings(densities=(0.2,)), control_densities=0.2)
