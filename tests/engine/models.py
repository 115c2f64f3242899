"""Models that are a function, and comparisons of what is captured or compiled of a model with torch in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from engine.families import shake
from interpreter import Program
from ticketry.core.mask import Mask
from ticketry_engine.capture import capture
from ticketry_engine.compiled import Compiled
from ticketry_engine.ir import Graph, Region
from ticketry_engine.plan.region_programs import partition_graph, sketch_region
from ticketry_engine.plan.sketch import Sketch


class Of(nn.Module):
    """A model that is a function of some modules and an input."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def captured(model: nn.Module, x: Tensor) -> Graph:
    """The graph, after a comparison with the model in float64 on three times as many examples."""
    model, x = shake(model.double().eval()), x.double()
    graph = capture(model, None, x)
    more = torch.randn(3 * len(x), *x.shape[1:], dtype=torch.float64) * 3
    with torch.no_grad():
        wanted = model(more)
    made = Program(graph)(more)
    assert torch.allclose(made, wanted, rtol=1e-10, atol=1e-11)
    return graph


def ops(graph: Graph) -> list[str]:
    return [one.op for one in graph.nodes]


def ops_in_torch(graph: Graph) -> list[str]:
    return [one.op for one in graph.nodes if not one.native]


def sketch_of(model: nn.Module, x: Tensor, mask: Mask | None = None) -> Sketch:
    """The sketch of a model that is one region."""
    graph = capture(model, mask, x)
    ((region,), _) = partition_graph(graph)
    assert isinstance(region, Region)
    return sketch_region(graph, region)


def in_layout(fast: Compiled, layout: str | None) -> Compiled:
    """All regions of a compiled model in a layout, or in those that the engine chooses."""
    for native in fast._natives:
        native.layout = layout
    return fast


def assert_exact(
    fast: Callable[..., Any], model: nn.Module, *inputs: Any, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """For each input (a tuple: several), a graph or compiled model gives what the model gives in float64."""
    exact = copy.deepcopy(model).double()
    for given in inputs:
        args = given if isinstance(given, tuple) else (given,)
        with torch.no_grad():
            wanted = exact(*tree_map(torch.Tensor.double, args))
        torch.testing.assert_close(tree_map(torch.Tensor.double, fast(*args)), wanted, rtol=rtol, atol=atol)
