from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from ticketry.choices import check_choices
from ticketry.errors import UsageError


@dataclass(frozen=True)
class Settings:
    way: Literal["", "far", "near"] = "far"
    steps: tuple[Literal["one", "two"], ...] = ()
    any: str = "thing"
    pair: tuple[int, str] = (1, "far")


def test_what_is_among_the_choices() -> None:
    check_choices(Settings())
    check_choices(Settings(way="", steps=("two", "one", "two"), any="else"))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"way": "middle"}, r"^way 'middle' is not known: far, near$"),
        ({"steps": ("one", "three")}, r"^steps 'three' is not known: one, two$"),
    ],
)
def test_what_is_not(values: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        check_choices(Settings(**values))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=f"trip: {reason[1:]}"):
        check_choices(Settings(**values), "trip: ")  # type: ignore[arg-type]


def test_the_nearest_is_named() -> None:
    with pytest.raises(UsageError, match=r"^way 'neer' is not known: far, near; did you mean near\?$"):
        check_choices(Settings(way="neer"))  # type: ignore[arg-type]
