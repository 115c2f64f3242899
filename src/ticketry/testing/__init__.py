"""Contract tests for search methods and scores, built-in or custom: call them from your own tests.

>>> from ticketry.testing import check_score, check_search
>>> check_search(my_module, tmp_path)  # doctest: +SKIP
>>> check_score(my_score)              # doctest: +SKIP
"""

from __future__ import annotations

from ticketry.testing.score import check_score
from ticketry.testing.search import check_search

__all__ = ["check_score", "check_search"]
