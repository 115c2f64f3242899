"""A method that a user writes: what is refused as one, and checks of what it yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from ticketry.errors import UsageError
from ticketry.lab.retrain import retraining
from ticketry.search import Found, Method
from ticketry.search.common.method import About
from ticketry.testing import check_search


class Right:
    """Finds nothing."""

    ABOUT = "a text of one's own"

    @dataclass(frozen=True)
    class Settings:
        """None."""

    @staticmethod
    def search(lab: Any, task: Any, recipe: Any, settings: Any, seeds: Any) -> Any:
        yield from ()


class OfAnother(Right):
    @staticmethod
    def search(lab: Any) -> Any:  # type: ignore[override]
        yield from ()


class OfAnObject(Right):
    def search(self, lab: Any, task: Any, recipe: Any, settings: Any, seeds: Any) -> Any:  # type: ignore[override]
        yield from ()


@pytest.mark.parametrize("found", [OfAnother, OfAnObject])
def test_a_search_of_other_arguments_is_refused(found: type) -> None:
    called = r"its search is called as search\(lab, task, recipe, settings, seeds\): "
    with pytest.raises(UsageError, match=rf"^{found.__name__} is no search method: {called}"):
        Method.of("mine", found)


def test_one_behind_a_decorator_is_taken_as_it_is_called() -> None:
    class Wrapped(Right):
        @staticmethod
        @wraps(OfAnother.search)
        def search(*arguments: Any) -> Any:
            yield from ()

    assert Method.of("mine", Wrapped).search is Wrapped.search


RECIPE = {"length": "4it"}


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Settings of nothing."""


def method(search: Callable[..., Any]) -> Method[Any]:
    return Method("mine", "Mine", "", Plain, search)


def networks(lab: Any, task: Any, recipe: Any, seeds: Any) -> list[Found]:
    """The dense network, and tickets of 0.4 and 0.2, as they should be."""
    whole = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=recipe)
    dense = lab.train(whole, keep=(0,))
    early = lab.at(dense, 0)
    found = [Found(0, None, early, dense, "continue", dense)]
    for level, density in enumerate((0.4, 0.2), start=1):
        mask = lab.store.put_mask(tk.prune(lab.model(task), density, score="random"))
        how = {"retrain": "continue", "rewound": early, "trained": dense, "order_seed": seeds.order}
        segment = retraining(lab, task, recipe, mask=mask, **how)
        found.append(Found(level, mask, early, dense, "continue", lab.train(segment)))
    return found


def changed(change: Callable[[Any, Any, Any], Any]) -> Method[Any]:
    """A method that yields `change(dense, first, second)`."""

    def search(lab: Any, task: Any, recipe: Any, settings: Any, seeds: Any) -> Iterator[Any]:
        yield from change(*networks(lab, task, recipe, seeds))

    return method(search)


WRONG = {
    "nothing": (lambda d, a, b: [], "nothing: it yields the dense network"),
    "a result": (lambda d, a, b: [d.result], "a Result: it yields a ticketry.search.Found"),
    "no dense network": (lambda d, a, b: [a, b], "a network of level 1 before the dense network"),
    "level 0 twice": (lambda d, a, b: [d, replace(a, level=0)], "level 0 after one of level 0"),
    "one level twice": (lambda d, a, b: [d, a, replace(b, level=1)], "level 1 after one of level 1"),
    "levels that fall": (lambda d, a, b: [d, b, a], "level 1 after one of level 2"),
    "no mask": (lambda d, a, b: [d, replace(a, mask=None)], "a ticket of level 1 without a mask: give what lab.store"),
    "a mask itself": (
        lambda d, a, b: [d, replace(a, mask=tk.Mask.ones({"w": (2,)}))],
        "with a Mask as its mask, which is the digest of one",
    ),
    "the dense result": (lambda d, a, b: [d, replace(a, result=d.result)], "level 1 that was trained without a mask"),
    "another's mask": (lambda d, a, b: [d, replace(a, mask=b.mask)], "level 1 with the mask .* under another one"),
    "a word for retrain": (lambda d, a, b: [d, replace(a, retrain="continu")], "level 1 with retrain 'continu'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_yields_are_refused_by_the_name_of_the_method(name: str, shared_store: Path) -> None:
    change, message = WRONG[name]
    task = tk.task("digits")
    with tk.Lab(shared_store) as lab, pytest.raises(UsageError, match=f"the search method mine yields .*{message}"):
        changed(change)(lab, task, recipe=task.recipe.changed(**RECIPE))


def test_nothing_is_written_of_a_run_whose_method_is_wrong(tmp_path: Path) -> None:
    options: dict[str, Any] = {"task": "digits", "store": tmp_path, "recipe": RECIPE, "workers": 0, "replicates": 1}
    wrong = changed(lambda d, a, b: [d, b, a])
    with pytest.raises(UsageError, match="level 1 after one of level 2"):
        tk.run(wrong, **options)
    assert not list(tmp_path.glob("runs/*/run.json"))
    with pytest.raises(AssertionError):
        check_search(wrong, tmp_path / "check")
    good = changed(lambda d, a, b: [d, a, b])
    assert [one.level for one in tk.run(good, **options).tickets] == [1, 2]
    with tk.Lab(tmp_path) as lab, pytest.raises(UsageError, match="the search method mine returns a NoneType"):
        method(lambda *given: None)(lab, tk.task("digits"))


def test_an_authors_own_error_stays_what_it_is(tmp_path: Path) -> None:
    def search(*given: Any) -> Iterator[Found]:
        raise ZeroDivisionError("mine")
        yield

    with tk.Lab(tmp_path) as lab, pytest.raises(ZeroDivisionError, match="mine"):
        method(search)(lab, tk.task("digits"))


def test_a_setting_without_a_default_is_told() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Bare:
        """Settings."""

        fade: float

    class Mine:
        """Mine."""

        Settings = Bare

        @staticmethod
        def search(*given: Any) -> Iterator[Found]:
            yield from ()

    with pytest.raises(UsageError, match="its setting 'fade' has no default"):
        Method.of("mine", Mine)


def test_facts_that_are_none_are_not_said() -> None:
    assert Method.of("mine", Right).about == About()
