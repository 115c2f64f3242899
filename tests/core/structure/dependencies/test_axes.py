"""What is connected, against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ticketry.core.structure.trace import find_smallest_connected

csgraph = pytest.importorskip("scipy.sparse.csgraph", reason="the independent truth")


def told_by_scipy(edges: np.ndarray, count: int) -> np.ndarray:
    from scipy.sparse import coo_array

    _, component = csgraph.connected_components(coo_array((np.ones(edges.shape[1]), edges), shape=(count, count)))
    return np.array([np.flatnonzero(component == one)[0] for one in component])


@given(
    st.integers(1, 40).flatmap(
        lambda count: st.tuples(
            st.just(count), st.lists(st.tuples(*[st.integers(0, count - 1)] * 2), min_size=1, max_size=60)
        )
    )
)
def test_any_graph(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    count, pairs = drawn
    edges = np.array(pairs, dtype=np.int64).T
    np.testing.assert_array_equal(find_smallest_connected(edges, count), told_by_scipy(edges, count))


@pytest.mark.parametrize("shape", ["path", "path in any order", "star", "star from above", "ring"])
def test_long_ways(shape: str) -> None:
    """What takes many rounds, if anything does."""
    count, rng = 3000, np.random.default_rng(0)
    names = rng.permutation(count) if shape == "path in any order" else np.arange(count)
    edges = {
        "star": np.array([np.zeros(count - 1, int), np.arange(1, count)]),
        "star from above": np.array([np.full(count - 1, count - 1), np.arange(count - 1)]),
        "ring": np.array([names, np.roll(names, 1)]),
    }.get(shape, np.array([names[:-1], names[1:]]))
    np.testing.assert_array_equal(find_smallest_connected(edges, count), np.zeros(count, int))
