"""What a metric is refused for."""

from __future__ import annotations

import pytest

import ticketry as tk
from ticketry.errors import UsageError


@pytest.mark.parametrize(("field", "word"), [("summary", "IQM"), ("summary", "median"), ("scale", "logarithmic")])
def test_words_that_are_not_known(field: str, word: str) -> None:
    """They were taken for the default, in silence: a mean, a linear axis."""
    with pytest.raises(UsageError, match=f"metric: {field} '{word}' is not known: "):
        tk.Metric("return", unit="", **{field: word})  # type: ignore[arg-type]


def test_words_that_are_known() -> None:
    metric = tk.Metric("return", unit="", scale="log", summary="iqm")
    assert (metric.scale, metric.summary) == ("log", "iqm")
