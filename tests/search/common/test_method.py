"""What is a search method, and what is refused as one before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from typing import Any

import pytest

from ticketry.errors import UsageError
from ticketry.search import Method
from ticketry.search.common.method import About


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


def test_facts_that_are_none_are_not_said() -> None:
    assert Method.of("mine", Right).about == About()
