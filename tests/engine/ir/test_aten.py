"""Arithmetic on sizes: what may come from a file takes no time and no memory."""

from __future__ import annotations

from typing import Any

import pytest

from ticketry.errors import GraphError
from ticketry_engine.ir.aten import OPERATORS


@pytest.mark.parametrize(
    ("name", "numbers", "made"),
    [
        ("pow", (3, 4), 81),
        ("pow", (2, 62), 1 << 62),
        ("pow", (4, -0.5), 0.5),
        ("pow", (2, -1), 0.5),
        ("sqrt", (9,), 3.0),
    ],
)
def test_powers(name: str, numbers: tuple[Any, ...], made: Any) -> None:
    found = OPERATORS[name][1](*numbers)
    assert found == made
    assert type(found) is type(made)


@pytest.mark.parametrize("numbers", [(10, 1 << 62), (-(1 << 62), 1 << 62), (3, 63), (-2.0, 0.5), (0, -1)])
def test_powers_that_are_no_sizes(numbers: tuple[Any, ...]) -> None:
    with pytest.raises(GraphError, match="no number that sizes"):
        OPERATORS["pow"][1](*numbers)
