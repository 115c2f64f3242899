"""A few of many values in the quick tests, all of them in the slow ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest

_Param = type(pytest.param())


def sample(values: Iterable[Any], quick: int | Collection[Any], ids: Iterable[str] | None = None) -> list[Any]:
    """For `parametrize`: all values, marked slow but for the first so many, or but for those named.

    Values that are tuples stand for several arguments, as they do for `parametrize`; what `pytest.param` made keeps
    its marks.
    """
    values = list(values)
    names: Sequence[str | None] = [None] * len(values) if ids is None else list(ids)
    marked = []
    for place, (value, name) in enumerate(zip(values, names, strict=True)):
        made = value if isinstance(value, _Param) else pytest.param(*(value if isinstance(value, tuple) else (value,)))
        kept = place < quick if isinstance(quick, int) else value in quick
        marks = made.marks if kept else [*made.marks, pytest.mark.slow]
        marked.append(pytest.param(*made.values, id=name or made.id, marks=marks))
    return marked
