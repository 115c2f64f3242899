"""Tables of pandas, where that is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ticketry.errors import MissingExtraError

if TYPE_CHECKING:
    import pandas


def frame_of(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """The rows as a table of pandas; `MissingExtraError` without pandas."""
    try:
        import pandas
    except ModuleNotFoundError:
        raise MissingExtraError("pandas", "pandas", "a data frame") from None
    return pandas.DataFrame(list(rows))
