"""Groups of rows with the same columns, against the definition."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

import ticketry as tk
from ticketry.core.structure.layout import groups, row_groups


@given(st.integers(0, 40), st.integers(1, 6), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_rows_of_a_group_have_the_same_columns(rows: int, kinds: int, columns: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    supports = generator.random((kinds, columns)) < 0.4
    kept = supports[generator.integers(kinds, size=rows)]
    weight = kept * generator.uniform(0.5, 1, kept.shape)
    found = row_groups(weight)
    assert sorted(row for group in found for row in group.rows) == list(range(rows))
    of = {row: number for number, group in enumerate(found) for row in group.rows}
    for a in range(rows):
        np.testing.assert_array_equal(found[of[a]].columns, np.flatnonzero(kept[a]))
        for b in range(rows):
            assert (of[a] == of[b]) == bool((kept[a] == kept[b]).all())
    assert [group.rows[0] for group in found] == sorted(group.rows[0] for group in found)


def test_groups_of_a_mask() -> None:
    kept = torch.zeros(4, 3, 3, 3, dtype=torch.bool)
    kept[0, 0] = kept[2, 0] = kept[1, 1, 2, 2] = True
    found = groups(tk.Mask({"conv.weight": kept}))["conv.weight"]
    assert [(list(group.rows), list(group.columns)) for group in found] == [
        ([0, 2], list(range(9))),
        ([1], [17]),
        ([3], []),
    ]


def test_a_single_number_is_a_row() -> None:
    (group,) = tk.structure.row_groups(torch.tensor(True))
    assert (group.rows.tolist(), group.columns.tolist()) == ([0], [0])
