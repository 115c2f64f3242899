"""Random small networks, compiled: equal to torch in double precision on every target, layout and number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from arenas import targets
from engine.random_graphs import Way, graphs, ways
from interpreter import Program
from ticketry_engine.compiled import Compiled
from ticketry_engine.ir import Graph
from ticketry_engine.plan.storage import UnsupportedError

_WAYS = ways(targets())


@pytest.fixture(scope="module", autouse=True)
def _cores() -> Iterator[None]:
    """As many as the tests have threads, on every machine."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ticketry_engine.compiled.count_cores", lambda: 8)
        yield


def agrees(graph: Graph, way: Way, strides: int = 0) -> None:
    """Run a graph and compare each output, relative to its largest value."""
    generator = torch.Generator().manual_seed(way.batch)
    fast = Compiled(graph, threads=way.threads, target=way.target)
    inputs = []
    for name in graph.inputs:
        shape = graph.values[name].shape or ()
        inputs.append(torch.randn(way.batch, *[int(size or 0) for size in shape[1:]], generator=generator))
    wanted = Program(graph, precision="float64")(*inputs)
    assume(all(bool(value.isfinite().all()) for value in wanted))  # no window of a pool lies outside as a whole
    for native in fast._natives:
        native.layout = way.layout
    given = [_laid_out(tensor, strides) for tensor in inputs]
    try:
        found = fast(*given)
    except UnsupportedError:
        if way.layout is None:
            raise
        return  # the layout that was asked for has no way to run it
    again = fast(*given)
    for made, same, right in zip(found, again, wanted, strict=True):
        assert made.shape == right.shape
        assert torch.equal(made, same)
        # Values are of size 1. What is 0 in double precision, as the norm of a constant row, is a rounding in single,
        # divided by the root of a small number.
        assert float((made.double() - right).abs().max()) <= 1e-4 * max(float(right.abs().max()), 0.5)


def _laid_out(tensor: torch.Tensor, strides: int) -> torch.Tensor:
    """The same numbers in other places."""
    if strides == 1:
        return tensor.to(memory_format=torch.channels_last)
    if strides == 2:
        return tensor.repeat(1, 1, 1, 2)[..., : tensor.shape[-1]]
    return tensor


@settings(max_examples=12)
@given(graphs(6), _WAYS, st.integers(0, 2))
def test_random_graphs(graph: Graph, way: Way, strides: int) -> None:
    agrees(graph, way, strides)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=1500)
@given(graphs(12), _WAYS, st.integers(0, 2))
def test_many_random_graphs(graph: Graph, way: Way, strides: int) -> None:
    agrees(graph, way, strides)
